"""Methods with a server, which adds up what all agents send."""
