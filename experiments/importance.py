"""Importance of the directions of all models' heads, and the outlier features that the privileged ones load on.

python -m experiments.importance --config experiments/configs/paper.py
"""

from experiments import study as studies
from experiments.study import Study
from jaxclip.sections import Section, importance_figure, importance_table


def run(study: Study) -> Section:
    """The curves and both tables."""
    section = Section("Privileged directions")
    found = studies.directions(study)
    if studies.note_missing(section, study, found, [study.reference]):
        importance_figure(section, found, study.groups)
        importance_table(section, found, studies.activations(study), study.about)
    return section


if __name__ == "__main__":
    studies.main(run)
