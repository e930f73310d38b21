"""The command `dormant`. Each subcommand is a file; it returns an `Outcome` and prints nothing.

`main` parses arguments, prints outcomes, and turns errors into messages and exit codes.
"""
