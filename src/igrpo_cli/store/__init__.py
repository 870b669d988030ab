"""Everything on disk: where files lie, how they are published, what they hold, and whether they are intact.

`schema`, `tables`, `rows`, `parts`, `scores`, `views`, `row_checks` and `verify` import pyarrow. The other modules do
not, so that a command with nothing to do answers fast.
"""
