"""Settings of a run: their kinds, checks and presets."""
