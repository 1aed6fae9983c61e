"""The subcommands: each module declares its arguments and runs."""
