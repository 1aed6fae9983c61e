"""Subcommands that train, or have training done."""
