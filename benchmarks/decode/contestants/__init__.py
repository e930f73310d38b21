"""An encoding each.

NAME is how tables show it, EXACT is True. `tensors(rows, columns)` are those of a layer, by the
last part of their names; CONFIG is the quantization_config that describes them. LIBRARY is the name
of the library concerned, and `reference(tensors)` is the weight that it makes of them.
"""
