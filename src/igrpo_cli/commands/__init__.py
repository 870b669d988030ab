"""Implement the subcommands, one per file. Only they use all rooms."""
