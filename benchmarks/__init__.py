"""What is measured side by side: cost, samplers, ways to symmetry."""
