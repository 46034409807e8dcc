"""Effective robustness of every checkpoint with published accuracies, from data that ships with the package.

Fits one line for each shift through the ImageNet testbed's standard models, in logit space; writes a table (CSV,
LaTeX), the lines (CSV) and the scatter of the five shifts (SVG, PNG). With ``--accuracies``, does it for a user's own
models beside them.

    python -m experiments.effective_robustness --out report/effective_robustness
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

from jaxclip import registry, report
from jaxclip.analysis.robustness import (
    SHIFTS,
    Accuracies,
    EffectiveRobustness,
    Fit,
    XAxis,
    effective_robustness,
    predicted_accuracy,
    published_accuracies,
    read_accuracies,
    standard_models,
    x_column,
)
from jaxclip.errors import InputError
from jaxclip.files import new_file
from jaxclip.sections import title

TITLES = {shift: title(shift) for shift in SHIFTS}
MARKERS = {"RN50": "o", "RN101": "s", "ViT-B-32": "^", "ViT-B-16": "D", "ViT-L-14": "P", "ViT": "^", "ResNet": "s"}
USER = "your models"


@dataclasses.dataclass(frozen=True)
class Group:
    """Models to show: their accuracies, and what gives each its colour (training set) and marker (backbone)."""

    accuracies: Accuracies
    training_sets: tuple[str, ...]
    backbones: tuple[str, ...]


def registry_models() -> Group:
    """The registry's checkpoints whose accuracies open_clip publishes, in the registry's order."""
    table = published_accuracies()
    entries = [entry for entry in registry.table() if entry.results is not None]
    rows = [table.models.index("/".join(entry.results or ())) for entry in entries]
    columns = {name: values[rows] for name, values in table.columns.items()}
    return Group(
        Accuracies(tuple(entry.name for entry in entries), columns),
        tuple(entry.training_set for entry in entries),
        tuple(entry.backbone for entry in entries),
    )


def user_models(path: Path) -> Group:
    """The models of a user's CSV (:func:`jaxclip.analysis.read_accuracies` says what is in it)."""
    accuracies = read_accuracies(path)
    count = len(accuracies.models)
    return Group(accuracies, (USER,) * count, (USER,) * count)


def table(group: Group, result: EffectiveRobustness) -> list[list[str | float]]:
    """A header; for each model ImageNet accuracy, mean effective robustness with its interval, and each shift's."""
    header: list[str | float] = ["model", "training set", "imagenet", "er", "er_low", "er_high"]
    header += [f"er_{shift}" for shift in SHIFTS]
    rows: list[list[str | float]] = [header]
    for i, model in enumerate(group.accuracies.models):
        numbers = [group.accuracies.columns["imagenet"][i], result.mean[i], *result.mean_interval[i]]
        numbers += [result.shift[shift][i] for shift in SHIFTS]
        rows.append([model, group.training_sets[i], *map(float, numbers)])
    return rows


def latex(rows: list[list[str | float]]) -> str:
    """The table for a paper (booktabs), in percent and percentage points."""
    names = " & ".join(("Model", "Training set", "ImageNet", "ER", *TITLES.values()))
    lines = [r"\begin{tabular}{llrr" + "r" * len(SHIFTS) + "}", r"\toprule", names + r" \\", r"\midrule"]
    for model, training_set, *numbers in rows[1:]:
        accuracy, mean, low, high, *shifts = (100 * float(number) for number in numbers)
        er = "--" if np.isnan(mean) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"
        cells = [f"{accuracy:.1f}", er, *("--" if np.isnan(value) else f"{value:.1f}" for value in shifts)]
        text = [str(cell).replace("_", r"\_") for cell in (model, training_set)]
        lines.append(" & ".join([*text, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def scatter(
    groups: Sequence[Group],
    result: EffectiveRobustness,
    x: XAxis,
    baselines: Mapping[str, Float[np.ndarray, " b"]] | None = None,
    reference: str = "ImageNet",
) -> Figure:
    """Accuracy under each shift over ImageNet accuracy, on logit axes, with the baselines, their line, y = x.

    Args:
        groups: Models to show above the baselines.
        result: Has the lines.
        x: Which ImageNet accuracy is horizontal.
        baselines: Accuracies of the standard models, by column; None for the ImageNet testbed's.
        reference: What the set that stands for ImageNet is called.
    """
    base = standard_models().columns if baselines is None else baselines
    colors = {name: report.SERIES[i % len(report.SERIES)] for i, name in enumerate(_ordered(groups, "training_sets"))}
    with report.style():
        rows = len(result.fits) // 3 + 1
        figure = Figure(figsize=(report.WIDE, 2.5 * rows))
        places = list(figure.subplots(rows, 3, squeeze=False).flat)
        panels, corner, rest = places[: len(result.fits)], places[len(result.fits)], places[len(result.fits) + 1 :]
        for axes, shift in zip(panels, result.fits, strict=True):
            _panel(axes, groups, colors, result, shift, x, base)
        for axes in panels[::3]:
            axes.set_ylabel("accuracy under shift (%)")
        for axes in panels[-3:]:
            axes.set_xlabel(f"{reference} accuracy{', the shift’s classes' if x == 'subset' else ''} (%)")
        _legend(corner, groups, colors)
        for axes in rest:
            axes.axis("off")
    return figure


def run(
    accuracies: Path | None = None, out: Path | None = None, x: XAxis = "full", seed: int = 0
) -> EffectiveRobustness:
    """Prints the table of the registry's checkpoints, or of a user's models, and writes it with the figure.

    Args:
        accuracies: A user's CSV; None for the registry alone.
        out: The folder to write to; None to print only.
        x: Which ImageNet accuracy predicts the accuracy under shift. Published ones are for all classes only, so that
            ``subset`` is for a user's table that has the subset columns.
        seed: Of the bootstrap.

    Raises:
        InputError: The table is not as it must be, or lacks a column that ``x`` needs.
    """
    if accuracies is None and x == "subset":
        raise InputError("no subset accuracies are published: give your own with --accuracies, or leave out --x subset")
    known = [registry_models()] if x == "full" else []
    groups = known if accuracies is None else [*known, user_models(accuracies)]
    judged = groups[-1]
    columns = judged.accuracies.columns
    result = effective_robustness(columns, standard_models().columns, x, key=jax.random.key(seed))
    rows = table(judged, result)
    _print(rows, result)
    if out is not None:
        _write(out / "effective_robustness.csv", rows)
        fits: list[list[str | float]] = [["shift", *Fit._fields]]
        fits += [[shift, *map(float, fit)] for shift, fit in result.fits.items()]
        _write(out / "lines.csv", fits)
        with new_file(out / "effective_robustness.tex", encoding="utf-8") as file:
            file.write(latex(rows))
        figure = scatter(groups, result, x)
        with report.style():
            for kind in ("svg", "png"):
                with new_file(out / f"effective_robustness.{kind}", "wb") as file:
                    figure.savefig(file, format=kind, dpi=300, facecolor="white")
    return result


def main(
    accuracies: Path | None = None, out: Path = Path("report/effective_robustness"), x: XAxis = "full", seed: int = 0
) -> None:
    """Effective robustness of the registry's checkpoints, or of your own models beside them.

    Args:
        accuracies: A CSV of your models: model, imagenet, imagenet_v2, imagenet_r, imagenet_sketch, objectnet,
            imagenet_a, and for ``subset`` imagenet_on_imagenet_r and so on; accuracies from 0 to 1.
        out: The folder to write the tables and the figure to.
        x: ImageNet accuracy on all classes, or on the classes of each shift.
        seed: Of the bootstrap intervals.
    """
    run(accuracies, out, x, seed)


def _ordered(groups: Sequence[Group], field: str) -> list[str]:
    """The different values of a field, in the order in which they come."""
    return list(dict.fromkeys(name for group in groups for name in getattr(group, field)))


def _logit(accuracy: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Logits, NaN (which is not drawn) for 0, 1 and missing."""
    inside = np.where((accuracy > 0) & (accuracy < 1), accuracy, np.nan)
    return np.log(inside / (1 - inside))


def _panel(
    axes: Axes,
    groups: Sequence[Group],
    colors: dict[str, str],
    result: EffectiveRobustness,
    shift: str,
    x: XAxis,
    base: Mapping[str, Float[np.ndarray, " b"]],
) -> None:
    fit, column = result.fits[shift], x_column(shift, x)
    shown = [base, *(group.accuracies.columns for group in groups if shift in group.accuracies.columns)]
    across, up = (np.concatenate([_logit(columns[name]) for columns in shown]) for name in (column, shift))
    drawn = np.isfinite(across) & np.isfinite(up)
    left, right = across[drawn].min() - 0.2, across[drawn].max() + 0.2
    bottom, top = up[drawn].min() - 0.3, up[drawn].max() + 0.3
    line = np.linspace(left, right)
    expected = _logit(predicted_accuracy(1 / (1 + np.exp(-line)), fit))
    axes.plot(line, line, color=report.MUTED, linewidth=0.8, dashes=(4, 3), zorder=1)
    axes.plot(line, expected, color=report.INK, linewidth=1.1, zorder=2)
    grey: dict[str, Any] = {"color": report.MUTED, "alpha": 0.5, "linewidths": 0}
    axes.scatter(_logit(base[column]), _logit(base[shift]), 9, **grey, zorder=3)
    for group in groups:
        columns = group.accuracies.columns
        for i in range(len(group.accuracies.models) if shift in columns else 0):
            marker = MARKERS.get(group.backbones[i], "*" if group.backbones[i] == USER else "X")
            style: dict[str, Any] = {
                "color": colors[group.training_sets[i]],
                "edgecolors": report.PAPER,
                "linewidths": 0.4,
            }
            size = 70 if marker == "*" else 30
            point = (_logit(columns[column][i : i + 1]), _logit(columns[shift][i : i + 1]))
            axes.scatter(*point, size, marker=marker, **style, zorder=5 if marker == "*" else 4)
    _percent_ticks(axes.xaxis, left, right)
    _percent_ticks(axes.yaxis, bottom, top)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_title(title(shift))
    axes.set_title(f"R² = {fit.r2:.3f}", loc="right", color=report.MUTED, fontweight="normal", fontsize=7.5)
    axes.grid(color=report.GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def _percent_ticks(axis: Axis, low: float, high: float) -> None:
    """Round percentages, as many as there is room for, at their logits."""
    percent = np.array([0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99])
    places = _logit(percent / 100)
    inside = (places >= low) & (places <= high)
    chosen: list[int] = []
    for i in np.flatnonzero(inside):
        if not chosen or places[i] - places[chosen[-1]] > (high - low) / 9:
            chosen.append(int(i))
    axis.set_ticks(places[chosen], [f"{percent[i]:g}" for i in chosen])


def _legend(axes: Axes, groups: Sequence[Group], colors: dict[str, str]) -> None:
    """Fills the panel after the last with what colours, markers and lines mean."""
    axes.axis("off")
    dot: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0}
    sets = [
        Line2D([], [], marker="*" if name == USER else "o", color=color, **dot, label=name)
        for name, color in colors.items()
    ]
    names = [name for name in _ordered(groups, "backbones") if name != USER]
    known = [name for name in names if name in MARKERS]
    shapes = [Line2D([], [], marker=MARKERS[name], color=report.MUTED, **dot, label=name) for name in known]
    if len(known) < len(names):
        shapes.append(Line2D([], [], marker="X", color=report.MUTED, **dot, label="others"))
    lines = [
        Line2D([], [], marker="o", markersize=3, alpha=0.5, color=report.MUTED, **dot, label="standard models"),
        Line2D([], [], color=report.INK, linewidth=1.1, label="their line"),
        Line2D([], [], color=report.MUTED, linewidth=0.8, dashes=(4, 3), label="y = x"),
    ]
    places = (("pretraining set", sets, (0, 1)), ("backbone", shapes, (0.55, 1)), ("baseline", lines, (0, 0.34)))
    for heading, handles, corner in places:
        if handles:
            legend = axes.legend(
                handles=handles, title=heading, loc="upper left", bbox_to_anchor=corner, alignment="left"
            )
            legend.get_title().set_fontweight("bold")
            axes.add_artist(legend)


def _print(rows: list[list[str | float]], result: EffectiveRobustness) -> None:
    lines = Table(
        "shift", "slope", "intercept", "R²", "models", "left out", title="lines in logit space", title_justify="left"
    )
    for shift, fit in result.fits.items():
        numbers = (f"{fit.slope:.3f}", f"{fit.intercept:.3f}", f"{fit.r2:.3f}", str(fit.models), str(fit.excluded))
        lines.add_row(TITLES[shift], *numbers)
    title = "effective robustness: percentage points above the line, [95 % bootstrap interval over the standard models]"
    grid = Table("model", "training set", "ImageNet", "ER", "", *TITLES.values(), title=title, title_justify="left")
    for model, training_set, *values in rows[1:]:
        accuracy, mean, low, high, *shifts = (100 * float(value) for value in values)
        interval = "" if np.isnan(mean) else f"[{low:.1f}, {high:.1f}]"
        cells = ["n/a" if np.isnan(value) else f"{value:.1f}" for value in (accuracy, mean, *shifts)]
        grid.add_row(str(model), str(training_set), cells[0], cells[1], interval, *cells[2:])
    for grid_ in (lines, grid):
        for column in grid_.columns[1:]:
            column.justify = "left" if column.header == "training set" else "right"
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(lines, grid, sep="\n")


def _write(path: Path, rows: Sequence[Sequence[str | float]]) -> None:
    with new_file(path, newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            writer.writerow(
                ["" if cell != cell else f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row]
            )


if __name__ == "__main__":
    from experiments.study import exit_on_input_error

    with exit_on_input_error():
        tyro.cli(main)
