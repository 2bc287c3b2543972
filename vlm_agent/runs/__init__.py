"""What a run is on disk and among processes."""
