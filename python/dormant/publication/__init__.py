"""How files replace others: whole, together, and so that a kill leaves nothing behind for long."""
