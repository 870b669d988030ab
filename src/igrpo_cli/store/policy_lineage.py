"""Each policy is made from the one before it: whether that is still so, and which is the newest."""

from __future__ import annotations

from collections.abc import Collection

from igrpo_cli.errors import ConflictError, MissingInputError
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.policies import Policy, read_policy


def require_lineage(run: RunDirectory, policy: Policy, known: Collection[str] = ()) -> None:
    """Raises ConflictError where one of the policies that `policy` comes from was made anew since.

    Those that were removed to save room are passed over. Of those whose ids are `known` no more is asked: a long run
    would read all policies again for each of its stages.
    """
    after: Policy | None = policy
    for iteration in reversed(range(policy.iteration)):
        if after is not None and after.id in known:
            return
        try:
            before = read_policy(run, iteration)
        except MissingInputError:
            after = None
            continue
        if after is not None and after.made_from != before.id:
            made_from = "no policy" if after.made_from is None else f"{after.made_from[:15]}…"
            raise ConflictError(
                f"{after.directory} was not made from the policy that is in {before.directory} now "
                f"({made_from} then, {before.id[:15]}… now)",
                hint=f"{run.update(iteration).shard.overwrite_command} makes it anew; then what was made from it",
            )
        after = before


def waiting_policies(run: RunDirectory) -> list[int]:
    """Policies that still lie in the update that made them, because a command was killed before it moved them."""
    return [iteration + 1 for iteration in run.iterations() if run.update(iteration).policy.is_dir()]


def newest_policy(run: RunDirectory) -> int:
    """The number of the newest policy, whether it is in its place yet or waits in its update; 0 where there is none."""
    return max([*run.policy_iterations(), *waiting_policies(run)], default=0)
