"""Drives the readers of configs, problems, manifests, policies and shards with damaged files for some minutes.

    python tests/faults/fuzz.py [MINUTES]

Ends with exit 1 and the smallest input found at the first error that is not one of ours; prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS))

from fuzz_readers import READERS, damaged, drive, sound_files  # noqa: E402

EXAMPLES = 500
"""Of one reader, before it is the next one's turn."""


def fuzz(minutes: float) -> Counter[str]:
    """Files tried, by reader. Raises what came out of a reader, with the smallest input that makes it."""
    tried: Counter[str] = Counter()
    ends = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        sound = sound_files(Path(folder))
        number = 0
        while time.monotonic() < ends:
            name = list(READERS)[number % len(READERS)]
            root = Path(folder, name)
            root.mkdir(exist_ok=True)
            tried[name] += _try_some(name, root, sound[name])
            number += 1
    return tried


def _try_some(name: str, root: Path, sound: bytes) -> int:
    tried = 0

    @seed(time.time_ns())
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(sound))
    def try_one(data: bytes) -> None:
        nonlocal tried
        tried += 1
        drive(name, root, data)

    try_one()
    return tried


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    started = time.monotonic()
    tried = fuzz(minutes)
    spent = round((time.monotonic() - started) / 60, 1)
    print(json.dumps({"minutes": spent, "files": tried.total(), **dict(tried)}))


if __name__ == "__main__":
    main()
