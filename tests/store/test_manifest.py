from __future__ import annotations

import json
import math

import pytest
from sample_run import draft_shard, identity_of

from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.store.checksummed_json import UTC_TIME, UnknownSchemaError
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import read_manifest, utc_now

KEYS = [
    "manifest_version",
    "schema",
    "schema_version",
    "stage",
    "iteration",
    "shard",
    "num_shards",
    "rows",
    "groups",
    "sha256",
    "bytes",
    "inputs",
    "outputs",
    "config",
    "config_sha256",
    "policy",
    "template_sha256",
    "sampling",
    "versions",
    "host",
    "device",
    "started",
    "finished",
    "seconds",
    "tokens",
    "gpu_seconds",
    "counts",
]


@pytest.fixture
def shard(tmp_path):
    return draft_shard(RunDirectory(tmp_path))[0]


def rewrite(shard, changes):
    value = json.loads(shard.manifest.read_text())
    value.update(changes)
    shard.manifest.write_text(json.dumps(value))


def test_the_file_says_everything_the_design_lists(shard):
    value = json.loads(shard.manifest.read_text())
    assert set(value) == {*KEYS, "manifest_sha256"}
    assert value["schema"] == "rollouts"
    assert value["rows"] == 6
    assert value["groups"] == 2
    assert value["bytes"] == shard.data.stat().st_size
    assert value["inputs"] == [{"path": "problems.parquet", "sha256": "2" * 64}]
    assert value["config"]["draft"]["temperature"] == 1.0


def test_it_reads_back_as_it_was_written(shard):
    manifest = read_manifest(shard)
    assert manifest.identity == identity_of(shard)
    assert manifest.seconds == 9.25
    assert manifest.counts == {"correct": 4}


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(shard, key):
    value = json.loads(shard.manifest.read_text())
    del value[key]
    shard.manifest.write_text(json.dumps(value))
    with pytest.raises(DamagedFileError, match=rf"shard-00003-of-00008.json lacks the key {key}$"):
        read_manifest(shard)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", -1),
        ("rows", 6.0),
        ("rows", True),
        ("rows", "6"),
        ("rows", 2**63),
        ("groups", None),
        ("schema", ""),
        ("sha256", "A" * 64),
        ("sha256", "1" * 63),
        ("bytes", None),
        ("policy", "1" * 64),
        ("policy", ""),
        ("config", []),
        ("config", {"draft": 1}),
        ("config_sha256", "0" * 64),
        ("inputs", {}),
        ("inputs", ["a"]),
        ("inputs", [{"path": "/etc/passwd", "sha256": "1" * 64}]),
        ("inputs", [{"path": "../other/run", "sha256": "1" * 64}]),
        ("inputs", [{"path": "a"}]),
        ("inputs", [{"path": "a", "sha256": "1" * 64, "size": 1}]),
        ("outputs", [{"path": "a", "sha256": 1}]),
        ("sampling", []),
        ("versions", {"torch": 2}),
        ("host", ""),
        ("host", "a\nb"),
        ("started", "2026-08-01T10:00:00"),
        ("started", "2026-08-01T10:00:00+02:00"),
        ("finished", 1785578400),
        ("finished", "yesterday"),
        ("seconds", -0.5),
        ("tokens", 1.5),
        ("gpu_seconds", None),
        ("counts", {"correct": "many"}),
        ("counts", {"correct": True}),
        ("stage", "refine"),
        ("iteration", 1),
        ("shard", 2),
        ("num_shards", 9),
        ("extra", 1),
    ],
)
def test_a_wrong_value_names_file_and_key(shard, key, value):
    rewrite(shard, {key: value})
    with pytest.raises(DamagedFileError, match=rf"shard-00003-of-00008\.json.*{key}"):
        read_manifest(shard)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"rows": NaN}',
        '{"rows": Infinity}',
        '{"rows": 1, "rows": 2}',
        '{"config": {"a": 1, "a": 2}}',
        "[" * 100_000,
        '{"rows": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_json_of_ours_is_damaged(shard, text):
    shard.manifest.write_text(text)
    with pytest.raises(DamagedFileError, match=r"shard-00003-of-00008\.json"):
        read_manifest(shard)


@pytest.mark.parametrize(
    ("written", "instead", "told"),
    [('"rows": 6', '"rows": 7, "rows": 6', "rows stands twice"), ('"top_p": 1.0', '"top_p": NaN', "NaN is no JSON")],
)
def test_what_other_readers_let_pass_is_damage(shard, written, instead, told):
    text = shard.manifest.read_text()
    assert written in text
    shard.manifest.write_text(text.replace(written, instead))
    with pytest.raises(DamagedFileError, match=told):
        read_manifest(shard)


@pytest.mark.parametrize(("key", "value"), [("host", "node-8"), ("seconds", 9.5), ("counts", {}), ("policy", None)])
def test_a_value_that_could_be_another_one_is_held_by_the_hash_of_all(shard, key, value):
    rewrite(shard, {key: value})
    with pytest.raises(DamagedFileError, match="manifest_sha256 is not the hash of the other keys"):
        read_manifest(shard)


def test_every_flipped_bit_of_a_manifest_is_damage(shard):
    content = shard.manifest.read_bytes().replace(b"9.25,", b"1e-06,")
    for bit in range(0, len(content) * 8, 5):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        shard.manifest.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            read_manifest(shard)


def test_bytes_that_are_no_text_are_damaged(shard):
    shard.manifest.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DamagedFileError):
        read_manifest(shard)


def test_every_truncation_is_damaged(shard):
    content = shard.manifest.read_bytes()
    for length in range(0, len(content) - 2, 7):
        shard.manifest.write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            read_manifest(shard)


@pytest.mark.parametrize(("version", "age"), [(2, "newer"), (0, "older")])
def test_another_version_is_not_called_damage(shard, version, age):
    rewrite(shard, {"manifest_version": version})
    with pytest.raises(UnknownSchemaError, match=f"{age} igrpo .manifest_version {version}, this igrpo reads 1"):
        read_manifest(shard)


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(MissingInputError):
        read_manifest(RunDirectory(tmp_path).shard(0, "draft", 0, 1))


def test_the_clock_writes_what_the_reader_accepts():
    assert UTC_TIME.holds(utc_now())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_never_written(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        draft_shard(RunDirectory(tmp_path), config={"draft": {"temperature": value}})
