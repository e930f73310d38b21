"""Text for people: byte counts, tables, text that is safe to print."""
