"""What a recipe will take: memory, time, and what to change where it does not fit."""
