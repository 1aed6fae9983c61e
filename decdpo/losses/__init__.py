"""Preference losses: pure functions of log-probabilities."""
