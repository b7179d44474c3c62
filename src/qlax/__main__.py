"""`python -m qlax` is the command `qlax`."""

from qlax.cli.main import entry

if __name__ == "__main__":
    entry()
