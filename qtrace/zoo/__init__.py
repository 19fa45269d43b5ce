"""Tiny models with random weights, and inputs for them: what qtrace does, offline and in seconds."""
