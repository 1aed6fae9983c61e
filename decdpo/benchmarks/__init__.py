"""Benchmarks: what a part of decdpo costs, beside the simplest programs that do the same."""
