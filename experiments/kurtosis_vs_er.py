"""Whether outlier features go with robustness: activation kurtosis against effective robustness over the models.

python -m experiments.kurtosis_vs_er --config experiments/configs/paper.py
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.stats import rankdata, spearmanr

from experiments import study as studies
from experiments.study import Study
from jaxclip import report
from jaxclip.sections import Section, group_color, group_label, group_legend, kurtosis_of, mean_robustness, plain_ticks

SAMPLES = 10_000


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation with the ends of its 95 % bootstrap interval over the models."""

    value: float
    low: float
    high: float
    models: int


def run(study: Study) -> Section:
    """The scatter and the correlation."""
    section = Section("Kurtosis against effective robustness")
    points = both(study)
    if not studies.note_missing(section, study, points, [study.reference, *study.shifts]):
        return section
    x, y = values(points)
    with report.style():
        fig = Figure(figsize=(report.WIDE, 3.2))
        ax = fig.subplots()
        for name, (kurtosis, er) in points.items():
            group = study.groups[name]
            color, percent = group_color(group, study.groups), 100 * np.array(er)
            ax.plot([kurtosis.low, kurtosis.high], [percent[0]] * 2, color=color, linewidth=0.8, alpha=0.6)
            ax.plot([kurtosis.value] * 2, percent[1:], color=color, linewidth=0.8, alpha=0.6)
            ax.plot(kurtosis.value, percent[0], "o", color=color, label=group_label(group))
        ax.axhline(0, color=report.MUTED, linewidth=0.8, dashes=(3, 2))
        ax.set(xscale="log", xlabel="activation kurtosis", ylabel="effective robustness, points")
        plain_ticks(ax.xaxis)
        group_legend(fig, ax)
    found = rank_correlation(x, y, study.options.seed) if len(x) > 2 else None
    said = "" if found is None else f"ρ = {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    section.figure(
        fig,
        f"Activation kurtosis and mean effective robustness of {len(x)} models, each with its 95 % interval (over the "
        f"images, and over the standard models). Spearman’s {said or 'ρ needs three models'}.",
        f"Kurtosis against effective robustness: {said or 'too few models for a correlation'}.",
        "kurtosis-vs-er",
    )
    if found is not None:
        section.table(
            ["Correlation", "Spearman’s ρ", "Models"],
            [["kurtosis, effective robustness", report.Estimate(found.value, found.low, found.high), found.models]],
            f"Rank correlation over the models, with its 95 % bootstrap interval ({SAMPLES:,} samples of models).",
            "kurtosis-vs-er",
            {"Spearman’s ρ": ".2f"},
        )
    return section


def both(study: Study) -> dict[str, tuple[report.Estimate, report.Estimate]]:
    """Kurtosis and mean effective robustness, with their intervals, of the models that have both."""
    accuracies, activations = studies.accuracies(study), studies.activations(study)
    return {
        name: (kurtosis_of(activations[name]), er)
        for name, er in mean_robustness(accuracies, studies.robustness(study, accuracies)).items()
        if not np.isnan(activations[name].kurtosis)
    }


def values(points: Mapping[str, tuple[report.Estimate, report.Estimate]]) -> Float[np.ndarray, "2 m"]:
    """The kurtosis of each model, and its effective robustness, without the intervals."""
    return np.array([[estimate.value for estimate in pair] for pair in points.values()]).T


def rank_correlation(x: Float[np.ndarray, " m"], y: Float[np.ndarray, " m"], seed: int) -> RankCorrelation:
    """Spearman's ρ; its interval is of bootstrap percentiles over the models, constant samples left out."""
    drawn = np.random.default_rng(seed).integers(0, len(x), (SAMPLES, len(x)))
    ranks = [rankdata(values[drawn], axis=1) for values in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):
        sampled = (a * b).sum(1) / np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    low, high = np.nanquantile(sampled, [0.025, 0.975])
    return RankCorrelation(float(spearmanr(x, y).statistic), float(low), float(high), len(x))


if __name__ == "__main__":
    studies.main(run)
