"""Agents on the ranks of an MPI job: the one package that knows MPI, and alone says rank."""
