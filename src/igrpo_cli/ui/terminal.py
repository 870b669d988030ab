"""What redraws itself on a terminal: bars of progress, and a text that changes."""

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
def bars(under_way: Sequence[Progress]) -> Iterator[None]:
    """A bar on stderr for each of `under_way`, which may change meanwhile; what is printed appears above them."""
    spinners: dict[Progress, Spinner] = {}

    def grid() -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for progress in list(under_way):
            if progress.total is None:
                bar: RenderableType = spinners.setdefault(progress, Spinner("dots"))
            else:
                bar = ProgressBar(total=progress.total, completed=progress.done)
            table.add_row(Text(progress.title), bar, Text(progress.text()))
        return table

    # Standard output may be a file while this is a terminal: what is printed there must stay there.
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
    """A function that shows a text on stdout in place of the one before; the last one stays."""
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield lambda text: live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
