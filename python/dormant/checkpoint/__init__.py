"""Checkpoints as lazy tensors: which files, what is in them, whether they are sound."""
