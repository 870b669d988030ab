"""A run whose texts try to be more than text."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from igrpo_cli.records import Rollout
from igrpo_cli.store.completion import commit_shard
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import read_records, write_rows

HOSTILE = (
    "</pre></bdi><script>document.title = 'hijacked'</script><img src=x onerror=\"document.title='hijacked'\">",
    "\x1b[2J\x1b]0;title\x07 red \x1b[31m",
    "right to left \u202e gnp.exe \u2066 isolated",
    "lone \ud800 surrogate and NUL \x00",
    "]]></style><style>body{display:none}</style>{{ 7 * 7 }} &lt;b&gt;",
    "w" * 100_000,
)
"""One for each of the first completions; those after it start over."""


def make_hostile(finished: Path, copy: Path) -> Path:
    """A copy of a finished run in which completions, answers and the last problem's prompt are HOSTILE."""
    shutil.copytree(finished, copy)
    run = RunDirectory(copy)
    for stage in ("draft", "refine"):
        path = run.shard(0, stage, 0, 1)
        manifest = read_manifest(path)
        texts = [HOSTILE[place % len(HOSTILE)] for place in range(manifest.data.rows)]
        rows = [
            replace(row, completion=text, extracted_answer=text[:500], prompt=text)
            for row, text in zip(read_records(path.data, Rollout), texts, strict=True)
        ]
        commit_shard(
            path,
            manifest.identity,
            lambda again, path=path, rows=rows: write_rows(path.data, ROLLOUTS, [rows], replace=again),
            lambda data, manifest=manifest: replace(manifest, data=data),
            overwrite=True,
        )
    return copy
