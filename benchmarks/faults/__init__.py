"""Faults tried on the commands, the readers and the load generator; `python -m benchmarks.faults` counts them."""
