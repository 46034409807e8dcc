"""A recipe: all that decides what a training run does, but the model and the data. The record of a run is its JSON."""

import dataclasses
import importlib
import json
import math
import pkgutil
import runpy
from pathlib import Path
from typing import Any, Literal

from jaxclip.config import ModelConfig, check_choices, check_integers, check_seed
from jaxclip.errors import InputError
from jaxclip.files import new_file
from jaxclip.training.augment import Augment
from jaxclip.training.optimizer import Optimizer

RECIPE = "recipe.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the data; a fraction is one too.
        batch_size: Pictures of a step, over all devices.
        optimizer: See :class:`~jaxclip.training.optimizer.Optimizer`.
        augment: See :class:`~jaxclip.training.augment.Augment`.
        label_smoothing: Of classes.
        loss: Of image-text pairs.
        dtype: Of the computation; parameters, their gradients and the optimiser are float32.
        remat: Recompute each transformer block in the backward pass, for large models.
        seed: Of the initialisation, the order, the augmentation and mixup.
        save: Checkpoint, and score, after every so many epochs.
        log: Write metrics after every so many steps.
        snapshots: Also leave the model of every checkpoint, as ``snapshots/step_000390`` (of fine-tuning,
            ``snapshots-full`` and ``snapshots-head``).
    """

    epochs: float
    batch_size: int
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    augment: Augment = dataclasses.field(default_factory=Augment)
    label_smoothing: float = 0.0
    loss: Literal["contrastive", "sigmoid"] = "contrastive"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: bool = False
    seed: int = 0
    save: float = 1.0
    log: int = 10
    snapshots: bool = False

    def __post_init__(self):
        check_choices("recipe", self)
        check_integers("recipe", self)
        if not 0 < self.epochs < math.inf or not 0 < self.save < math.inf or self.log < 1 or self.batch_size < 1:
            raise InputError("recipe: epochs, batch_size, save and log must be positive, and no infinity")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"recipe: label_smoothing is {self.label_smoothing}, not from 0 to below 1")
        check_seed(self.seed)

    def steps(self, pictures: int, epochs: float | None = None) -> int:
        """How many steps some epochs (all of the run's) over so many pictures are."""
        return max(1, round((self.epochs if epochs is None else epochs) * pictures / self.batch_size))

    def length(self, pictures: int, epochs: float | None = None) -> int:
        """How many of these steps are taken: those of whole updates, as gradients that are left over train nothing.

        Raises:
            InputError: There are fewer than one update needs.
        """
        steps, each = self.steps(pictures, epochs), self.optimizer.accumulate
        if steps < each:
            raise InputError(
                f"recipe: accumulate is {each}, and the run has {steps} steps, which make no update: accumulate fewer, "
                "or train for more epochs"
            )
        return steps // each * each


def read(name: str) -> tuple[Recipe, ModelConfig | None]:
    """The ``RECIPE``, and the ``MODEL`` where there is one, of a configuration.

    Args:
        name: Of a module in ``experiments/configs/``, or the path of such a file, which is run.

    Raises:
        InputError: There is none, it does not run, or it has no ``RECIPE``.
    """
    module = f"experiments.configs.{name}"
    if name.endswith(".py") and not Path(name).is_file():
        raise InputError(f"there is no configuration {name}")
    try:
        found: Any = runpy.run_path(name) if name.endswith(".py") else vars(importlib.import_module(module))
    except InputError:
        raise
    except Exception as error:  # whatever the file does
        missing = error.name if isinstance(error, ModuleNotFoundError) and not name.endswith(".py") else None
        if missing and f"{module}.".startswith(f"{missing}."):
            configs = importlib.import_module("experiments.configs")
            modules = [module.name for module in pkgutil.iter_modules(configs.__path__, f"{configs.__name__}.")]
            known = ", ".join(m.rpartition(".")[2] for m in modules if hasattr(importlib.import_module(m), "RECIPE"))
            raise InputError(
                f"there is no configuration {name!r} in experiments/configs, which has {known}; a path ends in .py"
            ) from None
        raise InputError(f"configuration {name} does not run: {type(error).__name__}: {error}") from error
    if not isinstance(found.get("RECIPE"), Recipe):
        raise InputError(f"configuration {name} has no RECIPE, a jaxclip.training.recipe.Recipe")
    return found["RECIPE"], found.get("MODEL")


def record(folder: Path, what: dict[str, Any], begun: bool) -> None:
    """Writes ``recipe.json``, or makes sure that the run that is there is of the same.

    Args:
        folder: The run's.
        what: Recipe, model and data.
        begun: Whether the run has left anything; before that its record may be replaced.

    Raises:
        InputError: The folder has a run of another recipe, model or data, or one whose record is missing or damaged.
    """
    path = folder / RECIPE
    what = json.loads(json.dumps(what, default=dataclasses.asdict))
    if begun:
        before = _recorded(path)
        for key, value in what.items():
            if before.get(key) != value:
                raise InputError(f"{folder} has a run whose {key} is another ({path}): name another output folder")
        return
    with new_file(path) as file:
        json.dump(what, file, indent=2)
        file.write("\n")


def _recorded(path: Path) -> dict[str, Any]:
    """What the record of a run says."""
    try:
        found, fault = json.loads(path.read_text(encoding="utf-8")), "no JSON object"
    except FileNotFoundError:
        found, fault = None, "missing"
    except ValueError as error:
        found, fault = None, f"damaged ({error})"
    if not isinstance(found, dict):
        raise InputError(
            f"{path} is {fault}, and is to say of which recipe, model and data the run beside it is: put it back, or "
            "name another output folder"
        )
    return found
