"""Linear CKA between all models' representations of the same images.

python -m experiments.cka --config experiments/configs/paper.py
"""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import study as studies
from experiments.study import Study
from jaxclip import report
from jaxclip.sections import GROUPS, Section, heat_map, title


def run(study: Study) -> Section:
    """The matrix, and its mean within and between groups."""
    section = Section("Similarity of representations")
    names = [model.name for model in study.models if study.reference in study.stored[model.name]]
    if not studies.note_missing(section, study, dict.fromkeys(names), [study.reference]):
        return section
    found = studies.cka(study)
    if not found:
        section.text(report.notice("Not run: it takes two models."))
        return section
    place = {name: i for i, name in enumerate(names)}
    values = np.eye(len(names))
    for (a, b), value in found.items():
        values[place[a], place[b]] = values[place[b], place[a]] = value
    between = np.array([*found.values()])
    heat_map(
        section,
        names,
        values,
        f"Linear CKA between the representations of the same images of {html.escape(title(study.reference))}: 1 when "
        "they differ by a rotation, a scale and a shift.",
        f"CKA between two models is from {np.nanmin(between):.2f} to {np.nanmax(between):.2f}.",
        "cka",
    )
    groups = [group for group in GROUPS if group in (study.groups[name] for name in names)]
    rows = [[GROUPS[a], *(_mean(study, found, {a, b}) for b in groups)] for a in groups]
    section.table(
        ["Mean CKA", *(GROUPS[group] for group in groups)],
        rows,
        "Mean over the pairs of different models of two groups. Few images bias CKA upwards: for unrelated "
        "representations of n images in p and q dimensions it is about √(pq)/n where n is far larger than both, and at "
        f"most {_by_chance(study, names):.2g} here.",
        "cka-groups",
        dict.fromkeys((GROUPS[group] for group in groups), ".3f"),
    )
    return section


def _by_chance(study: Study, names: Sequence[str]) -> float:
    """Linear CKA of independent normal representations, for the fewest images and the most dimensions of the study."""
    images, dimensions = np.array([study.stored[name][study.reference].shape for name in names]).T
    return dimensions.max() / (images.min() + dimensions.max())


def _mean(study: Study, found: Mapping[tuple[str, str], float], groups: set[str]) -> float:
    pairs = {pair: {study.groups[name] for name in pair} for pair in found}
    values = [value for pair, value in found.items() if pairs[pair] == groups and not np.isnan(value)]
    return float(np.mean(values)) if values else np.nan


if __name__ == "__main__":
    studies.main(run)
