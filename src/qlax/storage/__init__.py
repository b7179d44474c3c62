"""Files of a run: checkpoints, metrics, formats, and the run directory that holds them."""
