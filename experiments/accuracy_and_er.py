"""Accuracy on ImageNet and its shifts, and effective robustness, of all models; beside it what open_clip publishes.

python -m experiments.accuracy_and_er --config experiments/configs/paper.py
"""

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from experiments import study as studies
from experiments.effective_robustness import TITLES, Group, registry_models, scatter
from experiments.study import Study
from jaxclip import report
from jaxclip.analysis import SHIFTS, Accuracies, EffectiveRobustness, effective_robustness, standard_models
from jaxclip.analyze import IMAGENET
from jaxclip.sections import Section, accuracy_table, title


def run(study: Study) -> Section:
    """The table of the measured models with the scatter of their shifts, and the same of the published accuracies."""
    section = Section("Accuracy and effective robustness")
    found = studies.accuracies(study)
    if studies.note_missing(section, study, found, [study.reference]):
        result = studies.robustness(study, found)
        er = {} if result is None else mean_robustness(found, result)
        accuracy_table(section, found, study.about, er)
        if result is not None:
            columns, baselines = _as_imagenet(study, studies.columns(found)), studies.baselines(study)
            base = None if baselines is None else _as_imagenet(study, baselines)
            mine = [model for name in found for model in study.models if model.name == name]
            sets, backbones = tuple(m.training_set for m in mine), tuple(m.backbone for m in mine)
            _scatter(
                section,
                Group(Accuracies(tuple(found), columns), sets, backbones),
                result,
                study.options.x,
                "measured",
                base,
                title(study.reference),
            )
    if study.reference == IMAGENET:
        published = registry_models()
        key = jax.random.key(study.options.seed)
        result = effective_robustness(published.accuracies.columns, standard_models().columns, key=key)
        section.text("<h3>From published accuracies</h3>")
        _published_table(section, published, result)
        _scatter(section, published, result, "full", "published")
    return section


def mean_robustness(found: Iterable[str], result: EffectiveRobustness) -> dict[str, report.Estimate]:
    """Mean effective robustness with its interval, of the models that have all shifts."""
    return {
        name: report.Estimate(float(mean), float(low), float(high))
        for name, mean, (low, high) in zip(found, result.mean, result.mean_interval, strict=True)
        if not np.isnan(mean)
    }


def _published_table(section: Section, group: Group, result: EffectiveRobustness) -> None:
    columns = group.accuracies.columns
    section.table(
        ["Model", "Training set", "ER", "ImageNet", *TITLES.values()],
        [
            [name, group.training_sets[i], er, *(columns[k][i] for k in ("imagenet", *SHIFTS))]
            for i, (name, er) in enumerate(
                zip(
                    group.accuracies.models,
                    (report.Estimate(m, *ends) for m, ends in zip(result.mean, result.mean_interval, strict=True)),
                    strict=True,
                )
            )
        ],
        "Zero-shot accuracies that open_clip publishes of the registry’s checkpoints, and the effective robustness "
        "that follows: real numbers that need no picture here.",
        "published-accuracy",
        dict.fromkeys(["ImageNet", *TITLES.values(), "ER"], ".1%"),
    )


def _as_imagenet(study: Study, table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Accuracies by set, with the reference's under the name that effective robustness has for it."""
    return {"imagenet" if k == study.reference else k: v for k, v in table.items()}


def _scatter(
    section: Section,
    group: Group,
    result: EffectiveRobustness,
    x: str,
    what: str,
    base: Mapping[str, np.ndarray] | None = None,
    reference: str = "ImageNet",
) -> None:
    above, known = int((result.mean > 0).sum()), int(np.isfinite(result.mean).sum())
    section.figure(
        scatter([group], result, x, base, reference),  # type: ignore[arg-type]
        f"Accuracy under shift over {reference} accuracy ({what}), on logit axes. Grey: the standard "
        "models, with their line; models above it are effectively robust.",
        f"{above} of {known} models have a positive mean effective robustness.",
        f"{what}-robustness",
    )


if __name__ == "__main__":
    studies.main(run)
