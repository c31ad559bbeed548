"""What holds for all tests."""

from __future__ import annotations

import os

# Its boot is the shortest, and building it takes seconds; tests of the default say so (tests/images).
os.environ.setdefault("KVMKIT_IMAGE", "tiny")
