"""Trained policies: loaded, asked for actions, exported."""
