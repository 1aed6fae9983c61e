"""Subcommands that make shards."""
