"""Ways of loading and quantising; each `build(stored, scheme)` gives a model."""
