"""Adapters: a module a suite of environments."""
