"""Ways to get the tensors of a checkpoint at a URL by name; `build(url, dtype, folder)`."""
