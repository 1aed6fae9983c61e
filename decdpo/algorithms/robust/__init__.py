"""Methods of agents that do not trust all of their neighbours."""
