"""Nothing for Python: used by compiled modules."""
