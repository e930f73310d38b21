"""Work that several ranks do together: all of them finish it, or none."""
