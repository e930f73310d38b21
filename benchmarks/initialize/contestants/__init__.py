"""Ways to initialize a model; `build(workload)` returns it with its values."""
