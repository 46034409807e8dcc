"""What the paper finds, and when this run agrees: statements and criteria as data, judged on the study's results.

A criterion is about medians over the models of a group, so that one model decides nothing. Its numbers are this
project's reading of words such as "far above" and "little", fixed here before any result is seen.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments import kurtosis_vs_er
from experiments import study as studies
from experiments.study import Study
from jaxclip.analyze import Pruning
from jaxclip.sections import GROUPS, mean_robustness

ROBUST = "zero-shot"
FAR_ABOVE_3 = 10.0
"""Kurtosis: "far above 3", what normal activations give."""
PRIVILEGED = 3.0
"""Largest importance over the mean one: from here on a direction is "strongly privileged"."""
FEW = 0.05
"""Share of the directions that may be as strongly privileged, to call them few."""
PRUNED = 0.8
LITTLE = 0.05
"""Loss of accuracy, or of effective robustness, that is little: five points. Who has no more can lose no more."""
FEWEST = 5
"""Models, for a rank correlation: of three, one order in six is perfect."""


class Verdict(NamedTuple):
    """Whether the run agrees (None: what it takes is not there), and what it found, in words."""

    agrees: bool | None
    found: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """A statement of the paper.

    Attributes:
        paper: What it found.
        criterion: When this run agrees, in words.
        judge: The same in code.
    """

    paper: str
    criterion: str
    judge: Callable[[Study], Verdict]


NOT_RUN = Verdict(None, "not run")


def _kurtosis_of_robust(study: Study) -> Verdict:
    medians = _medians(study, {name: a.kurtosis for name, a in studies.activations(study).items()})
    if ROBUST not in medians:
        return NOT_RUN
    return Verdict(medians[ROBUST] >= FAR_ABOVE_3, f"median kurtosis {_say(medians, '.1f')}")


def _kurtosis_of_others(study: Study) -> Verdict:
    medians = _medians(study, {name: a.kurtosis for name, a in studies.activations(study).items()})
    others = {group: value for group, value in medians.items() if group != ROBUST}
    if not others:
        return NOT_RUN
    return Verdict(max(others.values()) < FAR_ABOVE_3, f"median kurtosis {_say(others, '.1f')}")


def _privileged_of_robust(study: Study) -> Verdict:
    strong, share = _privileged(study)
    if ROBUST not in strong:
        return NOT_RUN
    agrees = strong[ROBUST] >= PRIVILEGED and share[ROBUST] <= FEW
    said = f"median of max / mean {strong[ROBUST]:.1f}; median share of such directions {share[ROBUST]:.1%}"
    return Verdict(agrees, said)


def _privileged_of_others(study: Study) -> Verdict:
    strong, _ = _privileged(study)
    others = {group: value for group, value in strong.items() if group != ROBUST}
    if not others:
        return NOT_RUN
    return Verdict(max(others.values()) < PRIVILEGED, f"median of max / mean {_say(others, '.1f')}")


def _correlation(study: Study) -> Verdict:
    points = kurtosis_vs_er.both(study)
    if len(points) < FEWEST:
        return NOT_RUN
    kurtosis, er = kurtosis_vs_er.values(points)
    found = kurtosis_vs_er.rank_correlation(kurtosis, er, study.options.seed)
    said = f"ρ = {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] over {found.models} models"
    return Verdict(found.low > 0, said)


def _pruned_accuracy(study: Study) -> Verdict:
    found = studies.prunings(study)
    return _loss(study, found, {name: p.accuracy[study.reference] for name, p in found.items()}, "accuracy")


def _pruned_robustness(study: Study) -> Verdict:
    found = studies.prunings(study)
    return _loss(study, found, studies.pruned_robustness(study, found), "ER")


def _loss(study: Study, found: Mapping[str, Pruning], curves: Mapping[str, Any], what: str) -> Verdict:
    robust = {name: y for name, y in curves.items() if study.groups[name] == ROBUST}
    lost = [v for name, y in robust.items() if not np.isnan(v := y[0] - found[name].at(y, PRUNED)) and y[0] > LITTLE]
    if not lost:
        return NOT_RUN
    median = float(np.median(lost))
    return Verdict(median <= LITTLE, f"median loss of {100 * median:.1f} points of {what} ({len(lost)} models)")


def _more_concepts(study: Study) -> Verdict:
    paired = _against_supervised(study, ROBUST)
    if not paired:
        return NOT_RUN
    more = float(np.median([a - b for a, b in paired.values()]))
    said = f"a median of {more:+g} unique concepts against the supervised model of the same backbone ({len(paired)})"
    return Verdict(more > 0, said)


def _language_not_robustness(study: Study) -> Verdict:
    paired = _against_supervised(study, "less-robust")
    if not paired:
        return NOT_RUN
    accuracies = studies.accuracies(study)
    er = mean_robustness(accuracies, studies.robustness(study, accuracies))
    robust = [estimate.value for name, estimate in er.items() if study.groups[name] == ROBUST]
    mine = [er[name].value for name in paired if name in er]
    if not robust or not mine:
        return NOT_RUN
    more = float(np.median([a - b for a, b in paired.values()]))
    less = float(np.median(mine)) < 0.5 * float(np.median(robust))
    said = (
        f"{more:+.0f} unique concepts against the supervised model; ER {100 * np.median(mine):.1f} points beside a "
        f"median of {100 * np.median(robust):.1f} for zero-shot CLIPs"
    )
    return Verdict(more > 0 and less, said)


FINDINGS = (
    Finding(
        "Zero-shot CLIPs have outlier features: kurtosis far above 3.",
        f"The median kurtosis of the zero-shot CLIPs is at least {FAR_ABOVE_3:g}.",
        _kurtosis_of_robust,
    ),
    Finding(
        "The less robust models have none.",
        f"The median kurtosis of every other group is below {FAR_ABOVE_3:g}.",
        _kurtosis_of_others,
    ),
    Finding(
        "Zero-shot CLIPs have few strongly privileged directions.",
        f"Over the zero-shot CLIPs, the median of the largest importance over the mean is at least {PRIVILEGED:g}, and "
        f"the median share of directions that are as far above the mean is between 0 and {FEW:.0%}.",
        _privileged_of_robust,
    ),
    Finding(
        "The less robust models have no strongly privileged directions.",
        f"The median of the largest importance over the mean of every other group is below {PRIVILEGED:g}.",
        _privileged_of_others,
    ),
    Finding(
        "Outlier features go with robustness to ImageNet’s shifts.",
        "Spearman’s rank correlation of kurtosis and effective robustness is positive, with all of its 95 % interval, "
        f"over {FEWEST} models or more.",
        _correlation,
    ),
    Finding(
        f"About {PRUNED:.0%} of the directions of a zero-shot head can be pruned with little loss of accuracy.",
        f"The median loss of accuracy on the reference set at {PRUNED:.0%} is at most {100 * LITTLE:g} points, over "
        "models that have more to lose.",
        _pruned_accuracy,
    ),
    Finding(
        f"About {PRUNED:.0%} of the directions of a zero-shot head can be pruned with little loss of robustness.",
        f"The median loss of effective robustness at {PRUNED:.0%} is at most {100 * LITTLE:g} points, over models that "
        "have more to lose.",
        _pruned_robustness,
    ),
    Finding(
        "Zero-shot CLIPs encode more unique concepts.",
        "The median difference to the supervised model of the same backbone is above 0.",
        _more_concepts,
    ),
    Finding(
        "Many concepts go with language supervision rather than with robustness: CLIP trained on ImageNet-Captions "
        "encodes many and is not robust.",
        "The less robust CLIPs encode more unique concepts than the supervised model of the same backbone, and their "
        "median effective robustness is below half of that of the zero-shot CLIPs.",
        _language_not_robustness,
    ),
)


def _privileged(study: Study) -> tuple[dict[str, float], dict[str, float]]:
    """By group, the median of max / mean, and of the share of directions that are strongly privileged."""
    found = studies.directions(study)
    share = {}
    for name, d in found.items():
        importance = np.array(d.importance)
        share[name] = float((importance >= PRIVILEGED * importance.mean()).mean())
    return _medians(study, {name: d.max_over_mean for name, d in found.items()}), _medians(study, share)


def _against_supervised(study: Study, group: str) -> dict[str, tuple[int, float]]:
    """Unique concepts of each model of the group, and the median supervised model's of the same backbone."""
    unique = {name: c.unique["directions"] for name, c in studies.concepts(study).items()}
    backbone = {model.name: model.backbone for model in study.models}
    paired = {}
    for name in unique:
        peers = [n for k, n in unique.items() if study.groups[k] == "supervised" and backbone[k] == backbone[name]]
        if study.groups[name] == group and peers:
            paired[name] = (unique[name], float(np.median(peers)))
    return paired


def _medians(study: Study, values: Mapping[str, float]) -> dict[str, float]:
    """By group; models whose value is NaN are left out."""
    known = {name: value for name, value in values.items() if not np.isnan(value)}
    return {
        group: float(np.median([value for name, value in known.items() if study.groups[name] == group]))
        for group in GROUPS
        if any(study.groups[name] == group for name in known)
    }


def _say(medians: Mapping[str, float], spec: str) -> str:
    return ", ".join(f"{value:{spec}} ({GROUPS[group]})" for group, value in medians.items())
