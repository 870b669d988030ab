from __future__ import annotations

import pyarrow as pa
import pytest

from igrpo_cli.errors import IgrpoError
from igrpo_cli.store.schema import ADVANTAGES, METRICS, PROBLEMS, ROLLOUTS, SELECTIONS, with_reward_parts

CHOICE = "dictionary<values=string, indices=int8, ordered=0>"
INTS, FLOATS = "list<element: int32 not null>", "list<element: float not null>"
GOLDEN = {
    "rollouts": f"""
        iteration int32 | stage {CHOICE} | problem_id string | group_id int32 | sample_id int16
        draft_sample_id int16 null | prompt string | prompt_ids {INTS} | completion string | completion_ids {INTS}
        sampling_logprobs {FLOATS} | finish_reason {CHOICE} | seed int64 | reward float | reward_accuracy float
        reward_format float | verdict {CHOICE} | extracted_answer string null""",
    "selections": f"""
        iteration int32 | group_id int32 | problem_id string | draft_sample_id int16 | draft string
        draft_reward float | num_tied int16 | group_reward_mean float | group_reward_std float | action {CHOICE}
        draft_group_id int32 | draft_answer string | num_refinements int16 null | draft_verdict {CHOICE} null""",
    "metrics": "iteration int32 | step int32 | name string | value double",
    "problems": """
        problem_id string | problem string | answer string | source string | earlier_turns string | prefill string
        system_prompt string | columns string""",
    "advantages": f"""
        iteration int32 | step int32 | stage {CHOICE} | problem_id string | group_id int32 | sample_id int16
        reward float | advantage float | num_tokens int32 | old_logprob_mean float | policy_entropy_mean float""",
}


@pytest.mark.parametrize("schema", [ROLLOUTS, SELECTIONS, METRICS, PROBLEMS, ADVANTAGES])
def test_columns_types_and_nullability_are_those_agreed_upon(schema):
    name = schema.metadata[b"igrpo.schema"].decode()
    columns = [f"{field.name} {field.type}" + (" null" if field.nullable else "") for field in schema]
    assert columns == [
        column.strip() for line in GOLDEN[name].split("\n") for column in line.split("|") if column.strip()
    ]
    versions = {"selections": b"3", "problems": b"3"}
    assert schema.metadata[b"igrpo.schema_version"] == versions.get(name, b"1")


def test_further_reward_parts_stand_sorted_after_the_format():
    schema = with_reward_parts(ROLLOUTS, ["overlong", "judge", "format"])
    place = schema.get_field_index("reward_format")
    assert schema.names[place + 1 : place + 4] == ["reward_judge", "reward_overlong", "verdict"]
    assert schema.field("reward_judge") == pa.field("reward_judge", pa.float32(), nullable=False)
    assert with_reward_parts(ROLLOUTS) == ROLLOUTS


@pytest.mark.parametrize("name", ["", "Judge", "a b", "a-b", "1"])
def test_a_part_that_cannot_be_a_column_is_refused(name):
    with pytest.raises(IgrpoError, match="cannot be a column"):
        with_reward_parts(ROLLOUTS, [name])
