"""The command line: flags, output options, signals and exit codes. Imports nothing heavy."""
