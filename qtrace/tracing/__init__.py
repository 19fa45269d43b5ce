"""Runs a pair of models over all samples, from plan to report."""
