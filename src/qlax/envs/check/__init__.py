"""Checks of environments against their contracts."""
