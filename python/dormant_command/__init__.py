"""The command `dormant`: its arguments, its messages and its exit codes.

This package imports neither torch nor `dormant`, which imports torch. `dormant --help` and errors
in arguments therefore take a fraction of a second. The subcommands themselves are in `dormant.cli`;
each has the same name as the module of `commands` that describes its arguments.
"""
