"""Subcommands that show what a run would do."""
