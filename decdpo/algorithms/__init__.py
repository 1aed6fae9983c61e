"""Distributed optimization algorithms, one paper per file."""
