"""Each does all three: loads a folder, makes one file of it, and saves one."""
