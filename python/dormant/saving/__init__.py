"""Writes models and state dicts to files; lazy tensors are computed while they are written."""
