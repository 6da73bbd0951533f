"""Ratios measured side by side, one script a question."""
