"""Methods whose agents mix with their neighbours."""
