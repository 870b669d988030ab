from __future__ import annotations

import json
import math

import pytest
from pydantic import TypeAdapter

from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.store.checksummed_json import UnknownSchemaError, UtcTime, checksummed_bytes
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import read_manifest, utc_now
from sample_run import draft_shard, identity_of

OPTIONAL = {"identity.policy", "identity.template_sha256", "identity.inputs", "counts", "outputs"}
OF_UPDATE = {"metrics", "spent", "wall_seconds"}
KEYS = [
    "identity",
    "identity.stage",
    "identity.iteration",
    "identity.shard",
    "identity.num_shards",
    "identity.config",
    "data",
    "data.schema",
    "data.schema_version",
    "data.rows",
    "data.groups",
    "data.sha256",
    "data.num_bytes",
    "sampling",
    "versions",
    "host",
    "device",
    "started",
    "finished",
    "seconds",
    "tokens",
    "gpu_seconds",
]


@pytest.fixture
def shard(tmp_path):
    return draft_shard(RunDirectory(tmp_path))[0]


def change(shard, key, value=None):
    """Put another value under a key, or remove it, under a checksum that is right."""
    facts = json.loads(shard.manifest.read_text())
    del facts["checksum"]
    *parents, last = key.split(".")
    place = facts
    for parent in parents:
        place = place[parent]
    del place[last]
    if value is not None:
        place[last] = None if value is NULL else value
    shard.manifest.write_bytes(checksummed_bytes(facts))


NULL = object()


def test_the_file_says_everything_the_design_lists(shard):
    value = json.loads(shard.manifest.read_text())
    assert next(iter(value)) == "manifest_version"
    assert list(value)[-1] == "checksum"
    found = {*value, *(f"{key}.{name}" for key in ("identity", "data") for name in value[key])}
    assert found == {*KEYS, *OPTIONAL, *OF_UPDATE, "manifest_version", "checksum"}
    assert value["data"]["schema"] == "rollouts"
    assert value["data"]["rows"] == 6
    assert value["data"]["groups"] == 2
    assert value["data"]["num_bytes"] == shard.data.stat().st_size
    assert value["identity"]["inputs"] == [{"path": "problems.parquet", "sha256": "2" * 64}]
    assert value["identity"]["config"]["draft"]["temperature"] == 1.0


def test_it_reads_back_as_it_was_written(shard):
    manifest = read_manifest(shard)
    assert manifest.identity == identity_of(shard)
    assert manifest.seconds == 9.25
    assert manifest.counts == {"correct": 4}


@pytest.mark.parametrize("key", ["manifest_version", *KEYS])
def test_a_missing_key_is_named(shard, key):
    change(shard, key)
    with pytest.raises(DamagedFileError, match=rf"shard-00003-of-00008.json lacks the key {key}$"):
        read_manifest(shard)


def test_a_missing_checksum_is_damage(shard):
    facts = json.loads(shard.manifest.read_text())
    del facts["checksum"]
    shard.manifest.write_text(f"{json.dumps(facts, indent=2)}\n")
    with pytest.raises(DamagedFileError, match=r"shard-00003-of-00008.json lacks the key checksum$"):
        read_manifest(shard)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.rows", -1),
        ("data.rows", 6.0),
        ("data.rows", True),
        ("data.rows", "6"),
        ("data.rows", 2**63),
        ("data.groups", NULL),
        ("data.schema", ""),
        ("data.sha256", "A" * 64),
        ("data.sha256", "1" * 63),
        ("data.num_bytes", NULL),
        ("data", [1]),
        ("identity.policy", "1" * 64),
        ("identity.policy", ""),
        ("identity.config", []),
        ("identity.config", {"draft": 1}),
        ("identity.inputs", {}),
        ("identity.inputs", ["a"]),
        ("identity.inputs", [{"path": "/etc/passwd", "sha256": "1" * 64}]),
        ("identity.inputs", [{"path": "../other/run", "sha256": "1" * 64}]),
        ("identity.inputs", [{"path": "a"}]),
        ("identity.inputs", [{"path": "a", "sha256": "1" * 64, "size": 1}]),
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
        ("gpu_seconds", NULL),
        ("counts", {"correct": "many"}),
        ("counts", {"correct": True}),
        ("identity.stage", "refine"),
        ("identity.iteration", 1),
        ("identity.shard", 2),
        ("identity.num_shards", 9),
    ],
)
def test_a_wrong_value_names_file_and_key(shard, key, value):
    change(shard, key, value)
    with pytest.raises(DamagedFileError, match=rf"shard-00003-of-00008\.json.*{key.removeprefix('identity.')}"):
        read_manifest(shard)


@pytest.mark.parametrize("key", ["extra", "identity.extra", "data.extra"])
def test_an_unknown_key_is_named(shard, key):
    facts = json.loads(shard.manifest.read_text())
    del facts["checksum"]
    (facts[key.partition(".")[0]] if "." in key else facts)["extra"] = 1
    shard.manifest.write_bytes(checksummed_bytes(facts))
    with pytest.raises(DamagedFileError, match=rf"shard-00003-of-00008\.json has an unknown key {key}$"):
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
    ("written", "instead"),
    [
        ('"rows": 6', '"rows": 7, "rows": 6'),
        ('"rows": 6', '"rows":  6'),
        ('"top_p": 1.0', '"top_p": 1.00'),
        ('"top_p": 1.0', '"top_p": NaN'),
        ('"host": "node-7"', '"host": "node-8"'),
        ('"seconds": 9.25', '"seconds": 9.5'),
        ('"correct": 4', '"correct": 5'),
        ('"inputs": [', '"inputs" :['),
    ],
)
def test_a_text_that_other_readers_accept_is_damage_unless_it_is_the_one_that_was_written(shard, written, instead):
    text = shard.manifest.read_text()
    assert written in text
    shard.manifest.write_text(text.replace(written, instead))
    with pytest.raises(DamagedFileError, match=r"checksum is not the SHA-256|not valid JSON"):
        read_manifest(shard)


def test_every_flipped_bit_of_a_manifest_is_damage(shard):
    content = shard.manifest.read_bytes()
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


@pytest.mark.parametrize(("version", "age"), [(4, "newer"), (2, "older")])
def test_another_version_is_not_called_damage(shard, version, age):
    text = shard.manifest.read_text().replace('"manifest_version": 3', f'"manifest_version": {version}')
    shard.manifest.write_text(text)
    with pytest.raises(UnknownSchemaError, match=f"{age} igrpo .manifest_version {version}, this igrpo reads 3"):
        read_manifest(shard)


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(MissingInputError):
        read_manifest(RunDirectory(tmp_path).shard(0, "draft", 0, 1))


def test_the_clock_writes_what_the_reader_accepts():
    now = utc_now()
    assert TypeAdapter(UtcTime).validate_python(now) == now


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_never_written(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        draft_shard(RunDirectory(tmp_path), config={"draft": {"temperature": value}})
