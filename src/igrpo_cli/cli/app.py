"""The command line: all commands, and from how one ended to its exit code and error message. Imports nothing heavy."""

import difflib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from igrpo_cli import __version__
from igrpo_cli.cli import change_commands, run_commands, view_commands
from igrpo_cli.cli.completion import completed_words
from igrpo_cli.cli.signals import CtrlC, clean_interrupts
from igrpo_cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, IgrpoError, UsageError
from igrpo_cli.ui.console import print_error

# typer does not export the base class of its errors. BadParameter is one of them.
USAGE_ERROR: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
LESS_MEMORY = "give the command more, or lower engine.max_num_seqs (sampling), update.max_tokens_per_batch (update)"


class Commands(TyperGroup):
    """The commands. A Ctrl-C becomes an error with a message, where typer returns 130 and prints nothing."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _ctrl_c_is_an_error():
            return super().make_context(*arguments, **options)

    def invoke(self, context: Any) -> Any:
        with _ctrl_c_is_an_error():
            return super().invoke(context)


@contextmanager
def _ctrl_c_is_an_error() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise CtrlC from None


app = typer.Typer(
    name="igrpo",
    cls=Commands,
    help="iGRPO as files: draft, select, refine and update, each a command that reads and writes Parquet shards.\n\n"
    "Example: igrpo quickstart runs/quick",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(is_requested: bool) -> None:
    if is_requested:
        print(f"igrpo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(change_commands.init)
app.command("draft")(run_commands.sampling_stage("draft"))
app.command()(run_commands.select)
app.command("refine")(run_commands.sampling_stage("refine"))
app.command()(run_commands.update)
app.command("run")(run_commands.run_all)
app.command("set")(change_commands.set_settings)
app.command()(change_commands.extend)
app.command()(change_commands.fork)
app.command()(change_commands.policy)
app.command("eval")(run_commands.evaluate)
app.command()(view_commands.status)
app.command()(view_commands.verify)
app.command()(view_commands.log)
app.command()(view_commands.report)
app.command()(view_commands.show)
app.command()(view_commands.diff)
app.command("what-if")(view_commands.what_if)
app.command()(view_commands.sql)
app.command()(view_commands.push)
app.command()(view_commands.doctor)
app.command()(run_commands.grade)
app.command()(run_commands.study)
app.command()(run_commands.stages)
app.command()(run_commands.quickstart)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line in this process, and exit with one of the exit codes of `errors`."""
    sys.exit(exit_code(list(sys.argv[1:] if arguments is None else arguments)))


def exit_code(arguments: list[str]) -> int:
    """Run the command line `arguments`, print errors on stderr, and return the exit code."""
    prepare_streams()
    try:
        _require_unicode(arguments)
        with clean_interrupts():
            code = _only_requested(arguments)(args=arguments, prog_name="igrpo", standalone_mode=False)
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
        reason = f" ({error})" if str(error) else ""
        print_error(IgrpoError(f"there is no memory left{reason}", hint=LESS_MEMORY))
        return EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_error(IgrpoError(f"{where}{error.strerror or error}", hint="fix it, then run the same command again"))
        return EXIT_FAILED
    except USAGE_ERROR as error:
        return _usage_error(error, arguments)


def prepare_streams() -> None:
    """Open missing standard streams, and let stdout and stderr accept any character.

    Without this, the next file to be opened would get the number of a closed stream, and what is printed would be
    written into it. /dev/null takes its place. A character that the encoding of a stream lacks is written as its
    escape. Streams that replace those of the process stay as they are.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if not _is_open(descriptor):
            _open_null(descriptor, name)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_null(descriptor: int, name: str) -> None:
    """Open /dev/null as `descriptor`. All lower descriptors are open, so the system gives out this one."""
    opened = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(opened, True)  # The grading processes need it too.
    if getattr(sys, name) is None:
        mode = "r" if descriptor == 0 else "w"
        setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _require_unicode(arguments: list[str]) -> None:
    """Raise UsageError for a file name of other bytes. Settings, manifests and Parquet hold only Unicode text."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{argument} is not UTF-8", hint="rename it") from None


def _only_requested(arguments: list[str]) -> typer.Typer:
    """Return `app` with only the command that is requested or completed. Typer would read the options of all commands.

    Raises UsageError for a command that does not exist.
    """
    first = (arguments or completed_words())[:1]
    requested = [command for command in app.registered_commands if first == [_name_of(command)]]
    if not requested:
        if arguments and not arguments[0].startswith("-"):
            raise _unknown_command(arguments[0])
        return app
    narrowed = copy(app)
    narrowed.registered_commands = requested
    return narrowed


def _unknown_command(name: str) -> UsageError:
    near = difflib.get_close_matches(name, map(_name_of, app.registered_commands), n=1)
    meant = f". Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"No such command '{name}'{meant}", hint="igrpo --help")


def _name_of(command: Any) -> str:
    return str(command.name or getattr(command.callback, "__name__", ""))


def _usage_error(error: Any, arguments: list[str]) -> int:
    """Print an unknown option or a bad value as our own errors, with the nearest option that typer proposes."""
    if error.__class__.__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return EXIT_USAGE
    path = error.ctx.command_path if getattr(error, "ctx", None) else _known_command(arguments)
    print_error(IgrpoError(error.format_message().rstrip("."), hint=f"{path} --help"))
    return EXIT_USAGE


def _known_command(arguments: list[str]) -> str:
    """Return the command line up to a command that exists, for errors that do not name their command."""
    return f"igrpo {arguments[0]}" if {*arguments[:1]} & {*map(_name_of, app.registered_commands)} else "igrpo"
