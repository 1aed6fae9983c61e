"""Subcommands for runs that are under way or over."""
