"""Subcommands that run studies and benchmarks."""
