"""WiSE-FT: accuracy against effective robustness along the line from a zero-shot model to its fine-tuned self.

The study names the models in between (``Study.interpolated``), which ``jaxclip interpolate`` writes and ``jaxclip
embed`` runs on the reference and the shifts.

    python -m experiments.wise_ft --config experiments/configs/cifar10.py
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import study as studies
from experiments.study import Study, StudyModel
from jaxclip import report
from jaxclip.evaluation import Accuracy
from jaxclip.sections import Section, estimate, mean_robustness, title


class Point(NamedTuple):
    """A model on the line.

    Attributes:
        alpha: 0 is the zero-shot model, 1 the fine-tuned one.
        accuracy: On the reference set.
        shifted: The mean over the shifts.
        er: Mean effective robustness; None where there is no line, or a shift is missing.
    """

    alpha: float
    accuracy: Accuracy
    shifted: float
    er: report.Estimate | None


def run(study: Study) -> Section:
    """The curve of each fine-tuned model, and its points as a table."""
    section = Section("Between zero-shot and fine-tuned (WiSE-FT)")
    found = curves(study)
    if not found:
        section.text(report.notice("Not run: no line has representations of both ends and of a model in between."))
        return section
    reference = title(study.reference)
    with report.style():
        fig = Figure(figsize=(report.WIDE, 3.2))
        for ax, y, label in zip(
            fig.subplots(1, 2),
            (_er, _shifted),
            ("effective robustness, points", "mean accuracy under shift, %"),
            strict=True,
        ):
            for color, (name, points) in zip(itertools.cycle(report.SERIES), found.items(), strict=False):
                x = [100 * p.accuracy.value for p in points]
                ax.plot(x, [100 * y(p) for p in points], "o-", color=color, markersize=3.5, label=name)
                for p, at in zip(points, x, strict=True):
                    ax.annotate(f"{p.alpha:g}", (at, 100 * y(p)), (3, 3), textcoords="offset points", fontsize=6.5)
            ax.set(xlabel=f"{reference} accuracy, %", ylabel=label)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    section.figure(
        fig,
        "Weights interpolated between the zero-shot model (alpha 0) and the fine-tuned one (alpha 1): effective "
        "robustness (left) and mean accuracy under shift (right) against accuracy. A line is called as its model at 1.",
        "; ".join(_said(name, points) for name, points in found.items()) + ".",
        "wise-ft",
    )
    section.table(
        ["Fine-tuned model", "Alpha", reference, "Mean of the shifts", "ER"],
        [[name, p.alpha, estimate(p.accuracy), p.shifted, p.er] for name, points in found.items() for p in points],
        "The same in numbers.",
        "wise-ft",
        {"Alpha": ".2f", reference: ".1%", "Mean of the shifts": ".1%", "ER": ".1%"},
    )
    return section


def curves(study: Study) -> dict[str, list[Point]]:
    """By fine-tuned model, the points that are there, by rising alpha: both ends and at least one in between."""
    lines: dict[str, dict[float, StudyModel]] = {
        line.fine_tuned.name: {0.0: line.zero_shot, **line.between, 1.0: line.fine_tuned} for line in study.interpolated
    }
    wanted = studies.with_models(study, (model for line in lines.values() for model in line.values()))
    accuracies = studies.accuracies(wanted)
    er = mean_robustness(accuracies, studies.robustness(wanted, accuracies))
    found = {
        name: [
            _point(study, alpha, accuracies[m.name], er.get(m.name))
            for alpha, m in sorted(line.items())
            if m.name in accuracies
        ]
        for name, line in lines.items()
    }
    return {name: points for name, points in found.items() if {0.0, 1.0} < {p.alpha for p in points}}


def _point(study: Study, alpha: float, found: Mapping[str, Accuracy], er: report.Estimate | None) -> Point:
    shifted = [found[name].value if name in found else np.nan for name in study.shifts]
    return Point(alpha, found[study.reference], float(np.mean(shifted)), er)


def _er(point: Point) -> float:
    return np.nan if point.er is None else point.er.value


def _shifted(point: Point) -> float:
    return point.shifted


def _said(name: str, points: list[Point]) -> str:
    best = max(points, key=lambda p: p.accuracy.value)
    return f"{name}: accuracy is highest, {best.accuracy.value:.1%}, at alpha {best.alpha:g}"


if __name__ == "__main__":
    studies.main(run)
