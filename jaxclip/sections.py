"""The analyses as figures and tables: of one model (``jaxclip analyze``) or of many side by side (``experiments``)."""

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from rich.table import Table

from jaxclip import report
from jaxclip.analysis import SHIFTS, EffectiveRobustness
from jaxclip.analysis.robustness import SUBSETS
from jaxclip.analyze import BASELINES, STEADY, Activations, Analysis, ConceptSummary, Directions, Pruning
from jaxclip.evaluation import Accuracy
from jaxclip.files import new_file
from jaxclip.progress import console

GROUPS = {
    "zero-shot": "zero-shot CLIP",
    "less-robust": "CLIP, less robust",
    "fine-tuned": "fine-tuned",
    "supervised": "supervised",
}
"""The paper's groups of models, in the order of their colours."""
TITLES = {
    "imagenet2012": "ImageNet",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_r": "ImageNet-R",
    "imagenet_sketch": "ImageNet-Sketch",
    "objectnet": "ObjectNet",
    "imagenet_a": "ImageNet-A",
    "broden": "Broden",
    "cifar10": "CIFAR-10",
}
TITLES |= {column: f"ImageNet, classes of {TITLES[shift]}" for shift, column in SUBSETS.items()}
"""What known data sets are called in print."""
_DASHES = {"random_directions": (4, 2), "permuted_labels": (1, 1.5)}
_SHOWN = 3
"""Directions (or concepts) of a model that a table lists, by as many features (or images)."""
_CELLS = 12
"""Matrices with at most so many rows have their numbers printed in the cells."""


@dataclasses.dataclass
class Section:
    """A part of a report while it is put together.

    Attributes:
        title: Its heading.
        blocks: HTML, in order.
        tables: From each table's name, its columns, rows and formats.
        figures: From each figure's name, the figure.
        downloads: From each name of a table that is too long to show, its columns and rows.
    """

    title: str
    blocks: list[str] = dataclasses.field(default_factory=list)
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[report.Cell]], Mapping[str, str]]] = dataclasses.field(
        default_factory=dict
    )
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)
    downloads: dict[str, tuple[Sequence[str], Sequence[Sequence[report.Cell]]]] = dataclasses.field(
        default_factory=dict
    )

    def text(self, block: str) -> None:
        """Adds HTML."""
        self.blocks.append(block)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        caption: str,
        name: str,
        formats: Mapping[str, str] | None = None,
    ) -> None:
        """Adds a table, see :func:`jaxclip.report.table`; NaN is shown as missing."""
        cells = [[_cell(x) for x in row] for row in rows]
        self.tables[name] = columns, cells, formats or {}
        self.blocks.append(report.table(columns, cells, caption, name, formats))

    def download(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], text: str, name: str) -> None:
        """Adds a table that is too long to show, see :func:`jaxclip.report.download`."""
        cells = [[_cell(x) for x in row] for row in rows]
        self.downloads[name] = columns, cells
        self.blocks.append(report.download(columns, cells, text, name))

    def figure(self, fig: Figure, caption: str, alt: str, name: str) -> None:
        """Adds a figure, see :func:`jaxclip.report.figure`."""
        self.figures[name] = fig
        self.blocks.append(report.figure(fig, caption, alt, name))

    def print(self) -> None:
        """Prints the tables."""
        terminal = console(width=200)
        for name, (columns, rows, formats) in self.tables.items():
            grid = Table(*columns, title=f"{self.title}: {name}", title_justify="left")
            for row in rows:
                grid.add_row(
                    *(" ".join(report.shown(x, formats.get(c, ""))) for c, x in zip(columns, row, strict=True))
                )
            terminal.print(grid)


def write(out: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes ``index.html``, and beside it ``tables/*.csv`` and ``figures/*.png``; returns the page.

    What an earlier report left of these, by the names in its page, is removed.
    """
    page, written = out / "index.html", set()
    before = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    for section in sections:
        shown = {name: (columns, rows) for name, (columns, rows, _) in section.tables.items()}
        for name, (columns, rows) in (shown | section.downloads).items():
            written.add(path := out / "tables" / f"{name}.csv")
            with new_file(path, newline="", encoding="utf-8") as file:
                file.write(report.csv_text(columns, rows))
        for name, fig in section.figures.items():
            written.add(path := out / "figures" / f"{name}.png")
            with report.style(), new_file(path, "wb") as file:
                fig.savefig(file, format="png", dpi=200, facecolor="white")
    with new_file(page, encoding="utf-8") as file:
        file.write(report.page(title, lead, {section.title: section.blocks for section in sections}))
    for path in {*out.glob("tables/*.csv"), *out.glob("figures/*.png")} - written:
        if f'download="{html.escape(path.stem)}.{"csv" if path.suffix == ".csv" else "svg"}"' in before:
            path.unlink()
    return page


# --- of any number of models, by name --------------------------------------------------------------------------------


def kurtosis_of(a: Activations) -> report.Estimate:
    """Kurtosis with its 95 % interval over the images; NaN where there is none."""
    margin = 1.96 * a.standard_error
    return report.Estimate(a.kurtosis, a.kurtosis - margin, a.kurtosis + margin)


def kurtosis_table(section: Section, found: Mapping[str, Activations], about: Mapping[str, Sequence[str]]) -> None:
    """Kurtosis with its interval, and how many outlier features there are.

    Args:
        section: Where it goes.
        found: By model.
        about: What else to say of each model: its group, or nothing.
    """
    rows = []
    for model in sorted(found, key=lambda model: _rank(found[model].kurtosis), reverse=True):
        a = found[model]
        rows.append([model, *about[model], len(a.share), kurtosis_of(a), len(a.outliers), a.images, a.constant])
    section.table(
        ["Model", *_about(about), "Features", "Kurtosis", "Outlier features", "Images", "Constant"],
        rows,
        "Activation kurtosis: mean over the images, with its 95 % interval; normal activations give 3. Outlier "
        f"features: those above {_first(found).threshold:g} standard deviations of the image’s own activations in at "
        f"least {STEADY:.0%} of the images. Constant: images whose features are all equal, which have no kurtosis.",
        "kurtosis",
        {"Kurtosis": ".1f"},
    )


def kurtosis_figure(section: Section, found: Mapping[str, Activations], groups: Mapping[str, str]) -> None:
    """Kurtosis of every model, sorted; those that have none are the lowest."""
    ranked = sorted(found, key=lambda model: _rank(found[model].kurtosis))
    estimates = [kurtosis_of(found[model]) for model in ranked]
    with report.style():
        fig = Figure(figsize=(report.WIDE, 0.9 + 0.17 * len(ranked)))
        ax = fig.subplots()
        for i, (model, (value, low, high)) in enumerate(zip(ranked, estimates, strict=True)):
            color = group_color(groups[model], groups)
            ax.plot([3, value], [i, i], color=color, linewidth=1, alpha=0.5)
            ax.plot(value, i, "o", color=color, label=group_label(groups[model]))
            ax.plot([low, high], [i, i], "|-", color=color)
        ax.axvline(3, color=report.MUTED, linewidth=0.8, dashes=(3, 2))
        ax.set(xlabel="activation kurtosis (normal activations: 3)", yticks=range(len(ranked)), yticklabels=ranked)
        ax.set_xscale("log")
        plain_ticks(ax.xaxis)
        ax.grid(axis="y", visible=False)
        group_legend(fig, ax)
        alt = _by_group("kurtosis", {m: found[m].kurtosis for m in ranked}, groups)
        section.figure(
            fig,
            "Activation kurtosis of each model with its 95 % interval (over the images), on a logarithmic axis.",
            alt,
            "kurtosis",
        )


def outlier_table(section: Section, found: Mapping[str, Activations]) -> None:
    """The most frequent outlier features of each model."""
    rows = []
    for model, a in found.items():
        relative = np.array(a.mean_abs) / _typical(a)
        for i in a.outliers[:5] or [int(np.argmax(a.share))]:
            rows.append([model, i, a.share[i], a.mean_abs[i], relative[i]])
    section.table(
        ["Model", "Feature", "Share of images", "Mean |h|", "Over the median feature"],
        rows,
        "The five most frequent outlier features of each model (the most frequent feature, where none is above the "
        f"threshold in {STEADY:.0%} of the images). The median is over the features that are not always 0.",
        "outlier-features",
        {"Share of images": ".1%", "Mean |h|": ".3g", "Over the median feature": ".1f"},
    )


def outlier_figure(section: Section, found: Mapping[str, Activations], groups: Mapping[str, str]) -> None:
    """How far the largest features are above the rest."""
    sizes = {}
    for model, a in found.items():
        mean_abs = np.array(a.mean_abs)
        sizes[model] = np.sort(mean_abs[mean_abs > 0] / _typical(a))[::-1]
    with report.style():
        fig = Figure(figsize=(report.WIDE, 2.7))
        left, right = fig.subplots(1, 2)
        _lines(left, {m: (np.arange(1, len(y) + 1), y) for m, y in sizes.items()}, groups)
        left.set(xlabel="feature, by size", ylabel="mean |h| / median feature", xscale="log", yscale="log")
        shares = {m: 100 * np.sort(a.share)[::-1] for m, a in found.items()}
        _lines(right, {m: (np.arange(1, len(y) + 1), y) for m, y in shares.items()}, groups)
        right.set(xlabel="feature, by share", ylabel="images where it is an outlier, %", xscale="log", ylim=(0, 102))
        for axis in (left.xaxis, left.yaxis, right.xaxis):
            plain_ticks(axis)
        group_legend(fig, left)
        alt = _by_group("largest feature over the median one", {m: y[0] for m, y in sizes.items() if y.size}, groups)
        section.figure(
            fig,
            "Features by their mean magnitude over that of the median feature (left; without those that are always 0), "
            "and by the share of images where they are outliers (right). A line is a model.",
            alt,
            "outlier-features",
        )


def importance_figure(section: Section, found: Mapping[str, Directions], groups: Mapping[str, str]) -> None:
    """Importance by rank."""
    curves = {}
    for model, d in found.items():
        ranked = np.array(d.importance)[d.order]
        curves[model] = np.arange(1, len(ranked) + 1), ranked / ranked.mean()
    formula = {"cosine": "|cos(v<sub>i</sub>, h)|", "projection": "|⟨v<sub>i</sub>, h⟩|"}[_first(found).kind]
    with report.style():
        fig = Figure(figsize=(report.WIDE, 2.8))
        ax = fig.subplots()
        _lines(ax, curves, groups)
        ax.set(xlabel="direction, by importance", ylabel="importance / mean", xscale="log", yscale="log")
        ax.set_ylim(bottom=max(1e-3, ax.get_ylim()[0]))
        plain_ticks(ax.xaxis)
        plain_ticks(ax.yaxis)
        group_legend(fig, ax)
        alt = _by_group("largest importance over the mean", {m: d.max_over_mean for m, d in found.items()}, groups)
        section.figure(
            fig,
            f"Importance of the singular directions of the head, σ<sub>i</sub> · mean {formula}, in units of its mean.",
            alt,
            "importance",
        )


def importance_table(
    section: Section,
    found: Mapping[str, Directions],
    activations: Mapping[str, Activations],
    about: Mapping[str, Sequence[str]],
) -> None:
    """How privileged the first direction is, and which features the leading directions load on."""
    rows = [[model, *about[model], len(d.order), d.max_over_mean, d.kurtosis] for model, d in found.items()]
    section.table(
        ["Model", *_about(about), "Directions", "Max / mean", "Kurtosis"],
        rows,
        "How privileged the first direction is: the largest importance over the mean one, and the kurtosis of "
        "importance over the directions.",
        "importance",
        {"Max / mean": ".2f", "Kurtosis": ".1f"},
    )
    rows = []
    for model, d in found.items():
        share, mean = activations[model].share, np.mean(d.importance)
        for rank, (features, coordinates) in enumerate(zip(d.features[:_SHOWN], d.coordinates, strict=False)):
            loads = ", ".join(
                f"{i} ({c:+.2f}{'*' if share[i] >= STEADY else ''})"
                for i, c in zip(features[:_SHOWN], coordinates, strict=False)
            )
            rows.append([model, d.order[rank], d.importance[d.order[rank]] / mean, share[features[0]], loads])
    section.table(
        ["Model", "Direction", "Importance / mean", "Outlier share", "Features (coordinate)"],
        rows,
        "The most important directions, numbered by singular value from 0, and the features that each loads on most; "
        "* marks outlier features. Outlier share: the share of images where the first of these features is an outlier.",
        "privileged-directions",
        {"Importance / mean": ".2f", "Outlier share": ".1%"},
    )


def pruning_figure(
    section: Section,
    reference: str,
    shifts: Sequence[str],
    found: Mapping[str, Pruning],
    groups: Mapping[str, str],
    er: Mapping[str, Any],
) -> None:
    """Accuracy on the reference, mean accuracy on the shifts, and effective robustness over the share pruned.

    Args:
        section: Where it goes.
        reference: The reference set's name.
        shifts: The shift sets' names; a model that lacks one has no mean over them.
        found: By model.
        groups: The group of each model.
        er: By model, effective robustness for each fraction, NaN where it cannot be had.
    """
    panels: dict[str, dict[str, Any]] = {
        f"{title(reference)} accuracy, %": {},
        f"mean accuracy on {'the shift' if len(shifts) == 1 else f'{len(shifts)} shifts'}, %": {},
        "ER, points": {},
    }
    on_reference, on_shifts, robust = panels.values()
    for model, p in found.items():
        across = 100 * np.array(p.fractions)
        on_reference[model] = across, 100 * np.array(p.accuracy[reference])
        if shifts and not np.isnan(mean := p.mean(shifts)).all():
            on_shifts[model] = across, 100 * mean
        if model in er and not np.isnan(er[model]).all():
            robust[model] = across, 100 * np.asarray(er[model])
    drawn = {name: curves for name, curves in panels.items() if curves}
    lacking = [model for model in found if any(model not in curves for curves in drawn.values())]
    with report.style():
        fig = Figure(figsize=(report.WIDE if len(drawn) > 1 else report.COLUMN, 2.7))
        axes = fig.subplots(1, len(drawn), squeeze=False)[0]
        for ax, (name, curves) in zip(axes, drawn.items(), strict=True):
            _lines(ax, curves, groups)
            ax.axvline(80, color=report.MUTED, linewidth=0.8, dashes=(3, 2))
            ax.set(xlabel="directions pruned, %", title=name, xlim=(0, 100))
        group_legend(fig, axes[0])
        lost = {m: y[0] - p.at(y, 0.8) for m, p in found.items() for y in [100 * np.array(p.accuracy[reference])]}
        alt = _by_group(f"points of {title(reference)} accuracy lost with 80 % pruned", lost, groups)
        section.figure(
            fig,
            "What is left as the least important directions of the head are set to zero. A line is a model; the dashed "
            "line is at 80 %, up to which the paper finds little loss."
            + (f" Not in every panel, since a shift is missing: {html.escape(some(lacking))}." if lacking else ""),
            alt,
            "pruning",
        )


def pruning_table(
    section: Section, reference: str, shifts: Sequence[str], found: Mapping[str, Pruning], er: Mapping[str, Any]
) -> None:
    """The same at a few shares; of one model alone, accuracy on each set, and otherwise its mean over the shifts."""
    first = _first(found)
    shares = [s for s in (0.0, 0.5, 0.8, 0.9, 0.95) if not np.isnan(first.at(first.accuracy[reference], s))]
    rows = []
    for model, p in found.items():
        curves: dict[str, Any] = dict(p.accuracy)
        if len(found) > 1:
            curves = {reference: curves[reference]} | ({"mean of the shifts": p.mean(shifts)} if shifts else {})
        for name, values in curves.items():
            rows.append([model, title(name), *(p.at(values, share) for share in shares)])
        if model in er and not np.isnan(er[model]).all():
            rows.append([model, "effective robustness", *(p.at(er[model], share) for share in shares)])
    columns = [f"{share:.0%} pruned" for share in shares]
    section.table(
        ["Model", "Set", *columns],
        rows,
        "Accuracy, and effective robustness, with shares of the directions pruned.",
        "pruning",
        dict.fromkeys(columns, ".1%"),
    )


def pruning_curves(section: Section, found: Mapping[str, Pruning], er: Mapping[str, Any]) -> None:
    """Every number of the curves, to take away."""
    sets = dict.fromkeys(name for p in found.values() for name in p.accuracy)
    rows = []
    for model, p in found.items():
        missing = [np.nan] * len(p.fractions)
        curves = [*(p.accuracy.get(name, missing) for name in sets), er.get(model, missing)]
        rows += [[model, *row] for row in zip(p.fractions, *curves, strict=True)]
    section.download(
        ["Model", "Share pruned", *map(title, sets), "ER"],
        rows,
        "Accuracy on each set, and effective robustness, for every share of the directions pruned.",
        "pruning-curves",
    )


def concept_table(section: Section, found: Mapping[str, ConceptSummary], about: Mapping[str, Sequence[str]]) -> None:
    """Unique concepts and polysemanticity beside what chance finds."""
    one, each = _first(found), ["Concepts each", "Each, random", "Each, permuted"]
    rows = [
        [
            model,
            *about[model],
            *(c.unique[kind] for kind in BASELINES),
            *(c.polysemanticity[kind] for kind in BASELINES),
            c.tested,
            c.skipped,
        ]
        for model, c in found.items()
    ]
    section.table(
        [
            "Model",
            *_about(about),
            "Unique concepts",
            "Random directions",
            "Permuted labels",
            *each,
            "Tested",
            "Skipped",
        ],
        rows,
        f"How many concepts some direction encodes: telling images with it with an average precision of at least "
        f"{one.threshold:g}. Beside it, how many as many random directions encode, and how many the directions encode "
        "of the same concepts dealt to other images. Concepts each (polysemanticity): mean over the directions that "
        "encode at least one, and the same of both kinds of chance; a dash where none does. Skipped: concepts in fewer "
        f"than {one.min_images} images, or in all.",
        "concept-counts",
        dict.fromkeys(each, ".2f"),
    )


def concept_figure(section: Section, found: Mapping[str, ConceptSummary], groups: Mapping[str, str]) -> None:
    """Unique concepts over the threshold, with the baselines' medians; and how many concepts directions encode."""
    with report.style():
        fig = Figure(figsize=(report.WIDE, 2.9))
        left, right = fig.subplots(1, 2)
        _lines(left, {m: (c.thresholds, c.unique_over["directions"]) for m, c in found.items()}, groups)
        for kind, dashes in _DASHES.items():
            median = np.median([c.unique_over[kind] for c in found.values()], axis=0)
            left.plot(
                _first(found).thresholds, median, color=report.MUTED, dashes=dashes, label=f"{BASELINES[kind]} (median)"
            )
        left.set(xlabel="threshold of average precision", ylabel="unique concepts", ylim=(0, None))
        _lines(right, {m: (*_share_with_more(c.per_direction),) for m, c in found.items()}, groups)
        right.set(xlabel="concepts, or more", ylabel="directions that encode them, %", ylim=(0, None))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        group_legend(fig, left)
        alt = _by_group("unique concepts", {m: c.unique["directions"] for m, c in found.items()}, groups)
        section.figure(
            fig,
            "Unique concepts over the threshold, with the baselines that tell what chance finds (left); how many "
            f"concepts single directions encode at {_first(found).threshold:g} (right). A line is a model.",
            alt,
            "concept-counts",
        )


def best_concepts_table(section: Section, found: Mapping[str, ConceptSummary]) -> None:
    """The most-encoded concepts of each model, with the images that the best direction scores highest."""
    rows = [
        [
            model,
            b["concept"],
            b["directions"],
            f"{'+' if b['sign'] > 0 else '−'}{b['direction']}",
            b["average_precision"],
            ", ".join(b["top_images"][:_SHOWN]),
        ]
        for model, c in found.items()
        for b in (c.best if len(found) == 1 else c.best[:_SHOWN])
    ]
    section.table(
        ["Model", "Concept", "Directions", "Best direction", "Average precision", "Its top images"],
        rows,
        "The concepts that most directions encode; for each the direction that encodes it best, with its sign, and the "
        "images that this direction scores highest.",
        "most-encoded-concepts",
        {"Average precision": ".3f"},
    )


def heat_map(
    section: Section, names: Sequence[str], values: Float[np.ndarray, "m m"], caption: str, alt: str, name: str
) -> None:
    """A square matrix of numbers from 0 to 1; NaN is left white."""
    side = max(2.6, min(7.0, 1.8 + 0.22 * len(names)))
    with report.style():
        fig = Figure(figsize=(side, side - 0.3), layout="compressed")
        ax = fig.subplots()
        mesh = ax.pcolormesh(values, cmap="Blues", vmin=0, vmax=1, edgecolors="#ffffff", linewidth=0.5)
        places = np.arange(len(names)) + 0.5
        ax.set_xticks(places, names, rotation=90)
        ax.set_yticks(places, names)
        ax.invert_yaxis()
        ax.set_aspect("equal")
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        for i, j in np.ndindex(values.shape if len(names) <= _CELLS else (0, 0)):
            if not np.isnan(values[i, j]):
                white = values[i, j] > 0.6
                text = f"{values[i, j]:.2f}"
                ax.text(
                    j + 0.5,
                    i + 0.5,
                    text,
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color="#ffffff" if white else "#222222",
                )
        bar = fig.colorbar(mesh, ax=ax, fraction=0.04, pad=0.02, ticks=[0, 0.5, 1])  # others change after the layout
        bar.outline.set_visible(False)
        section.figure(fig, caption, alt, name)


def accuracy_table(
    section: Section,
    accuracies: Mapping[str, Mapping[str, Accuracy]],
    about: Mapping[str, Sequence[str]],
    er: Mapping[str, report.Estimate | float],
) -> None:
    """Accuracy of every model on every set, and mean effective robustness.

    Args:
        section: Where it goes.
        accuracies: By model, then by set.
        about: As in :func:`kurtosis_table`.
        er: Mean effective robustness by model, where there is one.
    """
    sets = list(dict.fromkeys(k for found in accuracies.values() for k in found))
    rows = [
        [model, *about[model], er.get(model), *(estimate(found.get(k)) for k in sets)]
        for model, found in accuracies.items()
    ]
    columns = [title(k) for k in sets]
    section.table(
        ["Model", *_about(about), "ER", *columns],
        rows,
        "Top-1 accuracy with its 95 % Wilson interval (over images), and effective robustness: the mean over the "
        "shifts of accuracy above what the standard models make one expect, with its 95 % bootstrap interval "
        "(over the standard models). A dash is missing.",
        "accuracy",
        dict.fromkeys((*columns, "ER"), ".1%"),
    )


# --- of one model ----------------------------------------------------------------------------------------------------


def of_one(analysis: Analysis) -> list[Section]:
    """The whole report of one model."""
    name = analysis.model
    groups, about = {name: name}, {name: ()}
    robust = analysis.robustness
    first, kurtosis, importance, pruning = (
        Section(t) for t in ("Accuracy", "Outlier features", "Privileged directions", "Pruning")
    )
    if analysis.missing:
        first.text(report.notice("Not there: " + html.escape("; ".join(analysis.missing)) + "."))
    accuracy_table(first, {name: analysis.accuracy}, about, mean_robustness([name], robust))
    if robust is not None:
        _shift_table(first, analysis)
    activations, directions, pruned = (
        {name: analysis.activations},
        {name: analysis.directions},
        {name: analysis.pruning},
    )
    kurtosis_table(kurtosis, activations, about)
    outlier_figure(kurtosis, activations, groups)
    outlier_table(kurtosis, activations)
    importance_figure(importance, directions, groups)
    importance_table(importance, directions, activations, about)
    er_pruned = {} if analysis.pruned_robustness is None else {name: analysis.pruned_robustness.mean}
    others = [name for name in analysis.accuracy if name not in (analysis.reference, *SUBSETS.values())]
    shifts = others if robust is None else [name for name in SHIFTS if name in others]
    pruning_figure(pruning, analysis.reference, shifts, pruned, groups, er_pruned)
    pruning_table(pruning, analysis.reference, shifts, pruned, er_pruned)
    pruning_curves(pruning, pruned, er_pruned)
    sections = [first, kurtosis, importance, pruning]
    if analysis.concepts is not None:
        section = Section("Concepts")
        concept_table(section, {name: analysis.concepts}, about)
        concept_figure(section, {name: analysis.concepts}, groups)
        best_concepts_table(section, {name: analysis.concepts})
        sections.append(section)
    facts = {
        "Model": name,
        "Head": analysis.head,
        "Representations": ", ".join(f"{k}: {key}" for k, key in analysis.stores.items()),
        **{
            k.replace("_", " ").capitalize(): v
            for k, v in dataclasses.asdict(analysis.options).items()
            if not isinstance(v, tuple)
        },
        **report.environment(),
    }
    return [*sections, Section("Provenance", [report.provenance(facts)])]


def some(names: Sequence[str]) -> str:
    """The first three of several names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def title(name: str) -> str:
    """What a data set is called in print."""
    return TITLES.get(name, name)


def _shift_table(section: Section, analysis: Analysis) -> None:
    robust = analysis.robustness
    assert robust is not None
    rows = []
    for shift, fit in robust.fits.items():
        value, (low, high) = float(robust.shift[shift][0]), map(float, robust.shift_interval[shift][0])
        measured = estimate(analysis.accuracy.get(shift))
        expected = measured.value - value if measured and not np.isnan(value) else None
        interval = None if np.isnan(value) else report.Estimate(value, low, high)
        rows.append([title(shift), measured, expected, interval, fit.slope, fit.intercept, fit.r2])
    section.table(
        ["Shift", "Accuracy", "Expected", "ER", "Slope", "Intercept", "R²"],
        rows,
        "Effective robustness on each shift, with the line in logit space through the testbed’s standard models that "
        "it is measured from.",
        "effective-robustness",
        {"Accuracy": ".1%", "Expected": ".1%", "ER": ".1%", "Slope": ".3f", "Intercept": ".3f", "R²": ".3f"},
    )


def _about(about: Mapping[str, Sequence[str]]) -> list[str]:
    """The head of the column that says what a model is; none for one model alone."""
    return ["Group"][: len(_first(about))]


def _first(found: Mapping[str, Any]) -> Any:
    """Any model's, for what all share."""
    return next(iter(found.values()))


def _cell(x: Any) -> report.Cell:
    if isinstance(x, report.Estimate) and np.isnan([x.low, x.high]).any():
        x = x.value
    if isinstance(x, float | np.floating):
        return None if np.isnan(x) else float(x)
    return int(x) if isinstance(x, np.integer) else x


def _rank(x: float) -> float:
    """A number to sort by: the least of all for NaN."""
    return -np.inf if np.isnan(x) else x


def _typical(a: Activations) -> float:
    """The median mean magnitude of the features that are not always 0; NaN where all are."""
    there = np.array([m for m in a.mean_abs if m > 0])
    return float(np.median(there)) if there.size else np.nan


def estimate(a: Accuracy | None) -> report.Estimate | None:
    """An accuracy with its interval as tables show it; None, a dash, for None."""
    return None if a is None else report.Estimate(a.value, a.low, a.high)


def mean_robustness(models: Iterable[str], result: EffectiveRobustness | None) -> dict[str, report.Estimate]:
    """Mean effective robustness with its interval, of the models that have all shifts: none where nothing is judged.

    Args:
        models: Their names, in the result's order.
        result: Of :func:`jaxclip.analyze.robustness`; None where it cannot be had.
    """
    if result is None:
        return {}
    return {
        name: report.Estimate(float(mean), float(low), float(high))
        for name, mean, (low, high) in zip(models, result.mean, result.mean_interval, strict=True)
        if not np.isnan(mean)
    }


def _share_with_more(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    at_least = np.arange(0, max(max(counts), 1) + 1)
    return at_least, 100 * (np.array(counts)[None] >= at_least[:, None]).mean(1)


def group_color(group: str, groups: Mapping[str, str]) -> str:
    """The paper's groups have each its own; other groups are numbered."""
    order = GROUPS if group in GROUPS else dict.fromkeys(groups.values())
    return report.SERIES[list(order).index(group) % len(report.SERIES)]


def group_label(group: str) -> str:
    """What a group is called in print."""
    return GROUPS.get(group, group)


def _lines(ax: Axes, curves: Mapping[str, tuple[Any, Any]], groups: Mapping[str, str]) -> None:
    few = len(curves) <= 6
    for model, (x, y) in curves.items():
        group = groups[model]
        ax.plot(
            x,
            y,
            color=group_color(group, groups),
            linewidth=1.4 if few else 0.9,
            alpha=1 if few else 0.75,
            label=group_label(group),
        )


def group_legend(fig: Figure, ax: Axes) -> None:
    """One entry for each label, the groups in their order, above the figure."""
    found = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    names = sorted(found, key=lambda name: [*GROUPS.values(), name].index(name))
    handles = [found[name] for name in names]
    fig.legend(handles, names, loc="outside upper left", ncols=4, handletextpad=0.4, columnspacing=1.4)


def plain_ticks(axis: Axis) -> None:
    """Of a logarithmic axis: 1, 3, 10, 30, … in digits."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _by_group(what: str, values: Mapping[str, float], groups: Mapping[str, str]) -> str:
    """The finding in words: the median of each group."""
    parts = []
    for group in dict.fromkeys(groups[model] for model in values):
        mine = [v for model, v in values.items() if groups[model] == group and not np.isnan(v)]
        if mine:
            parts.append(
                f"{group_label(group)}: {np.median(mine):.3g}" + (f" (median of {len(mine)})" if len(mine) > 1 else "")
            )
    return f"{what[0].upper()}{what[1:]}. {'; '.join(parts)}."
