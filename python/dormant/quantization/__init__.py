"""Quantizing layers before they have values, and the libraries that do it."""
