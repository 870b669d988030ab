"""Seeds follow from identities: stable over releases, distinct, in range."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.seeds import derive_seed

parts = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4)


def test_the_derivation_never_changes_between_releases():
    # A changed value would make every published run irreproducible.
    assert derive_seed(0, "draft", 0, 0, 0) == 7389917066861391921


@given(st.integers(min_value=0), parts)
def test_a_seed_fits_a_signed_64_bit_column(run_seed, identity):
    assert 0 <= derive_seed(run_seed, *identity) < 2**63


@given(parts, parts)
def test_different_identities_have_different_seeds(one, other):
    same = [(type(x), x) for x in one] == [(type(x), x) for x in other]
    assert (derive_seed(7, *one) == derive_seed(7, *other)) == same
