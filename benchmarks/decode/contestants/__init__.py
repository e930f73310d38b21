"""An encoding each.

NAME is how tables show it, EXACT is True. `tensors(rows, columns)` are those of a layer, by the
last part of their names; CONFIG is the quantization_config that describes them. `reference(tensors)`
is the weight that the library concerned makes of them, with PyTorch's own operators where it does;
LIBRARY is its name.
"""
