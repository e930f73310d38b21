"""Properties of tensors and of objects that hold them: storages, reachability, names, dtypes."""
