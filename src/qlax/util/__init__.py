"""Helpers for all packages: files, imports, statistics and text."""
