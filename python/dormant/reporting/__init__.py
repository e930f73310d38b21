"""What an operation did and what a model is: reports, summaries, progress, memory, pictures."""
