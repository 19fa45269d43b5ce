"""Benchmarks: speed and memory as ratios within one run; `python -m bench` runs all and writes bench/results/."""
