"""Trackers: the metrics of a run, sent to trackio, TensorBoard or wandb by background processes."""
