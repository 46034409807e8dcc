"""Progress for long work: a bar with throughput and time left on a terminal, silence elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Advance(Protocol):
    """Takes note of work that is done."""

    def __call__(self, n: int, note: str = "") -> None:
        """``n`` units more are done; ``note`` is how it goes, for the end of the bar."""


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
    """Yields ``advance(n, note)``, to be called as work is done.

    Args:
        description: What is going on, for the left of the bar.
        total: How many units the work has, or None where that is not known.
        unit: What is counted, for the throughput ("images/s").
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda n, note="": None
        return

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.1f} {unit}/s")

    columns = (
        "[bold]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        Rate(""),
        TimeRemainingColumn(),
        "{task.fields[note]}",
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda n, note="": bar.update(task, advance=n, note=note)
