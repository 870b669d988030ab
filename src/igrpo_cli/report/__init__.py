"""The HTML report of runs: figures, tables and sample problems in one file, without anything from elsewhere."""
