"""The camera: stock robosuite's pixels, from what can be seen and nothing else."""
