"""Entry points: the only place that knows the library, the data and the evaluation."""

import importlib.util
import sys

if importlib.util.find_spec("torch") is None:
    sys.exit(f"error: {sys.executable} lacks the packages of this project: activate its environment, see README.md")
