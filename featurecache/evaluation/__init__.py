"""Evaluation: heads chosen on validation rows, reported on test rows, every figure with an interval."""
