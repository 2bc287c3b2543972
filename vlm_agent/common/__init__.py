"""What every room uses: errors for people, derived seeds, settings, strict YAML, lifetimes."""
