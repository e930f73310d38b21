"""The recording context, and how Python functions handle lazy tensors."""
