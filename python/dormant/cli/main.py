"""`main` runs the command `dormant`, from its arguments to its exit code."""

from dormant_command.main import main

__all__ = ["main"]
