"""Subcommands for the machine: once, before anything else."""
