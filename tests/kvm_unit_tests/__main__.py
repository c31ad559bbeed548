"""`python -m tests.kvm_unit_tests`."""

import sys

from .run import main

sys.exit(main())
