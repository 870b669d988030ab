"""iGRPO (arXiv 2602.09000) as a pipeline of Parquet shards: draft, select, refine, update, eval.

`open_run` reads a run in Python. Importing the package loads nothing heavy.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igrpo_cli.inspection.opened_run import Run

__all__ = ["open_run"]
__version__ = "0.1.0"


def open_run(path: str | PathLike[str] = ".") -> Run:
    """Return the run in the directory `path`, to read its tables and policies.

    Raises MissingInputError where there is no run, UsageError for settings that no run can have, and DamagedFileError.
    """
    from igrpo_cli.inspection.opened_run import Run

    return Run(path)
