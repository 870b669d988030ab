"""A few hundred damaged files for each reader; `just fuzz MINUTES` goes on for as long as one likes."""

from __future__ import annotations

import pytest
from fuzz_readers import READERS, damaged, drive, sound_files
from hypothesis import HealthCheck, given, settings


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return sound_files(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("name", READERS)
def test_only_our_own_errors_come_out(sound, tmp_path_factory, name):
    root = tmp_path_factory.mktemp("damaged")
    drive(name, root, sound[name])

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(sound[name]))
    def fuzz(data):
        drive(name, root, data)

    fuzz()
