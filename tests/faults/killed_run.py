"""`igrpo run` killed at random, over and over; then a twin does as much undisturbed, and both must be the same.

    python tests/faults/killed_run.py [MINUTES]

SIGKILL comes 20 to 60 seconds after each start, in a loop. Then all files of both are compared, of manifests what does
not tell of hours and places. Prints one line of JSON; exit code 1 where anything differs or `igrpo verify` complains.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / room) for room in ("", "faults")]

from forked import everything_below

from command_line import ONE_THREAD, sets
from igrpo_cli.store.layout import RunDirectory

SETTINGS = ("run.num_iterations=100000", "data.problems_per_iteration=16", "run.num_shards=2", "reward.num_workers=1")
SECONDS_ALIVE = (20.0, 60.0)


def igrpo(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "igrpo_cli", *map(str, arguments), "-q"]
    return subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL)


def finish(*arguments: object) -> int:
    return igrpo(*arguments).wait()


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    with tempfile.TemporaryDirectory() as directory:
        killed, undisturbed = Path(directory, "killed"), Path(directory, "undisturbed")
        for path in (killed, undisturbed):
            if finish("init", path, "--preset", "arithmetic", *sets(*SETTINGS)):
                return 1
        kills = kill_and_restart(killed, minutes)
        survived = num_finished(killed)
        for path in (killed, undisturbed):
            finish("run", path, "--iterations", survived + 1 - num_finished(path))
        one, other = everything_below(killed), everything_below(undisturbed)
        differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
        sound = {path.name: finish("verify", path) == 0 for path in (killed, undisturbed)}
        compared = num_finished(undisturbed)
    counts = {"iterations": survived, "compared_iterations": compared, "files": len(other), "differing": differing}
    print(json.dumps({"minutes": minutes, "kills": kills, **counts, "sound": sound}))
    return 1 if differing or not all(sound.values()) else 0


def kill_and_restart(path: Path, minutes: float) -> int:
    """Kills until the time is over; raises CalledProcessError for a run that ends by itself."""
    chance, kills, ends = random.Random(0), 0, time.monotonic() + 60 * minutes
    while time.monotonic() < ends:
        process = igrpo("run", path)
        try:
            code = process.wait(chance.uniform(*SECONDS_ALIVE))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            raise subprocess.CalledProcessError(code, "igrpo run")
        print(f"{kills} kills, {num_finished(path)} iterations", file=sys.stderr)
    return kills


def num_finished(path: Path) -> int:
    run = RunDirectory(path)
    return sum(run.update(number).manifest.exists() for number in run.iterations())


if __name__ == "__main__":
    sys.exit(main())
