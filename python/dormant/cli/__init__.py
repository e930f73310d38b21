"""The command `dormant`: a file for each subcommand, which returns an `Outcome` and prints nothing.

`main` parses arguments, prints outcomes, and turns errors into messages and exit codes.
"""
