"""What a run measures of itself and of its models, and what it records of that."""
