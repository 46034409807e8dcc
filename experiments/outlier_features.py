"""Activations and outlier features of all models: which coordinates are far above the rest, and in how many images.

python -m experiments.outlier_features --config experiments/configs/paper.py
"""

from experiments import study as studies
from experiments.study import Study
from jaxclip.sections import Section, outlier_figure, outlier_table


def run(study: Study) -> Section:
    """The figure and the table."""
    section = Section("Outlier features")
    found = studies.activations(study)
    if studies.note_missing(section, study, found, [study.reference]):
        outlier_figure(section, found, study.groups)
        outlier_table(section, found)
    return section


if __name__ == "__main__":
    studies.main(run)
