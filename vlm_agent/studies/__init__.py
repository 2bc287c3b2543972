"""Runs of commands that make the results of README and docs, stage by stage."""
