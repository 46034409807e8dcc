"""Activation kurtosis of all models.

python -m experiments.kurtosis --config experiments/configs/paper.py
"""

from experiments import study as studies
from experiments.study import Study
from jaxclip.sections import Section, kurtosis_figure, kurtosis_table


def run(study: Study) -> Section:
    """The table and the figure."""
    section = Section("Activation kurtosis")
    found = studies.activations(study)
    if studies.note_missing(section, study, found, [study.reference]):
        kurtosis_table(section, found, study.about)
        kurtosis_figure(section, found, study.groups)
    return section


if __name__ == "__main__":
    studies.main(run)
