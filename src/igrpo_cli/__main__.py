"""`igrpo`, and `python -m igrpo_cli`: a process of its own, which answers to signals before it imports the rest."""

from __future__ import annotations

from collections.abc import Sequence

from igrpo_cli.interrupts import end_when_told, let_it_end


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line, and leave the process so that it can only end. Nothing heavy is imported before."""
    end_when_told()
    try:
        from igrpo_cli.cli import main as command_line

        command_line(arguments)
    finally:
        let_it_end()


if __name__ == "__main__":
    main()
