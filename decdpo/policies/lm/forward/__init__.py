"""From tokens to the log-probabilities of answers, and back to the gradient."""
