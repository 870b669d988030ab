"""Sampling: prompt ids in, completions with their log-probs out. Importing this package loads no torch."""
