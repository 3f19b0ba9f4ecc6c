"""Programs that show convext at work; each runs as ``python -m examples.NAME``."""
