"""Ways of loading and quantizing; each `build(stored, scheme)` gives a model."""
