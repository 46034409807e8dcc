"""The paper's study: all its models, ImageNet with its five shifts, and Broden.

Under ``root`` are ``checkpoints/NAME`` (``jaxclip convert --model NAME --out root/checkpoints/NAME``) and ``store``
(``jaxclip embed --model root/checkpoints/NAME --data SET --out root/store``, for each set). What ``jaxclip models``
says is trained here comes from ``jaxclip finetune`` and ``jaxclip train``, with ``--name NAME``, by which alone the
study knows it: put, or link, the run's ``last`` at ``root/checkpoints/NAME``. What is not there is skipped, and named.
"""

from pathlib import Path

from experiments.study import Study, StudyModel
from jaxclip import registry


def get_config(root: Path) -> Study:
    """All models of the registry that the paper's comparison names."""
    return Study(
        title="Interpreting CLIP: the paper’s study",
        models=tuple(
            StudyModel(entry.name, root / "checkpoints" / entry.name, entry.group, entry.backbone, entry.training_set)
            for entry in registry.table()
            if entry.paper
        ),
        store=root / "store",
    )
