"""Converts foreign weights into a jaxclip checkpoint: every source tensor consumed, every array filled, or an error."""

import collections
import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import jaxclip
from checkpoints_conversion import tables
from checkpoints_conversion.describe import describe
from checkpoints_conversion.sources import Weights, open_weights
from jaxclip import checkpoint, registry
from jaxclip.config import ModelConfig
from jaxclip.errors import InputError
from jaxclip.models import clip
from jaxclip.progress import progress


def convert(
    source: str | os.PathLike | None,
    model: str | None,
    out: str | os.PathLike,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> ModelConfig:
    """Converts a checkpoint.

    Args:
        source: A file (``.safetensors``, ``.pt``, ``.bin``), a Hugging Face folder, a hub id or a URL; None takes the
            one that the registry knows for ``model``.
        model: A name of the registry, an architecture's name, or the path of an open_clip config JSON. None reads the
            description that stands beside the weights.
        out: The folder to write.
        name: Of the checkpoint; None is that of ``model``, or where that is None the hub's, the folder's or the file's.
        overwrite: Replace an existing folder.

    Returns:
        The configuration that was written.

    Raises:
        InputError: The source cannot be read, is of another model, or has a tensor too many, too few or misshapen.
    """
    out = Path(out)
    checkpoint.check_free(out, overwrite)
    config = None if model is None else registry.model_config(model)
    digest = None
    if source is None:
        if model is None:
            raise InputError("give a SOURCE, or the --model whose published weights to take")
        entry = registry.lookup(model)
        if entry.source is None:
            raise InputError(f"{model} has no published weights: {entry.note}")
        source, digest = entry.source, entry.sha256
        if source.endswith((".pt", ".pth")) and entry.mirror is not None and importlib.util.find_spec("torch") is None:
            source, digest = entry.mirror, None  # the same weights, in safetensors
    weights = open_weights(os.fspath(source), digest)
    if config is None:
        config = describe(weights.configs, weights.name)
        if config is None:
            raise InputError(
                f"nothing beside {weights.path} says what model it is: pass --model (see `jaxclip models`)"
            )
    source_format = tables.detect(weights.shapes)
    if source_format is None:
        few = ", ".join(list(weights.shapes)[:3])
        raise InputError(f"{weights.path} is of no known layout (its first tensors are {few})")
    config = dataclasses.replace(
        config,
        name=config.name if name is None else name,
        num_classes=_classes(config, source_format, weights),
        source={
            "file": str(source),
            "sha256": weights.digest,
            "format": source_format,
            "jaxclip": jaxclip.__version__,
            **({} if weights.revision is None else {"revision": weights.revision}),
        },
    )
    rows = tables.rows(source_format, config, weights.shapes)
    arrays = fill(config, rows, weights)
    checkpoint.save(out, config, arrays, overwrite=overwrite)
    return config


def fill(config: ModelConfig, rows: Iterable[tables.Row], weights: Weights) -> dict[str, np.ndarray]:
    """Every array of the model, float32, read through the table one source tensor at a time.

    Raises:
        InputError: A tensor is missing, left over or misshapen; the message names it.
    """
    rows = list(rows)
    targets = {name: leaf.shape for name, leaf in checkpoint.named(clip.abstract(config)).items()}
    sources = {target: _expand(source, targets.get(target, (0,))) for target, source, _ in rows}
    wanted = collections.Counter(name for names in sources.values() for layer in names for name in layer)
    where = f"{weights.path} as {config.name}"
    _report(where, "tensors are missing", set(wanted) - set(weights.shapes))
    unused = {name for name in set(weights.shapes) - set(wanted) if not tables.is_not_parameter(name)}
    _report(where, "tensors are not of this model", unused)
    _report(where, "arrays are filled by no tensor", set(targets) - set(sources))
    _report(where, "table rows fill no array", set(sources) - set(targets))

    kept: dict[str, np.ndarray] = {}  # tensors that several rows read

    def read(name: str) -> np.ndarray:
        if wanted[name] == 1:
            return weights.read(name)
        if name not in kept:
            kept[name] = weights.read(name)
        return kept[name]

    def misfit(name: str, target: str, shape: tuple[int, ...]) -> InputError:
        return InputError(
            f"{where}: tensor {name!r} has shape {weights.shapes[name]}, which does not fit {target!r} {shape}: "
            "is --model right for these weights?"
        )

    arrays = {}
    with progress(f"convert {config.name}", total=len(rows), unit="arrays") as advance:
        for target, source, transform in rows:
            there = sum(math.prod(weights.shapes[name]) for names in sources[target] for name in names)
            if math.prod(targets[target]) > there:  # before so much memory is asked for
                raise misfit(sources[target][0][0], target, targets[target])
            array = np.empty(targets[target], np.float32)
            stacked = "{}" in str(source)
            for i, names in enumerate(sources[target]):
                place = array[i] if stacked else array
                tensor = read(names[0]) if len(names) == 1 else np.concatenate([read(name) for name in names])
                try:
                    value = tables.TRANSFORMS[transform](tensor)
                except (ValueError, IndexError):
                    value = tensor
                if value.shape != place.shape:
                    raise misfit(names[0], target, place.shape)
                place[...] = value
                if not np.isfinite(place).all():
                    raise InputError(f"{where}: tensor {names[0]!r} holds NaN, infinities or what float32 cannot hold")
            arrays[target] = array
            advance(1)
    return arrays


def _expand(source: str | tuple[str, ...], shape: tuple[int, ...]) -> list[tuple[str, ...]]:
    """For each layer (one, where the row is of no stack) the names of the tensors to join."""
    names = (source,) if isinstance(source, str) else source
    if "{}" in names[0]:
        return [tuple(name.format(i) for name in names) for i in range(shape[0])]
    return [names]


def _classes(config: ModelConfig, source_format: str, weights: Weights) -> int | None:
    """The number of classes, which the weights know best."""
    if config.num_classes is None:
        return None
    bias = {target: source for target, source, _ in tables.rows(source_format, config, weights.shapes)}.get("head.bias")
    return weights.shapes[str(bias)][0] if str(bias) in weights.shapes else config.num_classes


def _report(where: str, what: str, names: set[str]) -> None:
    if names:
        listed = ", ".join(n if n.isprintable() else ascii(n) for n in sorted(names)[:8]) + (
            f", … ({len(names)} in all)" if len(names) > 8 else ""
        )
        raise InputError(f"{where}: {what}: {listed}")
