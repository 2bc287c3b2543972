"""Episodes on fixed seeds: agents, success with an interval, comparisons."""
