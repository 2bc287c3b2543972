"""The report of a run as one page: curves, figures, and episodes to look at moment by moment."""
