"""Read a run to show it: its state, stories of problems, curves, differences, SQL. Writes nothing."""
