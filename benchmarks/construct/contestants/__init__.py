"""Ways to construct a model; `build(make)` calls `make` in the right context."""
