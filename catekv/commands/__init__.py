"""The command line: one file a command, and beside it what the command prints."""
