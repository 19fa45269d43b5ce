"""The command line: one file for each command, which parses, calls, renders and exits."""

from qtrace.cli.app import main

__all__ = ["main"]
