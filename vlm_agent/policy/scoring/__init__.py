"""From hidden states to one score per word."""
