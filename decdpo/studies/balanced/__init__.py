"""Balanced-DPO: its toy experiment and its figures."""
