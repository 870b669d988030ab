"""What the stages are made of: shards opened, worked through and published, and where a run stands."""
