"""The `qlax` command."""
