"""The mind: a vision-language model that scores words. Knows no simulator."""
