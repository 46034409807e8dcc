"""Whether outlier features go with robustness: activation kurtosis against effective robustness over the models.

python -m experiments.kurtosis_vs_er --config experiments/configs/paper.py
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.stats import rankdata, spearmanr

from experiments import study as studies
from experiments.study import Study
from jaxclip import report
from jaxclip.sections import GROUPS, Section

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
    x, y = np.array(list(points.values())).T
    with report.style():
        fig = Figure(figsize=(report.WIDE, 3.2))
        ax = fig.subplots()
        for group in dict.fromkeys(study.groups[name] for name in points):
            mine = [study.groups[name] == group for name in points]
            color = report.SERIES[list(GROUPS).index(group)]
            ax.plot(x[mine], 100 * y[mine], "o", color=color, label=GROUPS[group])
        ax.axhline(0, color=report.MUTED, linewidth=0.8, dashes=(3, 2))
        ax.set(xscale="log", xlabel="activation kurtosis", ylabel="effective robustness, points")
        fig.legend(loc="outside upper left", ncols=4, handletextpad=0.2, columnspacing=1.4)
    found = rank_correlation(x, y, study.options.seed) if len(x) > 2 else None
    said = "" if found is None else f"ρ = {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    section.figure(
        fig,
        f"Activation kurtosis and mean effective robustness of {len(x)} models. Spearman’s "
        f"{said or 'ρ needs three models'}.",
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


def both(study: Study) -> dict[str, tuple[float, float]]:
    """Kurtosis and mean effective robustness of the models that have both."""
    accuracies, activations = studies.accuracies(study), studies.activations(study)
    result = studies.robustness(study, accuracies)
    if result is None:
        return {}
    return {
        name: (activations[name].kurtosis, float(er))
        for name, er in zip(accuracies, result.mean, strict=True)
        if not np.isnan(er) and activations[name].kurtosis is not None
    }


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
