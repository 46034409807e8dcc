"""Concepts that all models encode: how many over thresholds, polysemanticity, overlap between models, the best ones.

python -m experiments.concepts --config experiments/configs/paper.py
"""

from collections.abc import Mapping

import numpy as np

from experiments import study as studies
from experiments.study import Study
from jaxclip.analyze import ConceptSummary
from jaxclip.sections import Section, best_concepts_table, concept_figure, concept_table, heat_map


def run(study: Study) -> Section:
    """Counts, thresholds, overlap, and the most-encoded concepts."""
    section = Section("Concepts")
    found = studies.concepts(study)
    if studies.note_missing(section, study, found, [study.concept_set or "a concept set", study.reference]):
        concept_table(section, found, study.about)
        concept_figure(section, found, study.groups)
        if len(found) > 1:
            overlap(section, found)
            shared(section, found)
        best_concepts_table(section, found)
    return section


def overlap(section: Section, found: Mapping[str, ConceptSummary]) -> None:
    """The heat map of shared concepts."""
    sets = [set(c.encoded) for c in found.values()]
    values = np.array([[len(a & b) / len(a | b) if a | b else np.nan for b in sets] for a in sets])
    between = values[~np.eye(len(sets), dtype=bool)]
    known = between[~np.isnan(between)]
    said = f"from {known.min():.2f} to {known.max():.2f}" if known.size else "undefined, as no model encodes a concept"
    heat_map(
        section,
        list(found),
        values,
        "Overlap of the sets of unique concepts: shared by both models over encoded by either (Jaccard index).",
        f"The overlap between two models is {said}.",
        "concept-overlap",
    )


def shared(section: Section, found: Mapping[str, ConceptSummary]) -> None:
    """The concepts that most models encode."""
    names = sorted({name for c in found.values() for name in c.encoded})
    models = {name: sum(name in c.encoded for c in found.values()) for name in names}
    directions = {name: sum(c.encoded.get(name, 0) for c in found.values()) for name in names}
    rows = sorted(names, key=lambda name: (-models[name], -directions[name]))
    section.table(
        ["Concept", "Models", "Directions"],
        [[name, models[name], directions[name]] for name in rows[:25]],
        f"The concepts that most models encode (of {len(rows)} that any does), and in how many directions altogether.",
        "shared-concepts",
    )


if __name__ == "__main__":
    studies.main(run)
