"""Evaluation: what is sampled of a benchmark, what the figures mean, and how they are told."""
