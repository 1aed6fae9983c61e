"""Preference data: sources, partitions over agents, and the shard each agent keeps."""
