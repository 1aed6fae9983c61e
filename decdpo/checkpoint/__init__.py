"""Checkpoints: what every agent needs to go on, safe against a kill at any moment."""
