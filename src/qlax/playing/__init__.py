"""Evaluation and videos of trained agents, and acting in environments on the host."""
