"""The policies of a run: which are there, and whether each was made from the one before it."""

from __future__ import annotations

from dataclasses import dataclass

from igrpo_cli.errors import IgrpoError
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.lineage import unpromoted_policies
from igrpo_cli.store.policies import Policy, read_policy


@dataclass(frozen=True, slots=True)
class PolicyChain:
    """Policy k + 1 is what the update of iteration k makes of policy k."""

    policies: dict[int, Policy]
    """Those whose records can be read; their weights are not looked at."""
    faults: list[str]
    """What is wrong with the others, or with what they were made from."""
    waiting: list[int]
    """Policies that still lie in the update that made them; the next command moves them."""


def read_policy_chain(run: RunDirectory) -> PolicyChain:
    """All policies of a run. One that was removed to save room is no fault."""
    chain = PolicyChain({}, [], [])
    present = run.policy_iterations()
    for iteration in present:
        try:
            policy = chain.policies[iteration] = read_policy(run, iteration)
        except IgrpoError as error:
            chain.faults.append(error.message)
            continue
        before = chain.policies.get(iteration - 1)
        if before is not None and policy.parent != before.id:
            chain.faults.append(f"{run.policy(iteration)} was not made from policy {iteration - 1}")
    chain.waiting.extend(unpromoted_policies(run))
    return chain
