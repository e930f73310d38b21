"""Where construction is recorded: the context, and what Python functions do with lazy tensors."""
