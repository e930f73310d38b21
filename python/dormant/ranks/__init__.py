"""Work that several ranks do together: it succeeds on all of them or on none."""
