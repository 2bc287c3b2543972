"""A page on which a person sees what the robot sees, and says words to it."""
