"""Accuracy and effective robustness of all models as the least important directions of their heads are pruned.

python -m experiments.pruning --config experiments/configs/paper.py
"""

from experiments import study as studies
from experiments.study import Study
from jaxclip.sections import Section, pruning_curves, pruning_figure, pruning_table


def run(study: Study) -> Section:
    """The curves and the table."""
    section = Section("Pruning")
    found = studies.prunings(study)
    if studies.note_missing(section, study, found, [study.reference]):
        er = studies.pruned_robustness(study, found)
        pruning_figure(section, study.reference, study.shifts, found, study.groups, er)
        pruning_table(section, study.reference, study.shifts, found, er)
        pruning_curves(section, found, er)
    return section


if __name__ == "__main__":
    studies.main(run)
