"""Images → representations, stored once: any number of processes write, killed ones go on where they were."""

import contextlib
import dataclasses
import fcntl
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxclip.config import check_batch_size
from jaxclip.datasets import Source, open_source
from jaxclip.errors import InputError
from jaxclip.evaluation import representations
from jaxclip.files import sha256
from jaxclip.loader import BadImage
from jaxclip.mesh import batch_sharding, together, whole_batch
from jaxclip.model import Model
from jaxclip.models.clip import representation_size
from jaxclip.progress import progress
from jaxclip.store import (
    MANIFEST,
    STORE_DTYPES,
    Representations,
    check_bad,
    entry_path,
    identity,
    key_of,
    open_store,
    read_json,
    shard_path,
    write_json,
    write_shard,
)


def embed(
    model: Model,
    source: Source | str | os.PathLike,
    store: str | os.PathLike,
    *,
    store_dtype: str = "float32",
    batch_size: int = 64,
    workers: int | None = None,
    skip_bad: bool = False,
) -> Representations:
    """Stores h(x) of every picture, or finds it there.

    A shard has ``jaxclip.store.SHARD_ROWS`` pictures, and each starts a batch of its own: a run that was killed goes on
    with the first shard that is missing, and the bytes are those of a run that was not. A shard that does not have its
    digest is named in a warning, and only it is computed again. Where several processes are one job
    (``jax.distributed``), shard k is of process k modulo their number, and they need to see the same disk.

    Args:
        model: The encoder; pictures go to the devices where its parameters are.
        source: The pictures, or what :func:`jaxclip.datasets.open_source` opens: a folder, a tar, a data set's name.
        store: The store's folder; the representations are in the folder of their key within.
        store_dtype: ``float16`` takes half the space; the largest relative error of a row is in the manifest.
        batch_size: Pictures that go through the model at once in this process. Other sizes, and other devices, may
            round otherwise.
        workers: As in :func:`jaxclip.loader.batches`.
        skip_bad: Leave out pictures that cannot be decoded, and list them in the manifest.

    Raises:
        InputError: Another process is writing the same, a picture cannot be decoded (unless ``skip_bad``), or a feature
            is too large for float16.
        OSError: The disk is full, or another thing that the system refuses; what is there stays, and the next run goes
            on with it.
    """
    if isinstance(source, str | os.PathLike):
        source = open_source(source)
    if store_dtype not in STORE_DTYPES:
        raise InputError(f"store dtype is {store_dtype!r}: choose {' or '.join(STORE_DTYPES)}")
    check_batch_size(batch_size)
    if Path(store).is_file():
        raise InputError(f"{store} is a file: name a folder")
    what = identity(model, source, store_dtype)
    shard_rows = what["shard_rows"]
    folder = Path(store) / key_of(what)
    shards = [range(first, min(first + shard_rows, len(source))) for first in range(0, len(source), shard_rows)]
    with contextlib.ExitStack() as stack:
        with together("open the store"):
            if jax.process_index() == 0 and not _is_whole(folder, len(shards)):
                stack.enter_context(_lock(folder))
                if not _is_whole(folder, len(shards)):  # another process may have finished it just now
                    _reopen(folder, len(shards))
        with together("write the store"):
            if not (folder / MANIFEST).exists():
                mine = range(jax.process_index(), len(shards), jax.process_count())
                missing = {k: shards[k] for k in mine if not entry_path(folder, k).exists()}
                _write(model, source, folder, missing, store_dtype, min(batch_size, shard_rows), workers, skip_bad)
        with together("finish the store"):
            if jax.process_index() == 0:
                if (folder / MANIFEST).exists():
                    _rename(folder, model.config.name, source.name)
                else:
                    _finish(folder, len(shards), what, model, source)
    _wait_for([folder / MANIFEST])
    stored = open_store(folder)
    check_bad(stored, skip_bad)
    return stored


def _is_whole(folder: Path, count: int) -> bool:
    """Whether the store is finished, nothing of ours is left over, and every shard has its digest."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return False
    left = [*folder.glob(".*.part"), *(path for k in range(count) if (path := entry_path(folder, k)).exists())]
    shards = [(shard_path(folder, k), entry) for k, entry in enumerate(manifest["shards"])]
    return (
        not left
        and len(shards) == count
        and all(path.is_file() and sha256(path) == entry["sha256"] for path, entry in shards)
    )


def _reopen(folder: Path, count: int) -> None:
    """Afterwards the shards that are whole have an entry, and no other."""
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(".*.part"):
        rest.unlink()
    manifest = read_json(folder / MANIFEST)
    for k in range(count):
        path = shard_path(folder, k)
        entry = manifest["shards"][k] if manifest else read_json(entry_path(folder, k))
        if entry is None:
            continue
        if path.is_file() and sha256(path) == entry["sha256"]:
            write_json(entry_path(folder, k), entry)
        else:
            warnings.warn(f"{path} is corrupt (its SHA-256 is not the manifest's): computing it again", stacklevel=5)
            entry_path(folder, k).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)


def _write(
    model: Model,
    source: Source,
    folder: Path,
    missing: dict[int, range],
    store_dtype: str,
    batch_size: int,
    workers: int | None,
    skip_bad: bool,
) -> None:
    """Computes and writes shards: in one go, so that neither loader nor device wait where a shard ends."""
    if not missing:
        return
    batch_size = whole_batch(batch_size, batch_sharding(model.params))
    order = [np.pad(pictures, (0, -len(pictures) % batch_size), constant_values=-1) for pictures in missing.values()]
    found = representations(
        model, source, batch_size=batch_size, workers=workers, indices=np.concatenate(order), skip_bad=skip_bad
    )
    with progress(f"{model.config.name} on {source.name}", sum(map(len, missing.values()))) as advance:
        for k, pictures in missing.items():
            h: list[np.ndarray] = []
            labels: list[np.ndarray] = []
            indices: list[np.ndarray] = []
            ids: list[str] = []
            bad: list[BadImage] = []
            for _ in range(0, len(pictures), batch_size):
                encoded, batch = next(found)
                h.append(np.asarray(encoded)[batch.mask])
                labels.append(batch.labels[batch.mask])
                indices.append(batch.indices[batch.mask])
                ids += [name for name, good in zip(batch.ids, batch.mask, strict=False) if good]
                bad += batch.bad
                advance(len(batch.ids))
            exact = np.concatenate(h)
            stored = _rounded(exact, store_dtype, ids)
            digest = write_shard(shard_path(folder, k), stored, np.concatenate(labels), np.concatenate(indices), ids)
            entry = {
                "file": shard_path(folder, k).name,
                "sha256": digest,
                "rows": len(ids),
                "rounding": _relative_error(exact, stored),
                "bad_images": [dataclasses.asdict(b) for b in bad],
            }
            write_json(entry_path(folder, k), entry)


def _rounded(h: Float[np.ndarray, "r d"], dtype: str, ids: Sequence[str]) -> Float[np.ndarray, "r d"]:
    """``h`` in the type to be stored, every feature finite."""
    largest = np.abs(h).max(axis=1, initial=0)
    if not (fits := largest <= np.finfo(dtype).max).all():
        row = np.flatnonzero(~fits)[0]
        raise InputError(
            f"{ids[row]} has a feature of {largest[row]:.3g}, which {dtype} cannot hold: store float32, compute in "
            "float32, or see whether the checkpoint is sound"
        )
    return h.astype(dtype)


def _relative_error(exact: Float[np.ndarray, "r d"], stored: Float[np.ndarray, "r d"]) -> float:
    """The largest over rows of ‖stored − exact‖ / ‖exact‖."""
    if stored.dtype == exact.dtype:
        return 0.0
    error = np.linalg.norm(stored.astype(np.float64) - exact, axis=1)
    norm = np.linalg.norm(exact.astype(np.float64), axis=1)
    return float(np.max(error / np.where(norm, norm, 1), initial=0))


def _finish(folder: Path, count: int, what: dict[str, Any], model: Model, source: Source) -> None:
    """Joins the entries into the manifest, with which the store is finished."""
    _wait_for([entry_path(folder, k) for k in range(count)])
    entries = [read_json(entry_path(folder, k)) for k in range(count)]
    shards = [entry for entry in entries if entry is not None]
    if len(shards) < count:
        raise InputError(
            f"{folder} lacks {shard_path(folder, entries.index(None))}: the same `jaxclip embed` again computes it, "
            "once all its processes see the same disk"
        )
    manifest = {
        "identity": what,
        "model": {"name": model.config.name, "source": model.config.source},
        "data": {"name": source.name, "pictures": len(source), "classes": source.classes},
        "n": sum(shard["rows"] for shard in shards),
        "d": representation_size(model.config.vision),
        "rounding": max(shard["rounding"] for shard in shards),
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)
    for k in range(count):
        entry_path(folder, k).unlink()


def _rename(folder: Path, model: str, data: str) -> None:
    """Has the manifest call model and data as they are called now: studies know both by their names."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return
    called = {key: manifest[key] | {"name": name} for key, name in (("model", model), ("data", data))}
    if manifest != manifest | called:
        write_json(folder / MANIFEST, manifest | called)


def _wait_for(files: Sequence[Path]) -> None:
    """Waits for what other processes have written: network file systems may show it up to a minute later."""
    until = time.monotonic() + (90 if jax.process_count() > 1 else 0)
    while not all(file.exists() for file in files) and time.monotonic() < until:
        time.sleep(0.2)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held while this process, or its job, writes: the system lets go of it when the process ends, however it does."""
    path = folder.with_name(f".{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing {folder}: wait until it ends") from None
        yield
