"""Ways to get part of a randomly initialized tensor; `build(rows, columns, dim)`."""
