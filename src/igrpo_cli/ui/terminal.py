"""Text that is redrawn on a terminal: progress bars, and a changing screen. Only this module needs rich at import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from igrpo_cli.ui.progress import Progress

REDRAWS_PER_SECOND = 5


@contextmanager
def bars(active: Sequence[Progress]) -> Iterator[None]:
    """Draw a bar on stderr for each of `active`, which may change. Printed lines appear above the bars."""
    spinners: dict[Progress, Spinner] = {}

    def grid() -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        shown = list(active)
        for progress in shown:
            if progress.total is None:
                bar: RenderableType = spinners.setdefault(progress, Spinner("dots"))
            else:
                bar = ProgressBar(total=progress.total, completed=progress.reached)
            table.add_row(Text(progress.title), bar, Text(progress.text(None if progress is shown[-1] else shown[-1])))
        return table

    # Stdout may be a file while stderr is a terminal. What is printed there must stay there.
    with Live(
        get_renderable=grid,
        console=Console(stderr=True),
        refresh_per_second=REDRAWS_PER_SECOND,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ):
        yield


@contextmanager
def redrawn() -> Iterator[Callable[[str], None]]:
    """Give a function that shows a text on stdout in place of the text before. The last text stays."""
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield lambda text: live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
