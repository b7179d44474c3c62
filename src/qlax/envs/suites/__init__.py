"""Adapters of suites of environments, one module for each suite."""
