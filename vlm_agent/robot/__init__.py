"""The world: robosuite scenes moved by words. Knows no torch and no transformers."""
