"""Entry points: the only place that knows the library, the data and the evaluation."""

import ddbm  # noqa: F401  ends with a line where the environment is not the project's
