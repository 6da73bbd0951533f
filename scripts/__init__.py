"""Entry points: the only place that knows the library, the data and the evaluation."""
