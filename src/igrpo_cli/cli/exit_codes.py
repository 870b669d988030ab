"""From how a command ended to its exit code, with the error in the project's own shape."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import typer
from typer.core import TyperGroup

from igrpo_cli.cli.signals import CtrlC, clean_interrupts
from igrpo_cli.cli.streams import prepare_streams
from igrpo_cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, IgrpoError, UsageError
from igrpo_cli.ui.console import print_error

# typer does not export the root of its errors, of which BadParameter is one.
USAGE_ERROR: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

LESS_MEMORY = "give the command more, or lower engine.max_num_seqs (sampling), update.max_tokens_per_batch (update)"


class Commands(TyperGroup):
    """The commands; a Ctrl-C in one is an error in words, where typer would return 130 and say nothing."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _ctrl_c_is_said():
            return super().make_context(*arguments, **options)

    def invoke(self, context: Any) -> Any:
        with _ctrl_c_is_said():
            return super().invoke(context)


@contextmanager
def _ctrl_c_is_said() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise CtrlC from None


def exit_code(app: typer.Typer, arguments: list[str]) -> int:
    """Run the command line `arguments`, say on stderr what went wrong, and return the exit code."""
    prepare_streams()
    try:
        _refuse_what_is_no_text(arguments)
        with clean_interrupts():
            code = _only_requested(app, arguments)(args=arguments, prog_name="igrpo", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_DONE
    except IgrpoError as error:
        print_error(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error(CtrlC())
        return CtrlC.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't start new thread" not in str(error):
            raise
        print_error(
            IgrpoError(f"there is no memory left {f'({error})' if str(error) else ''}".rstrip(), hint=LESS_MEMORY)
        )
        return EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_error(
            IgrpoError(f"{where}{error.strerror or error}", hint="after mending it, run the same command again")
        )
        return EXIT_FAILED
    except USAGE_ERROR as error:
        return _usage_error(error, app, arguments)


def _only_requested(app: typer.Typer, arguments: list[str]) -> typer.Typer:
    """Return `app` with the requested command alone, if it exists: typer would read the options of all of them."""
    requested = [command for command in app.registered_commands if arguments[:1] == [_name_of(command)]]
    if not requested:
        return app
    narrowed = copy(app)
    narrowed.registered_commands = requested
    return narrowed


def _name_of(command: Any) -> str:
    return str(command.name or getattr(command.callback, "__name__", ""))


def _refuse_what_is_no_text(arguments: list[str]) -> None:
    """File names may be any bytes; settings, manifests and Parquet hold Unicode text alone."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{argument} is not UTF-8", hint="rename it") from None


def _usage_error(error: Any, app: typer.Typer, arguments: list[str]) -> int:
    """Unknown flags and bad values in our own shape, with the nearest flag that click proposes."""
    if error.__class__.__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return EXIT_USAGE
    path = error.ctx.command_path if getattr(error, "ctx", None) else _command_typed(app, arguments)
    print_error(IgrpoError(error.format_message().rstrip("."), hint=f"{path} --help"))
    return EXIT_USAGE


def _command_typed(app: typer.Typer, arguments: list[str]) -> str:
    """The command as far as it is known to exist, for errors that do not say where they come from."""
    names = map(_name_of, app.registered_commands)
    return f"igrpo {arguments[0]}" if arguments and arguments[0] in names else "igrpo"
