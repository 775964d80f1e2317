"""The command line: words in, one validated configuration, a few lines out, and an exit code that says what kind of trouble it
was."""

from atlas_dist.cli.entry_point import main

__all__ = ["main"]
