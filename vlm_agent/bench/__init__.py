"""Benchmarks: each runs two things side by side in one process and reports ratios."""
