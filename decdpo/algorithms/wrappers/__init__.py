"""What is laid around a method: parts of the vector, kept messages, a statistic, products."""
