"""Pairs as texts, and texts as tokens."""
