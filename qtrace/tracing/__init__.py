"""One run over all samples, from plan to report."""
