"""A recipe is what a run is: flat YAML in typed sections, checked before anything starts."""
