from __future__ import annotations

from pathlib import Path

import pytest

from igrpo_cli.config.files import parse_override
from igrpo_cli.errors import ConflictError
from igrpo_cli.store.conflicts import Difference, identity_differences, require_same
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import FileHash, Identity
from sample_run import identity_of

SHARD = RunDirectory(Path("run")).shard(0, "draft", 3, 8)
SELECT = RunDirectory(Path("run")).shard(0, "select", 0, 1)
DRAFTS = "iteration_0000/draft/shard-00000-of-00001.parquet"


def message(on_disk: Identity, now: Identity) -> tuple[str, str]:
    with pytest.raises(ConflictError) as caught:
        require_same(on_disk, now, "igrpo draft --iteration 0 --shard 3 --overwrite")
    return caught.value.message, caught.value.hint or ""


def test_a_changed_setting_is_named_with_both_values():
    on_disk = identity_of(SHARD)
    now = identity_of(SHARD, config={**on_disk.config, "draft": {"temperature": 0.8, "top_k": 0}})
    assert identity_differences(on_disk, now) == [Difference("config.draft.temperature", 1.0, 0.8)]
    assert message(on_disk, now) == (
        "draft shard 3 of 8 was made with another config (draft.temperature 1.0 on disk, 0.8 now)",
        "`igrpo draft --iteration 0 --shard 3 --overwrite` makes it again; to keep it, "
        "add --set 'draft.temperature=1.0'",
    )


def test_an_unset_key_that_an_earlier_version_did_not_have_is_no_difference():
    on_disk = identity_of(SHARD)
    now = identity_of(SHARD, config={**on_disk.config, "draft": {**on_disk.config["draft"], "min_p": None}})
    assert identity_differences(on_disk, now) == []


def test_a_table_is_shown_as_it_is_typed():
    table = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": None}
    on_disk = identity_of(SHARD, config={"engine": {"speculative_config": table}})
    hint = message(on_disk, identity_of(SHARD, config={"engine": {"speculative_config": None}}))[1]
    typed = hint.partition("--set '")[2].removesuffix("'")
    assert parse_override(typed) == (
        "engine",
        "speculative_config",
        {key: value for key, value in table.items() if value is not None},
    )


def test_changed_inputs_are_named_with_both_hashes():
    on_disk = identity_of(SELECT, inputs=(FileHash(DRAFTS, "ab12" * 16),))
    now = identity_of(SELECT, inputs=(FileHash(DRAFTS, "cd34" * 16),))
    assert message(on_disk, now)[0] == (
        f"select shard 0 of 1 was made from another {DRAFTS} (sha256 ab12ab12… on disk, cd34cd34… now)"
    )


def test_inputs_that_came_or_went_are_named():
    one, two = FileHash("a.parquet", "1" * 64), FileHash("b.parquet", "2" * 64)
    both, single = identity_of(SELECT, inputs=(two, one)), identity_of(SELECT, inputs=(one,))
    assert message(both, single)[0] == "select shard 0 of 1 was made with b.parquet, which is no input now"
    assert message(single, both)[0] == "select shard 0 of 1 was made without b.parquet, which is an input now"


def test_another_policy_or_template_is_named():
    on_disk = identity_of(SHARD, policy="sha256:" + "a" * 64)
    assert message(on_disk, identity_of(SHARD, policy="sha256:" + "b" * 64))[0] == (
        "draft shard 3 of 8 was made from another policy (sha256 aaaaaaaa… on disk, sha256 bbbbbbbb… now)"
    )
    assert "another chat template" in message(identity_of(SHARD), identity_of(SHARD, template_sha256=None))[0]


def test_many_differences_are_counted_not_poured_out():
    on_disk = identity_of(SHARD, config={"draft": {f"k{i}": 0 for i in range(9)}})
    now = identity_of(SHARD, config={"draft": {f"k{i}": 1 for i in range(9)}})
    text = message(on_disk, now)[0]
    assert "draft.k2 0 on disk, 1 now; and 6 more" in text
    assert "k3" not in text


def test_long_values_that_differ_late_are_still_told_apart():
    one, two = "x" * 500, "x" * 499 + "y"
    on_disk = identity_of(SHARD, config={"prompts": {"system_prompt": one}})
    now = identity_of(SHARD, config={"prompts": {"system_prompt": two}})
    told = message(on_disk, now)[0]
    left, right = told.split(" on disk, ")
    assert len(told) < 250
    assert left.rpartition("(sha256 ")[2] != right.rpartition("(sha256 ")[2].removesuffix(" now)")


def test_what_means_the_same_is_the_same():
    listed = identity_of(SHARD, config={"reward": {"weights": [1.0, 2.0], "judge": None}})
    tupled = identity_of(SHARD, config={"reward": {"weights": (1.0, 2.0), "judge": None}})
    assert identity_differences(listed, tupled) == []
    assert listed.sha256() == tupled.sha256()
    one, two = FileHash("a", "1" * 64), FileHash("b", "2" * 64)
    assert identity_of(SHARD, inputs=(one, two)).sha256() == identity_of(SHARD, inputs=(two, one)).sha256()


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": 4},
        {"num_shards": 9},
        {"iteration": 1},
        {"stage": "refine"},
        {"policy": None},
        {"template_sha256": "3" * 64},
        {"inputs": ()},
        {"config": {"draft": {"temperature": 1, "top_k": 0}, "prompts": {"system_prompt": ""}}},
    ],
)
def test_every_fact_counts(changes):
    base, other = identity_of(SHARD), identity_of(SHARD, **changes)
    assert len(identity_differences(base, other)) == 1
    assert base.sha256() != other.sha256()
    with pytest.raises(ConflictError):
        require_same(base, other, "igrpo draft --overwrite")


def test_the_hash_does_not_drift():
    assert Identity("draft", 0, 0, 1, {"draft": {"temperature": 1.0}}).sha256() == (
        "62e20d773f164dd7f212f80899910a391b874d3e9001e94f60a3e8fbdd0f916a"
    )
