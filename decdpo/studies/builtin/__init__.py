"""The studies of the sources' claims, one module each."""
