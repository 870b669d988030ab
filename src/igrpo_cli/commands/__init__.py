"""One file per subcommand: `run(…)` is the only place where the rooms meet."""
