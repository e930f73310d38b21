"""Reports, summaries, progress, memory and plots of operations and models."""
