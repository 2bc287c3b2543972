"""The scripted expert played in parallel, and the dataset of what it said."""
