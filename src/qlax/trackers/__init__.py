"""Trackers, which receive the measurements of a run besides `metrics.jsonl`."""
