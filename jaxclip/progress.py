"""What a terminal shows: progress of long work (a bar there, silence elsewhere), and the console of tables."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """Takes note of work that is done."""

    def __call__(self, n: int, note: str = "") -> None:
        """``n`` units more are done; ``note`` is how it goes, for the end of the bar."""


def console(width: int | None = None, stderr: bool = False) -> "Console":
    """The terminal, to which brackets and colons in what a user named mean nothing.

    Args:
        width: Where it is no terminal; None for rich's own.
        stderr: Standard error in the place of standard output.
    """
    from rich.console import Console

    found = Console(markup=False, emoji=False, stderr=stderr)
    return found if found.is_terminal or width is None else Console(markup=False, emoji=False, width=width)


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
    """Yields ``advance(n, note)``, to be called as work is done.

    Args:
        description: What is going on, for the left of the bar.
        total: How many units the work has, or None where that is not known.
        unit: What is counted, for the throughput ("images/s").
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    terminal = console(stderr=True)
    if not terminal.is_terminal:
        yield lambda n, note="": None
        return

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.1f} {unit}/s")

    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(""),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=terminal) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda n, note="": bar.update(task, advance=n, note=note)
