"""Where measurements go besides `metrics.jsonl`."""
