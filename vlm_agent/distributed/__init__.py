"""One process or many: how they start, what they share, and what gradients go through."""
