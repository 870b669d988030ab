"""`igrpo`, and `python -m igrpo_cli`: a process of its own, which answers to signals before it imports the rest."""

from __future__ import annotations

from collections.abc import Sequence

from igrpo_cli.cli.signals import exit_on_signal, ignore_signals


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line, and leave the process so that it can only end. Nothing heavy is imported before."""
    exit_on_signal()
    try:
        from igrpo_cli.cli.app import main as command_line

        command_line(arguments)
    finally:
        ignore_signals()


if __name__ == "__main__":
    main()
