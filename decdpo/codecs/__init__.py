"""Codecs: vectors as fewer bytes, one way per file."""
