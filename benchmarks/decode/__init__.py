"""Encoded weights as plain ones: time per element, beside the libraries that wrote them."""

from benchmarks.decode.task import NAME, TITLE, run

__all__ = ["NAME", "TITLE", "run"]
