"""What the theory says of a run: measured constants, bounds, advice, and the toy experiment."""
