"""Replaces files completely and together, so that a kill leaves nothing behind for long."""
