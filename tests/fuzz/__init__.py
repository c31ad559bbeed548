"""Coverage-guided fuzzing of what guests and files can say to us. See docs/fuzzing.md.

    python -m tests.fuzz blk-mmio --seconds 600

Each target is a function of bytes in targets.py; `test_corpus.py` replays what was kept of earlier runs.
"""
