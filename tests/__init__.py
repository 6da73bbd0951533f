"""The tests, a room for every room; a package, so that `python -m tests.torture` finds it before any other `tests`."""
