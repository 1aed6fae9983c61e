"""Where the agents are and how their messages travel: worlds, exchanges, memberships."""
