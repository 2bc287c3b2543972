"""Plots, videos and summaries, read from what runs left on disk. Imports no torch."""
