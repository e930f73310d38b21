"""Writing models and state dicts to files, each tensor as it is materialized."""
