"""Ways to load; `build(path, width, layers, initializer)` gives the model."""
