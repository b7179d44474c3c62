"""What a run leaves in its directory, written and read."""
