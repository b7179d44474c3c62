"""Whole episodes with trained agents: evaluated and filmed."""
