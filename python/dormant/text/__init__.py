"""Text that people read: byte counts, tables, what is safe to print."""
