"""iGRPO (arXiv 2602.09000) as a pipeline of Parquet shards: draft, select, refine, update, eval."""

__version__ = "0.1.0"
