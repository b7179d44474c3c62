"""What every package may use: files, imports, statistics."""
