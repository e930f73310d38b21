"""Ways to get part of a randomly initialised tensor; `build(rows, columns, dim)`."""
