"""Ways to initialise a model; `build(workload)` returns it with its values."""
