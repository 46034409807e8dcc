"""Checkpoints on disk: a folder with ``config.json`` and, in ``params/``, every array by name in Orbax's format."""

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxclip.config import ModelConfig
from jaxclip.errors import InputError, reason
from jaxclip.files import new_directory, occupied, read_object
from jaxclip.models import clip
from jaxclip.models.transformer import Transformer

PARAMS = "params"
CONFIG = "config.json"
CHUNK = 32 * 2**20  # bytes of an array that one file holds


def named(state: Any) -> dict[str, Any]:
    """The leaves of an nnx module or state as ``{"vision.norm_post.scale": array}``."""
    state = nnx.state(state) if isinstance(state, nnx.Module) else state
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def save(path: str | os.PathLike, config: ModelConfig, arrays: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Writes a checkpoint folder, whole or not at all. Of the processes of a job, one does it.

    Args:
        path: The folder to make.
        config: Goes to ``config.json``.
        arrays: ``{name: array}`` for every leaf of the model, as :func:`named` gives.
        overwrite: Replace an existing checkpoint.

    Raises:
        InputError: ``path`` exists and is not to be replaced, or is no checkpoint.
        OSError: The disk is full, or another thing that the system refuses.
    """
    check_free(path, overwrite)
    # Orbax's defaults (OCDBT, whole arrays, copied first) take twice the checkpoint's memory; this takes a few chunks.
    # Compressed, floats take 7 % less space and half as long again to read.
    kinds = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    alone = ocp.options.MultiprocessingOptions(jax.process_index(), {jax.process_index()}, "alone")
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_compression=False,
        type_handler_registry=kinds,
        save_concurrent_gb=_in_flight(arrays),
        multiprocessing_options=alone,
    )
    leaves = {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in arrays.items()}
    chunks = {name: ocp.SaveArgs(chunk_byte_size=CHUNK) for name in arrays}
    with new_directory(path, overwrite) as folder, without_advice():
        with storage_errors(path), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save((folder / PARAMS).absolute(), leaves, save_args=chunks)
        (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=2) + "\n")


def check_free(path: str | os.PathLike, overwrite: bool) -> None:
    """Raises the InputError that :func:`save` would, of a file or folder that is there, before any work is done."""
    folder = Path(path)
    if folder.is_file():
        raise InputError(f"{path} is a file: name a folder")
    if not occupied(folder):
        return
    if not overwrite:
        raise InputError(f"{path} exists already: name another folder, or pass --overwrite (overwrite=True)")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{path} is no checkpoint (no {CONFIG} in it), and is not replaced: name another folder")


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises the OSError, of ``path``, that a full disk or quota is, where TensorStore reports a ValueError."""
    try:
        yield
    except ValueError as error:
        code = next((c for c in (errno.ENOSPC, errno.EDQUOT) if f"os_error_code='{c}'" in str(error)), None)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


def read_config(path: str | os.PathLike) -> ModelConfig:
    """The configuration of a checkpoint folder.

    Raises:
        InputError: There is no such folder, or it holds no readable ``config.json``.
    """
    file = Path(path) / CONFIG
    if not file.is_file():
        raise InputError(f"{path} is not a jaxclip checkpoint (no {CONFIG} in it): make one with `jaxclip convert`")
    data = read_object(file, "convert the checkpoint again")
    if "vision" not in data:
        raise InputError(f"{file} is not jaxclip's: make a checkpoint folder with `jaxclip convert`")
    return ModelConfig.from_json(data, where=str(file))


def restore(
    path: str | os.PathLike,
    *,
    dtype: jnp.dtype = jnp.dtype("float32"),
    remat: bool = False,
    sharding: Sharding | Mapping[str, NamedSharding] | None = None,
) -> tuple[ModelConfig, clip.CLIP | clip.Classifier]:
    """Reads a checkpoint folder.

    Args:
        path: The folder.
        dtype: Of the computation; with bfloat16 the parameters still are float32.
        remat: See :func:`jaxclip.models.clip.build`.
        sharding: Where parameters go: one sharding for all, or one for each name, of one mesh (a transformer's blocks
            are then gathered as they run, one at a time). None is this process's first device.

    Raises:
        InputError: The folder is no checkpoint, or its arrays do not fit its ``config.json``.
    """
    config = read_config(path)
    model = clip.abstract(config, dtype=dtype, remat=remat)
    if isinstance(sharding, Mapping):
        everywhere = NamedSharding(next(iter(sharding.values())).mesh, PartitionSpec())
        for _, part in nnx.iter_modules(model):
            if isinstance(part, Transformer):
                part.gathered = everywhere
    graph, state = nnx.split(model)
    if sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding[name] if isinstance(sharding, Mapping) else sharding
        )
        for name, leaf in named(state).items()
    }
    folder = (Path(path) / PARAMS).absolute()
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: convert the checkpoint again")
    with ocp.StandardCheckpointer(restore_concurrent_gb=_in_flight(wanted)) as checkpointer:
        found = _metadata(checkpointer, folder)
        for name, leaf in wanted.items():
            if name not in found:
                raise InputError(f"{folder}: array {name!r} is missing, which {CONFIG} asks for")
            if tuple(found[name].shape) != leaf.shape:
                raise InputError(f"{folder}: array {name!r} has shape {found[name].shape}, {CONFIG} asks {leaf.shape}")
        if extra := sorted(set(found) - set(wanted)):
            raise InputError(f"{folder}: array {extra[0]!r} is not one that {CONFIG} asks for")
        try:
            arrays = checkpointer.restore(folder, wanted)
        except Exception as error:  # Orbax raises whatever its storage layer does, which alone names the array
            why = reason(error.__cause__ or error)
            raise InputError(f"{folder} cannot be read ({why}): convert the checkpoint again") from error
    return config, nnx.merge(graph, fill(state, arrays))


def fill(state: nnx.State, arrays: Mapping[str, Any]) -> nnx.State:
    """``state`` with every leaf replaced by the array of its name."""
    flat = [(path, leaf.replace(arrays[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.from_flat_state(flat)


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Keeps Orbax from warning of what is meant.

    There are no OCDBT files to merge, a save waits for the one before, and one on SIGTERM has no score.
    """
    logger = logging.getLogger("absl")
    meant = ("Skipping merge of OCDBT", "Waiting for previous save", "did not provide metrics")

    def other(record: logging.LogRecord) -> bool:
        return not any(part in record.getMessage() for part in meant)

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _in_flight(arrays: Mapping[str, Any]) -> int:
    """Gigabytes that Orbax may have under way at once: room for the largest array; its default copies them all."""
    return 1 + max(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values()) // 10**9


def _metadata(checkpointer: ocp.StandardCheckpointer, folder: Path) -> dict[str, Any]:
    try:
        return dict(checkpointer.metadata(folder).item_metadata.tree)
    except Exception as error:  # Orbax raises whatever its storage layer does
        raise InputError(
            f"{folder} is not an Orbax checkpoint ({reason(error)}): convert the checkpoint again"
        ) from error
