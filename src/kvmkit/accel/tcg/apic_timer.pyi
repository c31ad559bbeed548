class ApicTimer:
    """Used from compiled code only."""
