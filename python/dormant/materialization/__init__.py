"""Giving lazy tensors their values."""
