"""Ways to a packed mixture of experts; each `build(folder, shape)` gives a model."""
