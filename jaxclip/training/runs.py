"""The three kinds of run, from data to a checkpoint: fine-tuning, supervised from scratch, CLIP from captions."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

import jaxclip
from jaxclip import checkpoint
from jaxclip.config import ModelConfig, Text
from jaxclip.data import imagenet_templates
from jaxclip.datasets import Example, Source
from jaxclip.datasets.source import digest
from jaxclip.errors import InputError
from jaxclip.evaluation import evaluate, label_space
from jaxclip.files import occupied
from jaxclip.mesh import together
from jaxclip.model import Model
from jaxclip.models import clip
from jaxclip.tokenizer import load_tokenizer, vocabulary
from jaxclip.training import recipe as recipes
from jaxclip.training.augment import make_mix
from jaxclip.training.data import Captions, caption_batches, check_batches, class_batches
from jaxclip.training.loop import CHECKPOINTS, SCORE, Schedule, Trained, check_divides, event_writer, fit
from jaxclip.training.objectives import Classes, ImageText
from jaxclip.training.optimizer import make_optimizer
from jaxclip.training.recipe import Recipe
from jaxclip.training.state import Objective, make_step
from jaxclip.zero_shot import zero_shot_head

LAST, BEST, ZERO_SHOT, PROBE, RUN, SNAPSHOTS = "last", "best", "zero_shot", "probe", "run", "snapshots"
Mode = Literal["full", "lp-ft", "head"]


def finetune(
    model: str | os.PathLike,
    source: Source,
    out: str | os.PathLike,
    recipe: Recipe,
    *,
    mode: Mode = "full",
    name: str | None = None,
    probe_epochs: float | None = None,
    classes: Sequence[str] | Mapping[str, str] | None = None,
    templates: Sequence[str] | None = None,
    validation: Source | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Path:
    """Fine-tunes a CLIP's image encoder, with a linear head that begins as the zero-shot head.

    The head reads the representation scaled to length one, times the CLIP's logit scale, and has no bias (Wortsman et
    al. 2022, ``ImageClassifier``). The scale is folded into the head, and since no choice depends on the length, what
    is written is a plain classifier. ``out`` gets the checkpoints ``zero_shot`` (what it began as; one end of WiSE-FT),
    ``last``, and ``best`` where there is validation data; and the runs' own folders.

    Args:
        model: A CLIP's checkpoint folder.
        source: Training data.
        out: The folder to write; a run that is there goes on.
        recipe: How.
        mode: ``full``: end to end. ``lp-ft``: first the head alone, then end to end (Kumar et al. 2022). ``head``: the
            head alone.
        name: Of the checkpoints; None is the CLIP's with ``-finetuned``.
        probe_epochs: How long the head is trained alone in ``lp-ft``; None is once over the data.
        classes: As in :func:`jaxclip.evaluation.evaluate`.
        templates: Prompts of the zero-shot head; None means ImageNet's 80.
        validation: Data to choose the best by, of the same classes.
        workers: Processes that decode.
        tensorboard: Write its events.

    Returns:
        The folder of the last checkpoint.

    Raises:
        InputError: The model is no CLIP, a class has no name, the validation data has other classes, an option is of no
            use in this mode, or what :func:`~jaxclip.training.loop.fit` raises.
    """
    out, templates = Path(out), imagenet_templates() if templates is None else list(templates)
    _check_classes_recipe(recipe)
    if probe_epochs is not None and mode != "lp-ft":
        raise InputError(f"probe_epochs is {probe_epochs}, and mode {mode} has no probe: leave it out, or choose lp-ft")
    probe_epochs = 1.0 if probe_epochs is None else probe_epochs
    if not 0 < probe_epochs < math.inf:
        raise InputError(f"probe_epochs is {probe_epochs}: it must be positive, and no infinity")
    names, answers, _ = label_space(source, classes)
    labels = _one_each(source, answers)
    _check_validation(validation, classes, names)
    config = checkpoint.read_config(model)
    if config.text is None:
        raise InputError(f"{model} is a classifier: fine-tuning from the zero-shot head needs a CLIP")
    called = f"{config.name}-finetuned" if name is None else name
    phases = {"full": ["full"], "lp-ft": ["head", "full"], "head": ["head"]}[mode]
    lengths = [recipe.length(len(source), epochs) for epochs in (probe_epochs, recipe.epochs)[-len(phases) :]]
    what = {"finetune": str(model), "mode": mode, "probe_epochs": probe_epochs, "recipe": recipe}
    what |= {"data": source.fingerprint(), "classes": names, "templates": templates, "name": name}
    _begin(out, what, recipe, source, workers, tensorboard)
    with together("write the zero-shot head"):
        if jax.process_index() == 0 and not (_begun(out) and (out / ZERO_SHOT).exists()):
            _write_zero_shot(model, out / ZERO_SHOT, names, templates)
    start = out / ZERO_SHOT
    for number, (phase, steps) in enumerate(zip(phases, lengths, strict=True)):
        config, module = _restore(start, recipe)
        config = dataclasses.replace(config, name=called)
        mix = make_mix(recipe.augment)
        objective = Classes(config.preprocess.mean, config.preprocess.std, recipe.label_smoothing, True, mix)
        trainable: Callable[[str], bool] = (
            (lambda name: name == "head.kernel") if phase == "head" else lambda name: name != "head.bias"
        )
        trained = _train(
            module, config, objective, trainable, _relabelled(source, labels, names), out / f"{RUN}-{phase}", recipe,
            steps=steps, score=_scorer(config, module, validation, classes), workers=workers,
            tensorboard=tensorboard,
        )  # fmt: skip
        if number + 1 < len(phases):
            start = out / PROBE
            _write(start, config, trained.last)
    return _finish(out, config, trained, validation)


def supervised(
    config: ModelConfig,
    source: Source,
    out: str | os.PathLike,
    recipe: Recipe,
    *,
    validation: Source | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Path:
    """Trains a classifier from scratch. ``out`` gets the checkpoints ``last`` and, with validation data, ``best``.

    Args:
        config: The architecture; its number of classes becomes the data's.
        source: Training data.
        out: The folder to write; a run that is there goes on.
        recipe: How.
        validation: Data to choose the best by.
        workers: Processes that decode.
        tensorboard: Write its events.

    Raises:
        InputError: ``config`` is a CLIP, the validation data has other classes, the recipe has what is only for
            captions, or what :func:`~jaxclip.training.loop.fit` raises.
    """
    if config.text is not None:
        raise InputError(f"{config.name} is a CLIP: it is trained from captions, by `jaxclip train clip`")
    _check_classes_recipe(recipe)
    out = Path(out)
    names, answers, _ = label_space(source)
    _check_validation(validation, None, [names[i] for i in answers.argmax(axis=1)])
    steps = recipe.length(len(source))
    config = dataclasses.replace(config, num_classes=len(source.classes), source=_provenance(source))
    what = {"supervised": config.to_json(), "recipe": recipe, "data": source.fingerprint()}
    _begin(out, what, recipe, source, workers, tensorboard)
    module = _build(config, recipe)
    objective = Classes(
        config.preprocess.mean, config.preprocess.std, recipe.label_smoothing, False, make_mix(recipe.augment)
    )
    trained = _train(
        module, config, objective, lambda name: True, source, out / RUN, recipe, steps=steps,
        score=_scorer(config, module, validation, None), workers=workers, tensorboard=tensorboard,
    )  # fmt: skip
    return _finish(out, config, trained, validation)


def from_captions(
    config: ModelConfig,
    captions: Captions,
    out: str | os.PathLike,
    recipe: Recipe,
    *,
    start: str | os.PathLike | None = None,
    validation: Source | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Path:
    """Trains a CLIP from captions. ``out`` gets the checkpoints ``last`` and, with validation data, ``best``.

    Args:
        config: The architecture. For the sigmoid loss it has a logit bias.
        captions: Training data.
        out: The folder to write; a run that is there goes on.
        recipe: How.
        start: A checkpoint to begin with, of the same architecture; a logit bias that it lacks is a fresh one. None is
            a fresh model.
        validation: Labelled data, whose zero-shot accuracy chooses the best.
        workers: Processes that decode.
        tensorboard: Write its events.

    Raises:
        InputError: ``config`` is a classifier, ``start`` is of another architecture, the recipe has what is only for
            classes, the text tower has fewer ids than the tokenizer, or what :func:`~jaxclip.training.loop.fit` raises.
    """
    if config.text is None:
        raise InputError(f"{config.name} is a classifier: it is trained from labels, by `jaxclip train supervised`")
    for field, value in (
        ("label_smoothing", recipe.label_smoothing), ("mixup", recipe.augment.mixup), ("cutmix", recipe.augment.cutmix),
    ):  # fmt: skip
        if value:
            raise InputError(f"recipe: {field} is {value}, and captions have no classes for it: leave it out")
    _check_text(config.text)
    biased = config.logit_bias or recipe.loss == "sigmoid"
    if start is not None:
        biased |= _same_architecture(start, config).logit_bias
    if validation is not None:
        label_space(validation)
    out, steps = Path(out), recipe.length(len(captions.source))
    config = dataclasses.replace(config, logit_bias=biased, source=_provenance(captions.source))
    what = {"clip": config.to_json(), "start": None if start is None else str(start), "recipe": recipe}
    what |= {"data": captions.source.fingerprint(), "captions": digest(captions.texts)}
    _begin(out, what, recipe, captions.source, workers, tensorboard)
    module = _build(config, recipe) if start is None else _started(start, config, recipe)
    objective = ImageText(config.preprocess.mean, config.preprocess.std, recipe.loss)
    trained = _train(
        module, config, objective, lambda name: True, captions, out / RUN, recipe, steps=steps,
        score=_scorer(config, module, validation, None), workers=workers, tensorboard=tensorboard,
    )  # fmt: skip
    return _finish(out, config, trained, validation)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _train(
    module: clip.CLIP | clip.Classifier,
    config: ModelConfig,
    objective: Objective,
    trainable: Callable[[str], bool],
    data: Source | Captions,
    out: Path,
    recipe: Recipe,
    *,
    steps: int,
    score: Callable[[Mapping[str, Array]], Mapping[str, float]] | None,
    workers: int | None,
    tensorboard: bool,
) -> Trained:
    pictures, cfg = len(data.source if isinstance(data, Captions) else data), recipe.optimizer
    step = make_step(
        module,
        objective,
        lambda params: make_optimizer(cfg, steps // cfg.accumulate, params),
        trainable=trainable,
        ema_decay=cfg.ema_decay,
        accumulate=cfg.accumulate,
    )
    common: dict[str, Any] = {"seed": recipe.seed, "workers": workers}
    pixels, augment, size = config.preprocess, recipe.augment, recipe.batch_size
    if isinstance(data, Captions):
        assert config.text is not None
        batches = caption_batches(data, pixels, augment, size, context_length=config.text.context_length, **common)
    else:
        batches = class_batches(data, pixels, augment, size, **common)
    schedule = Schedule(steps, recipe.steps(pictures, recipe.save), recipe.log)

    phase = out.name.removeprefix(RUN)

    def keep(number: int, arrays: Mapping[str, Array]) -> None:
        name = f"step_{number:06}"
        called = dataclasses.replace(config, name=f"{config.name}{phase}-{name}")
        _write(out.parent / f"{SNAPSHOTS}{phase}" / name, called, arrays)

    return fit(
        step, batches, out, schedule, seed=recipe.seed, score=score, keep=keep if recipe.snapshots else None,
        tensorboard=tensorboard,
    )  # fmt: skip


def _build(config: ModelConfig, recipe: Recipe) -> clip.CLIP | clip.Classifier:
    return clip.build(config, rngs=nnx.Rngs(recipe.seed), dtype=jax.numpy.dtype(recipe.dtype), remat=recipe.remat)


def _restore(path: str | os.PathLike, recipe: Recipe) -> tuple[ModelConfig, clip.CLIP | clip.Classifier]:
    return checkpoint.restore(path, dtype=jax.numpy.dtype(recipe.dtype), remat=recipe.remat)


def _same_architecture(start: str | os.PathLike, config: ModelConfig) -> ModelConfig:
    """The start's configuration, whose arrays are those that ``config`` asks for, but for the logit bias."""
    theirs = checkpoint.read_config(start)
    if theirs.text is None:
        raise InputError(f"start {start} is a classifier: a CLIP begins with a CLIP")
    wanted, found = config.to_json(), theirs.to_json()
    unlike = [
        f"{part}.{key} is {found[part].get(key)!r}, not {value!r}"
        for part in ("vision", "text", "preprocess")
        for key, value in wanted[part].items()
        if found[part].get(key) != value
    ]
    if unlike:
        raise InputError(f"start {start} is of another architecture than {config.name}: its {'; its '.join(unlike)}")
    return theirs


def _started(start: str | os.PathLike, config: ModelConfig, recipe: Recipe) -> clip.CLIP | clip.Classifier:
    """The start's model, with the logit bias of a fresh one where the run needs it and the start has none."""
    theirs, module = _restore(start, recipe)
    if config.logit_bias == theirs.logit_bias:
        return module
    bias = jax.jit(lambda: checkpoint.named(_build(config, recipe))["logit_bias"])()  # of all of it, XLA keeps this
    graph, state = nnx.split(clip.abstract(config, dtype=jax.numpy.dtype(recipe.dtype), remat=recipe.remat))
    return nnx.merge(graph, checkpoint.fill(state, checkpoint.named(module) | {"logit_bias": bias}))


def _check_classes_recipe(recipe: Recipe) -> None:
    """Raises an InputError where a recipe for classes has a loss of image-text pairs other than the default."""
    if recipe.loss != "contrastive":
        raise InputError(f"recipe: loss {recipe.loss} is of captions, and classes have cross-entropy: leave it out")


def _check_validation(
    validation: Source | None, classes: Sequence[str] | Mapping[str, str] | None, names: Sequence[str]
) -> None:
    """Raises an InputError where the validation data's classes are not the head's, of which ``names`` has each."""
    if validation is None:
        return
    theirs, _, _ = label_space(validation, classes)
    for number, (found, wanted) in enumerate(itertools.zip_longest(theirs, names)):
        if found != wanted:
            raise InputError(
                f"validation data {validation.name} has {len(theirs)} classes, the training data {len(names)}; class "
                f"{number} is {found!r} there, {wanted!r} here: name data of the same classes"
            )


def _check_text(text: Text) -> None:
    """Raises an InputError where a text tower has no room for the tokenizer's rows, or no embedding for its ids."""
    load_tokenizer(text.context_length)
    if text.vocab_size < (ids := vocabulary()):
        raise InputError(f"text.vocab_size is {text.vocab_size}, and the tokenizer has {ids} ids: make it {ids}")


def _begin(
    out: Path, what: dict[str, Any], recipe: Recipe, source: Source, workers: int | None, tensorboard: bool
) -> None:
    """Refuses what could not end well, then writes the run's record; of the processes of a job the first."""
    with together("begin the run"):
        check_batches(source, recipe.batch_size, workers)
        check_divides(recipe.batch_size, jax.device_count())
        if jax.process_index() == 0:
            if tensorboard:
                event_writer()
            for name in (ZERO_SHOT, PROBE, LAST, BEST):
                checkpoint.check_free(out / name, overwrite=True)
            recipes.record(out, what, _begun(out))


def _begun(out: Path) -> bool:
    """Whether a run has left a checkpoint."""
    return occupied(out / LAST) or any(folder.name.isdigit() for folder in out.glob(f"{RUN}*/{CHECKPOINTS}/*"))


def _write(folder: Path, config: ModelConfig, arrays: Mapping[str, Any]) -> None:
    with together(f"write {folder}"):
        if jax.process_index() == 0:
            checkpoint.save(folder, config, {name: np.asarray(a) for name, a in arrays.items()}, overwrite=True)


def _finish(out: Path, config: ModelConfig, trained: Trained, validation: Source | None) -> Path:
    """Writes last and, with validation data, best: a run that had ended without has none."""
    if validation is not None and trained.best is None:
        raise InputError(
            f"{out} has a run that ended without validation data, so no step was scored and none is the best: leave "
            "the validation data out and evaluate last, or name another output folder"
        )
    _write(out / LAST, config, trained.last)
    if trained.best is not None:
        _write(out / BEST, config, trained.best)
    return out / LAST


def _provenance(source: Source) -> dict[str, Any]:
    return {"trained_on": source.name, "fingerprint": source.fingerprint(), "jaxclip": jaxclip.__version__}


def _scorer(
    config: ModelConfig,
    module: clip.CLIP | clip.Classifier,
    validation: Source | None,
    classes: Sequence[str] | Mapping[str, str] | None,
) -> Callable[[Mapping[str, Array]], Mapping[str, float]] | None:
    """Accuracy on the validation data. One ``Model`` serves every time, so nothing is compiled twice.

    Of several processes each evaluates all of it, by itself: they agree without a word.
    """
    if validation is None:
        return None
    model = Model(config, module)
    shapes = jax.eval_shape(lambda x: x, model.params)

    def score(arrays: Mapping[str, Array]) -> Mapping[str, float]:
        if jax.process_count() > 1:
            arrays = {name: array.addressable_data(0) for name, array in arrays.items()}
        model.params = checkpoint.fill(shapes, arrays)
        result = evaluate(model, validation, classes=classes)
        return {SCORE: result.top1.value, "top1": result.top1.value, "top5": result.top5.value}

    return score


def _write_zero_shot(model: str | os.PathLike, out: Path, names: Sequence[str], templates: Sequence[str]) -> None:
    """The classifier that chooses as the CLIP does with its zero-shot head."""
    config, module = checkpoint.restore(model)
    loaded = Model(config, module)
    W, scale = zero_shot_head(loaded, names, templates), loaded.logit_scale
    assert scale is not None
    vision = {name: a for name, a in checkpoint.named(loaded.params).items() if name.startswith("vision.")}
    head = {"head.kernel": np.asarray(scale * W.T), "head.bias": np.zeros(len(names), np.float32)}
    config = dataclasses.replace(
        config,
        name=f"{config.name}-zero-shot",
        text=None,
        logit_bias=False,
        num_classes=len(names),
        source={**config.source, "zero_shot_head": f"{len(names)} classes, {len(templates)} templates"},
    )
    checkpoint.save(out, config, vision | head, overwrite=True)


def _one_each(source: Source, answers: np.ndarray) -> np.ndarray:
    """The one name that each label of the training data is."""
    several = np.flatnonzero(answers.sum(axis=1) != 1)
    if several.size:
        raise InputError(
            f"{source.name}: class {source.classes[several[0]]!r} is not one of the head's classes, so it cannot be "
            "trained on"
        )
    return answers.argmax(axis=1)


@dataclasses.dataclass(frozen=True)
class _Relabelled:
    """A source whose labels index the head's classes."""

    source: Source
    labels: np.ndarray
    name: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        return example._replace(label=int(self.labels[example.label]) if example.label >= 0 else -1)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def _relabelled(source: Source, labels: np.ndarray, names: Sequence[str]) -> Source:
    if np.array_equal(labels, np.arange(len(labels))):
        return source
    return _Relabelled(source, labels, source.name, tuple(names))
