"""Read problems from the Hugging Face Hub (the optional extra `hub`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.extras import importing_extra
from igrpo_cli.problems.rows import RawRow, Table
from igrpo_cli.problems.sources import ProblemSource

OFFLINE_HINT = (
    "connect to the network, or fill the cache (HF_HOME) on a connected machine and copy it, "
    "or name a local file or folder (--bench-dir DIR, --set data.train=PATH); gated datasets need `hf auth login`"
)
COMMIT = re.compile(r"@([0-9a-f]{40})/")


def open_hub(source: ProblemSource) -> tuple[list[Table], str | None]:
    """Return one table per config of `source`, and the Hub commit of the data (None if it is unknown).

    Raises `MissingInputError` when the data is missing, and `UsageError` when the package `datasets` is not installed,
    or when a config or a split must be named.
    """
    hub_id = str(source.location)
    datasets = _import_datasets(hub_id)
    tables: list[Table] = []
    revision = source.revision
    for config in source.configs or (None,):
        rows, split = _one_split(_load(datasets, hub_id, config, source), source)
        words = [hub_id, *filter(None, (config, split))]
        prefix = "-".join([hub_id.rpartition("/")[2], *words[1:]])
        revision = _commit_of(rows) or revision
        tables.append(Table(" ".join(words), prefix, _numbered(rows)))
    return tables, revision


def _import_datasets(hub_id: str) -> Any:
    with importing_extra("hub", f"reading {hub_id}"):
        import datasets
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _load(datasets: Any, hub_id: str, config: str | None, source: ProblemSource) -> Any:
    try:
        return datasets.load_dataset(hub_id, config, split=source.split, revision=source.revision)
    except OSError as error:
        raise MissingInputError(f"{hub_id} cannot be read: {_one_line(error)}", hint=OFFLINE_HINT) from error
    except ValueError as error:
        hint = "name them: --set data.config=NAME, --set data.split=NAME"
        raise UsageError(f"{hub_id}: {_one_line(error)}", hint=hint) from error
    except Exception as error:
        raise IgrpoError(f"{hub_id} cannot be read: {type(error).__name__}: {_one_line(error)}") from error


def _one_split(loaded: Any, source: ProblemSource) -> tuple[Any, str | None]:
    if source.split is not None:
        return loaded, source.split
    splits = list(loaded)
    if len(splits) != 1:
        raise UsageError(
            f"{source.location} has the splits {', '.join(splits)}",
            hint=f"name one: --set data.split={splits[0] if splits else 'NAME'}",
        )
    return loaded[splits[0]], splits[0]


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[RawRow]:
    yield from enumerate(rows, 1)


def _commit_of(rows: Any) -> str | None:
    """Return the commit in the file addresses that `datasets` records; it records them for cached files too."""
    addresses = rows.info.download_checksums or {}
    commits = {match[1] for match in map(COMMIT.search, addresses) if match}
    return commits.pop() if len(commits) == 1 else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
