"""What became of the sources, what is odd in them, and how that is shown."""
