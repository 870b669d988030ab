"""`igrpo`, and `python -m igrpo_cli`: a process of its own, which answers to signals before it imports the rest."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from igrpo_cli.cli.signals import exit_on_signal, ignore_signals
from igrpo_cli.torchrun import end_with_launcher


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line, and leave the process so that it can only end. Nothing heavy is imported before."""
    exit_on_signal()
    end_with_launcher()
    _silence_libraries()
    try:
        from igrpo_cli.cli.app import main as command_line

        command_line(arguments)
    finally:
        ignore_signals()


def _silence_libraries() -> None:
    """Keep warnings of libraries off the terminal. `python -W` and these environment variables show them."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Pydantic would read the metadata of every installed package to find plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


if __name__ == "__main__":
    main()
