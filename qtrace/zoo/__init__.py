"""Tiny models with random weights, and inputs for them: to try qtrace offline and in seconds."""
