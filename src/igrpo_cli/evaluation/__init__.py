"""Evaluations on benchmarks: sampling their shards, comparing answers, and computing the figures."""
