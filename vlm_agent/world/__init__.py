"""Words, facts, episodes and environments. Knows no torch."""
