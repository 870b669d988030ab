from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time

from igrpo_cli.store.atomic import remove_stale_temporaries
from igrpo_cli.store.temporaries import is_stale, is_temporary, temporary_name


def names(directory):
    return sorted(path.name for path in directory.iterdir())


CHILD = """
import sys, time
from pathlib import Path
from igrpo_cli.store.atomic import publish_file
directory = Path(sys.argv[1])
def halfway(temporary):
    with temporary.open("wb") as file:
        file.write(b"x" * 1000); file.flush()
        print("halfway", flush=True)
        time.sleep(600)
def repeatedly(number):
    def write(temporary):
        with temporary.open("wb") as file:
            for _ in range(64):
                file.write(bytes([number % 251]) * 4096)
    return write
if sys.argv[2] == "halfway":
    publish_file(directory / "file", halfway)
for number in range(10**9):
    publish_file(directory / f"{number}", repeatedly(number))
    print(number, flush=True)
"""


def start(directory, mode):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(directory), mode], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().strip() in ("halfway", "0")
    return child


def kill(child):
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


def test_a_writer_killed_halfway_leaves_only_a_temporary_that_can_be_told_from_a_live_one(tmp_path):
    dead, alive = start(tmp_path, "halfway"), start(tmp_path, "halfway")
    try:
        before = names(tmp_path)
        assert len(before) == 2
        assert all(is_temporary(name) for name in before)
        assert remove_stale_temporaries(tmp_path) == []
        kill(dead)
        removed = remove_stale_temporaries(tmp_path)
        assert len(removed) == 1
        assert f"-{dead.pid}-" in removed[0].name
        assert names(tmp_path) == [name for name in before if f"-{alive.pid}-" in name]
    finally:
        kill(alive)


def test_kills_at_any_moment_leave_no_partial_file(tmp_path):
    rng = random.Random(0)
    for trial in range(8):
        directory = tmp_path / f"{trial}"
        directory.mkdir()
        child = start(directory, "repeatedly")
        time.sleep(rng.uniform(0, 0.08))
        kill(child)
        whole = [path for path in directory.iterdir() if not is_temporary(path.name)]
        assert whole
        for path in whole:
            assert path.read_bytes() == bytes([int(path.name) % 251]) * 4096 * 64
        remove_stale_temporaries(directory)
        assert sorted(map(int, names(directory))) == list(range(len(whole)))


def test_temporaries_of_other_hosts_are_never_removed(tmp_path):
    name = temporary_name("file")
    kernel = re.search(r"\.([0-9a-f]{12})-", name)[1]
    foreign = name.replace(kernel, "0" * 12).replace(f"-{os.getpid()}-", "-999999999-")
    (tmp_path / foreign).touch()
    assert is_temporary(foreign)
    assert not is_stale(foreign)
    assert remove_stale_temporaries(tmp_path) == []


def test_a_reused_process_id_is_not_taken_for_the_writer():
    name = temporary_name("file")
    pid, started = re.search(r"-([0-9]+)-([0-9]+)\.", name).groups()
    assert not is_stale(name)
    assert is_stale(name.replace(f"-{pid}-{started}.", f"-{pid}-{int(started) + 1}."))
    assert not is_stale("file")


def test_stale_directories_are_removed_with_their_content(tmp_path):
    name = temporary_name("update").replace(f"-{os.getpid()}-", "-999999999-")
    (tmp_path / name / "policy").mkdir(parents=True)
    assert [path.name for path in remove_stale_temporaries(tmp_path)] == [name]
    assert names(tmp_path) == []
