"""Parameters as one flat vector, and the optimizers that work on it."""
