"""Values that the shell completes with the tab key. Each function imports what it reads only when it is called."""

import os
import shlex
from pathlib import Path
from typing import get_args

COMPLETED_LINE = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
"""The variables in which bash, and the other shells, give the line that is completed."""


def completed_words() -> list[str]:
    """Return the words of the line that a shell completes, without `igrpo`; none where this is another call."""
    if "_IGRPO_COMPLETE" not in os.environ:
        return []
    line = next((os.environ[name] for name in COMPLETED_LINE if name in os.environ), "")
    try:
        return shlex.split(line)[1:]
    except ValueError:  # a quote that is still open
        return line.split()[1:]


def presets() -> list[str]:
    """Return the values of `--preset`."""
    from igrpo_cli.config.files import preset_names

    return preset_names()


def settings() -> list[str]:
    """Return `section.key=` for each setting."""
    from igrpo_cli.config import RunConfig
    from igrpo_cli.config.sections import Section

    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return [
        f"{name}.{key}="
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, Section)
        for key in section.model_fields
    ]


def engines() -> list[str]:
    """Return the values of `--engine`."""
    from igrpo_cli.config.engine import EngineSection

    return list(get_args(EngineSection.model_fields["name"].annotation))


def trackers() -> list[str]:
    """Return the values of `--report-to`."""
    from igrpo_cli.config.sections import LogSection

    (names,) = get_args(LogSection.model_fields["report_to"].annotation)
    return list(get_args(names))


def benches() -> list[str]:
    """Return the benchmarks that have a name. The shell also completes files."""
    from igrpo_cli.problems.sources import BENCHES, PACKAGED_SETS

    return [*PACKAGED_SETS, *BENCHES]


def studies() -> list[str]:
    """Return the names of the packaged studies."""
    from igrpo_cli.problems.sources import packaged_studies

    return list(packaged_studies())


def arms() -> list[str]:
    """Return the arms of the study that the line names; none where it cannot be read."""
    import tomllib

    from igrpo_cli.problems.sources import packaged_studies

    packaged = packaged_studies()
    for word in completed_words()[1:]:
        path = packaged.get(word, Path(word))
        if path.suffix == ".toml" and path.is_file():
            try:
                return list(tomllib.loads(path.read_text("utf-8"))["arms"])
            except (OSError, ValueError, KeyError):
                return []
    return []
