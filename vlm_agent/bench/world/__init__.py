"""The world against stock robosuite, and against itself after a while."""
