"""The subcommands of `dormant`. Each is a file whose `run` returns an `Outcome` and prints nothing.

`dormant_command` parses the arguments, prints outcomes, and turns errors into messages and exit
codes. It imports a subcommand only to run it.
"""
