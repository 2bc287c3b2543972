"""Runs of commands that make the README's results, stage by stage."""
