"""Effective robustness of every checkpoint with published accuracies, from data that ships with the package.

Fits one line for each shift through the ImageNet testbed's standard models, in logit space: the table of the models,
the lines, and the scatter of the five shifts. With ``--accuracies``, does it for a user's own models beside them. It is
``jaxclip robustness``, by the name of the other experiments.

    python -m experiments.effective_robustness --out report/effective_robustness
"""

import dataclasses
import html
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxclip import registry, report
from jaxclip.accuracies import Accuracies, published_accuracies, read_accuracies, standard_models
from jaxclip.analysis import SHIFTS, EffectiveRobustness, effective_robustness, predicted_accuracy
from jaxclip.analysis.robustness import XAxis, x_column
from jaxclip.config import check_seed
from jaxclip.errors import InputError
from jaxclip.sections import Section, group_color, group_label, mean_robustness, title

TITLES = {shift: title(shift) for shift in SHIFTS}
MARKERS = {"RN50": "o", "RN101": "s", "ViT-B-32": "^", "ViT-B-16": "D", "ViT-L-14": "P", "ViT": "^", "ResNet": "s"}
USER, OTHERS = "your models", "others"


@dataclasses.dataclass(frozen=True)
class Group:
    """Models to show: their accuracies, and what gives each its colour (the kind) and marker (the backbone)."""

    accuracies: Accuracies
    kinds: tuple[str, ...]
    backbones: tuple[str, ...]


def registry_models() -> Group:
    """The registry's checkpoints whose accuracies open_clip publishes, in its order; kinds are training sets."""
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
    """The models of a user's CSV (:func:`jaxclip.accuracies.read_accuracies` says what is in it)."""
    accuracies = read_accuracies(path)
    count = len(accuracies.models)
    return Group(accuracies, (USER,) * count, (USER,) * count)


def run(accuracies: Path | None = None, x: XAxis = "full", seed: int = 0) -> Section:
    """The table of the registry's checkpoints, or of a user's models; their scatter; the lines.

    Args:
        accuracies: A user's CSV; None for the registry alone.
        x: Which ImageNet accuracy predicts the accuracy under shift. Published ones are for all classes only, so that
            ``subset`` is for a user's table that has the subset columns.
        seed: Of the bootstrap.

    Raises:
        InputError: The table is not as it must be, or lacks a column that ``x`` needs; or the seed is out of range.
    """
    check_seed(seed)
    if accuracies is None and x == "subset":
        raise InputError("no subset accuracies are published: give your own with --accuracies, or leave out --x subset")
    known = [registry_models()] if x == "full" else []
    groups = known if accuracies is None else [*known, user_models(accuracies)]
    judged = groups[-1]
    columns = judged.accuracies.columns
    if missing := [c for shift in SHIFTS if shift in columns and (c := x_column(shift, x)) not in columns]:
        raise InputError(
            f"{accuracies} has no column {missing[0]!r}: measure it by `jaxclip evaluate --subset` of ImageNet, or "
            "leave out --x subset"
        )
    result = effective_robustness(columns, standard_models().columns, x, key=jax.random.key(seed))
    section = Section("Effective robustness")
    models_table(section, judged, result)
    scatter(section, groups, result, x, "effective-robustness")
    lines_table(section, result)
    return section


def models_table(section: Section, group: Group, result: EffectiveRobustness) -> None:
    """ImageNet accuracy, mean effective robustness with its interval, and each shift's."""
    models, shifts = group.accuracies.models, [f"ER on {name}" for name in TITLES.values()]
    er = mean_robustness(models, result)
    section.table(
        ["Model", "Training set", "ImageNet", "ER", *shifts],
        [
            [
                model,
                group.kinds[i],
                group.accuracies.columns["imagenet"][i],
                er.get(model),
                *(result.shift[shift][i] for shift in SHIFTS),
            ]
            for i, model in enumerate(models)
        ],
        "ImageNet accuracy, and effective robustness (accuracy above what the standard models’ line makes one expect): "
        "the mean over the shifts with its 95 % bootstrap interval (over the standard models), and on each shift. "
        "A dash is missing.",
        "effective-robustness",
        dict.fromkeys(["ImageNet", "ER", *shifts], ".1%"),
    )


def lines_table(section: Section, result: EffectiveRobustness) -> None:
    """The line of each shift."""
    section.table(
        ["Shift", "Slope", "Intercept", "R²", "Models", "Left out"],
        [[TITLES[shift], *fit] for shift, fit in result.fits.items()],
        "The lines in logit space. Models: the standard ones that a line goes through. Left out: those without an "
        "accuracy, or with 0 or 1, which has no logit.",
        "lines",
        {"Slope": ".3f", "Intercept": ".3f", "R²": ".3f"},
    )


def scatter(
    section: Section,
    groups: Sequence[Group],
    result: EffectiveRobustness,
    x: XAxis,
    name: str,
    baselines: Mapping[str, Float[np.ndarray, " b"]] | None = None,
    reference: str = "ImageNet",
    kinds: str = "training set",
) -> None:
    """Accuracy under each shift over ImageNet accuracy, on logit axes, with the baselines, their line, y = x.

    Args:
        section: Where it goes.
        groups: Models to show above the baselines.
        result: Has the lines.
        x: Which ImageNet accuracy is horizontal.
        name: Of the figure.
        baselines: Accuracies of the standard models, by column; None for the ImageNet testbed's.
        reference: What the set that stands for ImageNet is called.
        kinds: What the models' kinds are.
    """
    base = standard_models().columns if baselines is None else baselines
    names = _names([kind for group in groups for kind in group.kinds])
    colors = {kind: report.INK if kind == USER else group_color(name, names) for kind, name in names.items()}
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
        shown = {group_label(names[kind]): color for kind, color in colors.items()}
        _legend(corner, kinds, shown, _ordered(group.backbones for group in groups))
        for axes in rest:
            axes.axis("off")
    above, known = int((result.mean > 0).sum()), int(np.isfinite(result.mean).sum())
    section.figure(
        figure,
        f"Accuracy under shift over {html.escape(reference)} accuracy, on logit axes. Grey: the standard models, with "
        "their line; models above it are effectively robust."
        + (f" Others: where a {kinds} has the fewest models." if OTHERS in shown else ""),
        f"{above} of {known} models have a positive mean effective robustness.",
        name,
    )


def _names(kinds: Sequence[str]) -> dict[str, str]:
    """From each kind the name that gives it its colour: its own, or of more kinds than colours one for the rarest."""
    counts = Counter(kind for kind in kinds if kind != USER)
    common = counts if len(counts) <= len(report.SERIES) else dict(counts.most_common(len(report.SERIES) - 1))
    return {kind: kind if kind in common or kind == USER else OTHERS for kind in _ordered([kinds])}


def _ordered(found: Iterable[Sequence[str]]) -> list[str]:
    """The different ones, in the order in which they come."""
    return list(dict.fromkeys(itertools.chain(*found)))


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
                "color": colors[group.kinds[i]],
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


def _legend(axes: Axes, kinds: str, colors: Mapping[str, str], backbones: Sequence[str]) -> None:
    """Fills the panel after the last with what colours, markers and lines mean: one legend of two columns."""
    axes.axis("off")
    dot: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0}
    sets = [
        Line2D(
            [],
            [],
            marker="*" if name == USER else "o",
            markersize=7 if name == USER else None,
            color=color,
            **dot,
            label=name,
        )
        for name, color in colors.items()
    ]
    names = [name for name in backbones if name != USER]
    known = [name for name in names if name in MARKERS]
    shapes = [Line2D([], [], marker=MARKERS[name], color=report.MUTED, **dot, label=name) for name in known]
    if len(known) < len(names):
        shapes.append(Line2D([], [], marker="X", color=report.MUTED, **dot, label=OTHERS))
    lines = [
        Line2D([], [], marker="o", markersize=3, alpha=0.5, color=report.MUTED, **dot, label="standard models"),
        Line2D([], [], color=report.INK, linewidth=1.1, label="their line"),
        Line2D([], [], color=report.MUTED, linewidth=0.8, dashes=(4, 3), label="y = x"),
    ]
    headings = {"baseline", kinds, "backbone"}
    left = [_entry("baseline"), *lines, _entry(""), *([_entry(kinds), *sets] if sets else [])]
    right = [_entry("backbone"), *shapes] if shapes else []
    blanks = [_entry("")] * (len(left) - len(right) if right else 0)
    legend = axes.legend(
        handles=[*left, *right, *blanks], ncols=2 if right else 1, loc="upper left", bbox_to_anchor=(-0.08, 1.05),
        columnspacing=0.5, handlelength=1.5, handletextpad=0.5, borderpad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in headings else "normal")


def _entry(text: str) -> Line2D:
    """A line of a legend without a mark."""
    return Line2D([], [], linestyle="none", label=text)


if __name__ == "__main__":
    from jaxclip.cli import main

    sys.exit(main(["robustness", *sys.argv[1:]]))
