"""Ways of loading; each `build(stored, dtype)` gives a model, or as the limits, bytes."""
