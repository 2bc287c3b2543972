"""Trackers of a run: accelerate's by their names, wandb with a way out, and your own."""
