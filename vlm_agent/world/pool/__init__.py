"""Environments in worker processes that may die without anyone noticing."""
