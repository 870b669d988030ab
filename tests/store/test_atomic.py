from __future__ import annotations

import errno
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from igrpo_cli.errors import ConflictError, IgrpoError, MissingInputError
from igrpo_cli.store import atomic
from igrpo_cli.store.atomic import (
    clear_directory,
    copy_content,
    create_marker,
    move_directory,
    publish_bytes,
    publish_directory,
    publish_file,
    remove_directory,
    remove_file,
    run_guard,
    staging_directory,
)
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.temporaries import temporary_name

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def elsewhere(tmp_path):
    """A directory on another file system than `tmp_path`, where a rename does not reach."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        if os.stat(directory).st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system here")
        yield Path(directory)


def of_a_dead_writer(final_name):
    return temporary_name(final_name).replace(f"-{os.getpid()}-", "-999999999-")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def no_hard_links(source, target, **options):
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_file_appears_whole_with_its_directories_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    assert publish_bytes(path, b"content")
    assert path.read_bytes() == b"content"
    assert names(path.parent) == ["file"]


def test_same_bytes_are_success_and_other_bytes_a_conflict(tmp_path):
    path = tmp_path / "file"
    assert publish_bytes(path, b"one") is True
    assert publish_bytes(path, b"one") is False
    with pytest.raises(ConflictError, match="exists already"):
        publish_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert publish_bytes(path, b"two", replace=True) is True
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["file"]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def write(temporary):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_file(tmp_path / "file", write)
    assert names(tmp_path) == []


def test_a_full_disk_says_which_file_and_what_to_do(tmp_path):
    def write(temporary):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(IgrpoError, match=r"cannot write .*file: No space left") as caught:
        publish_file(tmp_path / "file", write)
    assert caught.value.hint is not None
    assert names(tmp_path) == []


def test_content_is_on_disk_before_the_name_and_the_name_before_success(tmp_path, monkeypatch):
    events = []
    real_link, real_sync = os.link, os.fsync

    def link(source, target):
        events.append("link")
        real_link(source, target)

    def sync(descriptor):
        events.append("sync directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        real_sync(descriptor)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "fsync", sync)
    publish_bytes(tmp_path / "file", b"content")
    assert events == ["sync file", "link", "sync directory"]


def race(tmp_path, rounds, writers, content, patch=lambda: None):
    """Each writer publishes every file at the same moment; returns [[outcome of each writer] of each round]."""
    barrier, queue = FORK.Barrier(writers), FORK.Queue()

    def work(me):
        patch()
        for index in range(rounds):
            barrier.wait(30)
            try:
                outcome = "won" if publish_bytes(tmp_path / f"{index}", content(me)) else "same"
            except ConflictError:
                outcome = "conflict"
            queue.put((index, me, outcome))

    processes = [FORK.Process(target=work, args=(me,)) for me in range(writers)]
    for process in processes:
        process.start()
    outcomes = [[""] * writers for _ in range(rounds)]
    for _ in range(rounds * writers):
        index, me, outcome = queue.get(timeout=60)
        outcomes[index][me] = outcome
    for process in processes:
        process.join(30)
    return outcomes


def patch_away_hard_links():
    os.link = no_hard_links
    atomic._CLAIM_SECONDS = 0.001
    atomic._CLAIM_ATTEMPTS = 10_000


@pytest.mark.parametrize("patch", [lambda: None, patch_away_hard_links], ids=["link", "claim"])
def test_of_racing_writers_exactly_one_wins_and_its_bytes_stay(tmp_path, patch):
    outcomes = race(tmp_path, 40, 3, lambda me: bytes([me]) * 50_000, patch)
    for index, round_ in enumerate(outcomes):
        assert sorted(round_) == ["conflict", "conflict", "won"]
        assert (tmp_path / f"{index}").read_bytes() == bytes([round_.index("won")]) * 50_000
    assert names(tmp_path) == sorted(f"{index}" for index in range(40))


def test_racing_writers_of_the_same_bytes_all_succeed(tmp_path):
    for round_ in race(tmp_path, 20, 3, lambda me: b"same" * 1000):
        assert sorted(round_) == ["same", "same", "won"]


def test_a_link_whose_answer_got_lost_counts_as_won(tmp_path, monkeypatch):
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link)
    assert publish_bytes(tmp_path / "file", b"content") is True


def test_a_file_that_is_taken_away_while_it_is_compared_leaves_its_name_to_the_next(tmp_path, monkeypatch):
    path, real = tmp_path / "file", atomic.sha256_file
    publish_bytes(path, b"unsound")

    def sha256_file(compared):
        path.unlink(missing_ok=True)
        monkeypatch.setattr(atomic, "sha256_file", real)
        return real(compared)

    monkeypatch.setattr(atomic, "sha256_file", sha256_file)
    assert publish_bytes(path, b"sound") is True
    assert path.read_bytes() == b"sound"
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links_publishing_keeps_its_promises(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_hard_links)
    path = tmp_path / "file"
    assert publish_bytes(path, b"one") is True
    assert publish_bytes(path, b"one") is False
    with pytest.raises(ConflictError):
        publish_bytes(path, b"two")
    assert names(tmp_path) == ["file"]


def test_a_claim_left_behind_is_named_not_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_hard_links)
    monkeypatch.setattr(atomic, "_CLAIM_ATTEMPTS", 2)
    monkeypatch.setattr(atomic, "_CLAIM_SECONDS", 0)
    (tmp_path / ".file.claim").touch()
    with pytest.raises(IgrpoError, match="claimed by another task") as caught:
        publish_bytes(tmp_path / "file", b"one")
    assert str(tmp_path / ".file.claim") in caught.value.hint
    assert names(tmp_path) == [".file.claim"]


def test_a_directory_that_is_cleared_right_after_publication_is_no_failure(tmp_path, monkeypatch):
    directory, link = tmp_path / "parts", os.link

    def link_and_clear(source, target, **options):
        link(source, target, **options)
        os.unlink(source)
        clear_directory(directory, "block-*")

    monkeypatch.setattr(os, "link", link_and_clear)
    assert publish_bytes(directory / "block-000000.parquet", b"rows")
    assert not directory.exists()


def test_a_directory_appears_in_one_rename_and_never_over_another(tmp_path):
    final = tmp_path / "iteration" / "update"
    with staging_directory(final) as staged:
        (staged / "policy").mkdir()
        (staged / "policy" / "weights").write_bytes(b"1")
        assert not final.exists()
        publish_directory(staged, final)
    assert (final / "policy" / "weights").read_bytes() == b"1"
    with staging_directory(final) as staged:
        (staged / "policy").mkdir()
        with pytest.raises(ConflictError, match="update exists already"):
            publish_directory(staged, final)
        assert (staged / "policy").is_dir()
    assert (final / "policy" / "weights").read_bytes() == b"1"
    assert names(final.parent) == ["update"]


def test_a_staged_directory_goes_away_with_its_failure(tmp_path):
    def fail():
        with staging_directory(tmp_path / "update") as staged:
            (staged / "file").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == []


def test_moving_what_somebody_else_moved_is_no_failure(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    assert move_directory(tmp_path / "a", tmp_path / "x" / "b") is True
    assert move_directory(tmp_path / "a", tmp_path / "x" / "b") is False
    (tmp_path / "a").mkdir()
    with pytest.raises(ConflictError):
        move_directory(tmp_path / "a", tmp_path / "x" / "b")


def test_withdrawing_is_idempotent(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "d" / "e").mkdir(parents=True)
    for _ in range(2):
        remove_file(tmp_path / "file")
        remove_directory(tmp_path / "d")
        assert names(tmp_path) == []


def test_what_is_cleared_is_what_was_published_and_not_what_is_being_written(tmp_path):
    directory = tmp_path / "parts"
    (directory / "step_1").mkdir(parents=True)
    (directory / "step_2").touch()
    (directory / "step_1" / "weights").touch()
    (directory / of_a_dead_writer("step_3")).mkdir()
    of_the_living = directory / temporary_name("step_3")
    of_the_living.touch()
    clear_directory(directory, "step_*")
    assert names(directory) == [of_the_living.name]
    of_the_living.unlink()
    for _ in range(2):
        clear_directory(directory, "step_*")
        assert names(tmp_path) == []


def test_a_run_that_is_removed_while_a_command_works_on_it_is_not_created_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with run_guard(run):
        publish_bytes(run / "iteration_0000" / "draft" / "file", b"1")
        os.rename(run, tmp_path / "moved")
        for publish in (
            lambda: publish_bytes(run / "iteration_0000" / "draft" / "file", b"1"),
            lambda: create_marker(run / "iteration_0000" / "draft" / "claim"),
            lambda: staging_directory(run / "iteration_0000" / "update").__enter__(),
        ):
            with pytest.raises(MissingInputError, match="is gone: it was there when this command began"):
                publish()
        assert names(tmp_path) == ["moved"]
    publish_bytes(run / "file", b"1")
    assert names(run) == ["file"]


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_a_copy_stays_when_its_source_is_removed(tmp_path, monkeypatch, has_hard_links):
    if not has_hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    source = made_policy(tmp_path / "source")
    inode = (source / "weights").stat().st_ino
    (tmp_path / "copy").mkdir()
    copy_content(source, tmp_path / "copy", with_links=True)
    remove_directory(source)
    assert names(tmp_path / "copy") == ["code", "link", "weights"]
    assert (tmp_path / "copy" / "link").read_bytes() == b"1"
    assert ((tmp_path / "copy" / "weights").stat().st_ino == inode) == has_hard_links


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_of_a_link_only_the_link_is_withdrawn(tmp_path):
    (tmp_path / "archive" / "policy").mkdir(parents=True)
    (tmp_path / "archive" / "policy" / "weights").write_bytes(b"1")
    (tmp_path / "place").symlink_to("archive/policy")
    (tmp_path / "to nothing").symlink_to("nowhere")
    remove_directory(tmp_path / "place")
    remove_directory(tmp_path / "to nothing")
    assert names(tmp_path) == ["archive"]
    assert (tmp_path / "archive" / "policy" / "weights").read_bytes() == b"1"


def test_temporaries_of_the_dead_that_are_links_go_without_what_they_point_to(tmp_path):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "weights").write_bytes(b"1")
    (tmp_path / of_a_dead_writer("policy")).symlink_to("archive")
    publish_bytes(tmp_path / "file", b"content", replace=True)
    assert names(tmp_path) == ["archive", "file"]
    assert names(tmp_path / "archive") == ["weights"]


def test_whoever_replaces_a_file_or_fills_a_directory_clears_away_what_the_dead_left_there(tmp_path):
    (tmp_path / of_a_dead_writer("report.html")).write_bytes(b"half")
    of_the_living = tmp_path / temporary_name("report.html")
    of_the_living.write_bytes(b"half")
    publish_bytes(tmp_path / "report.html", b"whole", replace=True)
    assert names(tmp_path) == sorted([of_the_living.name, "report.html"])
    of_the_living.unlink()
    (tmp_path / of_a_dead_writer("update") / "policy").mkdir(parents=True)
    with staging_directory(tmp_path / "update"):
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == ["report.html"]


def made_policy(directory):
    (directory / "code").mkdir(parents=True)
    (directory / "code" / "model.py").write_bytes(b"2")
    (directory / "weights").write_bytes(b"1")
    (directory / "link").symlink_to("weights")
    return directory


def test_a_directory_is_moved_to_another_file_system(tmp_path, elsewhere):
    source, final = made_policy(tmp_path / "update" / "policy"), elsewhere / "policies" / "0001"
    assert move_directory(source, final) is True
    assert names(final) == ["code", "link", "weights"]
    assert os.readlink(final / "link") == "weights"
    assert (final / "code" / "model.py").read_bytes() == b"2"
    assert names(final.parent) == ["0001"]
    assert names(tmp_path / "update") == []
    assert move_directory(source, final) is False


def test_on_another_file_system_nothing_is_moved_over_what_is_there(tmp_path, elsewhere):
    source = made_policy(tmp_path / "policy")
    (elsewhere / "0001").mkdir()
    (elsewhere / "0001" / "theirs").touch()
    with pytest.raises(ConflictError, match="0001 exists already"):
        move_directory(source, elsewhere / "0001")
    assert names(elsewhere / "0001") == ["theirs"]
    assert names(elsewhere) == ["0001"]
    assert names(source) == ["code", "link", "weights"]


def test_what_somebody_else_moves_while_it_is_copied_is_no_failure(tmp_path, elsewhere, monkeypatch):
    source = made_policy(tmp_path / "policy")

    def others_finish(path, copy, *, follow_symlinks):
        remove_directory(source)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(atomic.shutil, "copyfile", others_finish)
    assert move_directory(source, elsewhere / "0001") is False
    assert names(elsewhere) == []


def test_a_full_disk_elsewhere_keeps_the_directory_where_it_is(tmp_path, elsewhere, monkeypatch):
    source = made_policy(tmp_path / "policy")

    def full(path, copy, *, follow_symlinks):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.shutil, "copyfile", full)
    with pytest.raises(IgrpoError, match="No space left") as caught:
        move_directory(source, elsewhere / "0001")
    assert caught.value.hint is not None
    assert names(elsewhere) == []
    assert names(source) == ["code", "link", "weights"]


def test_a_published_directory_is_readable_for_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        staged = tmp_path / "staged"
        staged.mkdir()
        for name, mode in (("weights", 0o600), ("script", 0o740)):
            staged.joinpath(name).write_text(name)
            staged.joinpath(name).chmod(mode)
        shared = tmp_path / "shared"
        shared.write_text("of another run")
        shared.chmod(0o600)
        os.link(shared, staged / "shared")
        publish_directory(staged, tmp_path / "final")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.joinpath("final").iterdir()}
    assert modes == {"weights": 0o640, "script": 0o740, "shared": 0o600}
