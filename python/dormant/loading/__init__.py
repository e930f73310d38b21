"""Loading a checkpoint into a model, and initializing what is missing."""
