"""What tensors are and where they hang: storages, what is reachable, names, conversions."""
