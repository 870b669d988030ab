"""What people look at: the story of a problem, the curves of a run, how two runs differ. Reads, and writes nothing."""
