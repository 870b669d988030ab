"""Run the stages: find unfinished shards, sample or train, and publish the results."""
