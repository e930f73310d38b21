"""The arguments of the subcommands, one module for each: SUMMARY, DESCRIPTION, EXAMPLES, arguments.

Where arguments exclude each other, `check` raises `UsageError`.
"""
