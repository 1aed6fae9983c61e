"""Experiments over many runs, and what they say of the claims of the papers."""
