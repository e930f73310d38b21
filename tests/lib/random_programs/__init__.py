"""Random programs of PyTorch calls, run eagerly and lazily and compared in everything visible.

`program` is what a program is, `operators` the table of what it may call, `arguments` fills the
placeholders of that table, `generate` makes a program of a seed, `run` runs one, `observe` says
what can be seen of the result, `check` compares, `minimize` deletes what a failure does not need.
"""
