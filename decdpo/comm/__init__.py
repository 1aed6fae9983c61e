"""Worlds: where the agents live and how their letters travel."""
