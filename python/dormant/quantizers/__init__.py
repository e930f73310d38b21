"""What `dormant.quantize` knows about layers, and about the libraries that quantise them."""
