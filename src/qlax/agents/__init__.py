"""Trained agents: load them, ask them for actions, and export them."""
