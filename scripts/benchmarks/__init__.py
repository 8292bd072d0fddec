"""The benchmarks behind `scripts/benchmark.py`, one file for each thing that is measured."""
