from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.config.blocks import block_range
from igrpo_cli.errors import UsageError
from igrpo_cli.store.layout import RunDirectory, format_shards, parse_shards, shards_in

RUN = RunDirectory(Path("runs/first"))


def test_names_on_disk():
    shard = RUN.shard(0, "draft", 3, 8)
    update = RUN.update(12)
    assert [
        str(path)
        for path in (
            RUN.run_toml,
            RUN.problems().data,
            RUN.problems().manifest,
            RUN.policy(3),
            shard.data,
            shard.manifest,
            shard.parts,
            update.metrics,
            update.advantages,
            update.optimizer,
            update.manifest,
            update.policy,
            RUN.eval_shard("aime24", 3, 0, 1).data,
            RUN.eval_shard("aime24", 3, 0, 1, conditioned="each").manifest,
            RUN.eval_shard("aime24", "SmolLM2", 0, 1, conditioned="best").manifest,
            RUN.eval_summary("aime24", "SmolLM2-135M"),
            RUN.eval_problems("aime24").data,
        )
    ] == [
        "runs/first/run.toml",
        "runs/first/problems.parquet",
        "runs/first/problems.json",
        "runs/first/policies/0003",
        "runs/first/iteration_0000/draft/shard-00003-of-00008.parquet",
        "runs/first/iteration_0000/draft/shard-00003-of-00008.json",
        "runs/first/iteration_0000/draft/.parts/shard-00003-of-00008",
        "runs/first/iteration_0012/update/metrics.parquet",
        "runs/first/iteration_0012/update/advantages.parquet",
        "runs/first/iteration_0012/update/optimizer",
        "runs/first/iteration_0012/update/manifest.json",
        "runs/first/iteration_0012/update/policy",
        "runs/first/eval/aime24/policy_0003/shard-00000-of-00001.parquet",
        "runs/first/eval/aime24/policy_0003_conditioned/shard-00000-of-00001.json",
        "runs/first/eval/aime24/SmolLM2_conditioned_best/shard-00000-of-00001.json",
        "runs/first/eval/aime24/SmolLM2-135M/summary.json",
        "runs/first/eval/aime24/problems.parquet",
    ]
    assert shard.relative == "iteration_0000/draft/shard-00003-of-00008.parquet"


@pytest.mark.parametrize(
    ("path", "name", "command"),
    [
        (RUN.shard(2, "draft", 3, 8), "draft shard 3 of 8", "igrpo draft runs/first --iteration 2 --shard 3"),
        (RUN.update(2).shard, "the update of iteration 2", "igrpo update runs/first --iteration 2"),
        (
            RUN.eval_shard("amc23", 1, 0, 2),
            "eval shard 0 of 2",
            "igrpo eval runs/first --bench amc23 --iteration 1 --shard 0",
        ),
        (
            RUN.eval_shard("amc23", "SmolLM2", 1, 2, conditioned="majority"),
            "eval shard 1 of 2",
            "igrpo eval --model MODEL --bench amc23 --with-draft --set eval.selection=majority --shard 1"
            " --output runs/first",
        ),
        (RUN.problems(), "the problems file", "igrpo init runs/first --config runs/first/run.toml"),
    ],
)
def test_each_file_knows_its_name_and_the_command_that_makes_it(path, name, command):
    assert (path.name, path.command) == (name, command)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "-x"])
def test_a_benchmark_cannot_lead_out_of_its_folder(name):
    with pytest.raises(UsageError):
        RUN.eval(name, 0)
    with pytest.raises(UsageError):
        RUN.eval("aime24", name)


def test_only_directories_of_iterations_count(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.iterations() == run.policy_iterations() == []
    for name in ("iteration_0002", "iteration_0000", "iteration_10000", "iteration_1", "iteration_0003.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "iteration_0007").touch()
    (tmp_path / "policies" / "0001").mkdir(parents=True)
    assert run.iterations() == [0, 2, 10000]
    assert run.policy_iterations() == [1]


def test_what_a_stage_directory_holds(tmp_path):
    for name in ("shard-00001-of-00002.parquet", "shard-00000-of-00002.json", "shard-00000-of-00002.parquet", "x.json"):
        (tmp_path / name).touch()
    assert shards_in(tmp_path) == {(0, 2): {"json", "parquet"}, (1, 2): {"parquet"}}
    assert shards_in(tmp_path / "none") == {}


def test_a_shard_outside_of_its_run_is_a_usage_error():
    with pytest.raises(UsageError, match="shard 8 of 8 does not exist"):
        RUN.shard(0, "draft", 8, 8)


@given(num_blocks=st.integers(0, 200), num_shards=st.integers(1, 50))
def test_shards_partition_the_blocks_evenly_and_in_order(num_blocks, num_shards):
    ranges = [block_range(num_blocks, shard, num_shards) for shard in range(num_shards)]
    assert [block for blocks in ranges for block in blocks] == list(range(num_blocks))
    sizes = [len(blocks) for blocks in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_shard_lists():
    assert parse_shards("3,7,12-15", 16) == (3, 7, 12, 13, 14, 15)
    assert parse_shards(" 2 , 0-1,1", 3) == (0, 1, 2)
    assert format_shards([15, 3, 7, 12, 13, 14, 3]) == "3,7,12-15"
    assert format_shards([]) == ""


@given(st.sets(st.integers(0, 40), min_size=1))
def test_a_formatted_list_parses_to_itself(shards):
    assert parse_shards(format_shards(shards), 41) == tuple(sorted(shards))


@given(st.text(max_size=12))
def test_no_text_breaks_the_parser(text):
    try:
        shards = parse_shards(text, 5)
    except UsageError:
        return
    assert shards
    assert set(shards) <= set(range(5))


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "a", "-1", "1-", "3-1", "1.0", "0x1", "²", "٣", "1--2", "0-99999999999999"]
)
def test_nonsense_is_refused(text):
    with pytest.raises(UsageError):
        parse_shards(text, 5)


def test_a_shard_too_many_is_named():
    with pytest.raises(UsageError, match="shard 8 of 8 does not exist") as caught:
        parse_shards("0-8", 8)
    assert "counted from 0" in caught.value.hint
