"""What changes from episode to episode in a robosuite scene: its looks, its things, its arm."""
