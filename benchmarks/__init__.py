"""What is measured side by side: cost, samplers, ways to symmetry."""

import ddbm  # noqa: F401  ends with a line where the environment is not the project's
