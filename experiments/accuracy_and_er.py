"""Accuracy on ImageNet and its shifts, and effective robustness, of all models; beside it what open_clip publishes.

python -m experiments.accuracy_and_er --config experiments/configs/paper.py
"""

from collections.abc import Mapping

import jax
import numpy as np

from experiments import study as studies
from experiments.effective_robustness import TITLES, Group, registry_models, scatter
from experiments.study import Study
from jaxclip.accuracies import Accuracies, standard_models
from jaxclip.analysis import SHIFTS, EffectiveRobustness, effective_robustness
from jaxclip.analyze import IMAGENET
from jaxclip.sections import Section, accuracy_table, mean_robustness, title


def run(study: Study) -> Section:
    """The table of the measured models with the scatter of their shifts, and the same of the published accuracies."""
    section = Section("Accuracy and effective robustness")
    found = studies.accuracies(study)
    if studies.note_missing(section, study, found, [study.reference]):
        result = studies.robustness(study, found)
        accuracy_table(section, found, study.about, mean_robustness(found, result))
        if result is not None:
            columns, baselines = _as_imagenet(study, studies.columns(found)), studies.baselines(study)
            base = None if baselines is None else _as_imagenet(study, baselines)
            mine = [model for name in found for model in study.models if model.name == name]
            kinds, backbones = tuple(m.group for m in mine), tuple(m.backbone for m in mine)
            measured = Group(Accuracies(tuple(found), columns), kinds, backbones)
            reference = title(study.reference)
            scatter(section, [measured], result, study.options.x, "measured-robustness", base, reference, "group")
    if study.reference == IMAGENET:
        published = registry_models()
        key = jax.random.key(study.options.seed)
        result = effective_robustness(published.accuracies.columns, standard_models().columns, key=key)
        section.text("<h3>From published accuracies</h3>")
        _published_table(section, published, result)
        scatter(section, [published], result, "full", "published-robustness")
    return section


def _published_table(section: Section, group: Group, result: EffectiveRobustness) -> None:
    columns, models = group.accuracies.columns, group.accuracies.models
    er = mean_robustness(models, result)
    section.table(
        ["Model", "Training set", "ER", "ImageNet", *TITLES.values()],
        [
            [name, group.kinds[i], er.get(name), *(columns[k][i] for k in ("imagenet", *SHIFTS))]
            for i, name in enumerate(models)
        ],
        "Zero-shot accuracies that open_clip publishes of the registry’s checkpoints, and the effective robustness "
        "that follows: real numbers that need no picture here.",
        "published-accuracy",
        dict.fromkeys(["ImageNet", *TITLES.values(), "ER"], ".1%"),
    )


def _as_imagenet(study: Study, table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Accuracies by set, with the reference's under the name that effective robustness has for it."""
    return {"imagenet" if k == study.reference else k: v for k, v in table.items()}


if __name__ == "__main__":
    studies.main(run)
