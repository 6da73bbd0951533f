"""The report on one run, or on several side by side: a page that needs nothing else (docs/report.md)."""
