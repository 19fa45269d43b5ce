"""The command line: one file a command, each of which parses, calls, renders and exits."""

from qtrace.cli.app import main

__all__ = ["main"]
