"""Everything on disk: where files lie, how they come into being, what they hold and whether they still do.

`layout`, `publish`, `strict_json`, `identity`, `manifest` and `policies` need the standard library
alone, so that "already done" is answered without heavy imports. pyarrow lives in `schema`, `rows`
and `tables`, and behind them in `parts` and `verify`.
"""
