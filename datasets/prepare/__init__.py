"""Data sets from the files their owners distribute: `python -m datasets.prepare NAME` (docs/prepare.md)."""
