"""From a source of encoded pictures to padded uint8 batches, in its order: Grain, decoding in threads or processes."""

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Bool, Int, UInt8

from jaxclip.config import Preprocess, check_batch_size
from jaxclip.datasets import Source
from jaxclip.errors import InputError, reason
from jaxclip.machine import cores
from jaxclip.preprocess import decode, preprocess


@dataclasses.dataclass(frozen=True)
class BadImage:
    """A picture that could not be read or decoded: its place in the source, its id, and why."""

    index: int
    id: str
    reason: str


class Batch(NamedTuple):
    """``b`` pictures, always as many: rows whose ``mask`` is False are padding (index -1) or pictures in ``bad``."""

    images: UInt8[np.ndarray, "b s s 3"]
    labels: Int[np.ndarray, " b"]
    indices: Int[np.ndarray, " b"]
    mask: Bool[np.ndarray, " b"]
    ids: tuple[str, ...]
    bad: tuple[BadImage, ...]


def batches(
    source: Source,
    pixels: Preprocess,
    batch_size: int,
    *,
    workers: int | None = None,
    indices: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    skip_bad: bool = False,
) -> Iterator[Batch]:
    """Reads, decodes and preprocesses a source, in order, the same whatever the number of workers.

    Worker processes are spawned by Grain. They import nothing of the caller's script, so it needs no
    ``if __name__ == "__main__"``; the source must be picklable.

    Args:
        source: The pictures.
        pixels: What each goes through.
        batch_size: Rows of every batch; the last one is padded.
        workers: Processes that decode; 0 decodes in threads of this process; None is :func:`default_workers`.
        indices: Which pictures, in which order; -1 leaves a row empty, as padding does. None is all in order.
        skip_bad: Go on after a picture that cannot be decoded, and report it in ``Batch.bad``.

    Raises:
        InputError: A picture cannot be decoded (unless ``skip_bad``); or an argument is out of range.
    """
    check_batch_size(batch_size)
    if indices is None:
        indices = range(len(source))
    least, most = np.min(indices, initial=0), np.max(indices, initial=-1)
    if least < -1 or most >= len(source):
        raise InputError(f"indices go from {least} to {most}, but {source.name} has {len(source)} pictures")
    if workers is None:
        workers = default_workers(len(indices))
    if workers < 0:
        raise InputError(f"workers is {workers}: it must be 0 (threads) or more")
    return _batches(source, pixels, batch_size, workers, indices, skip_bad)


def default_workers(pictures: int) -> int:
    """How many processes decode a number of pictures best: 0 (threads) on few cores or for few pictures.

    Pillow lets go of the interpreter's lock while it decodes and resizes, so threads keep a few cores busy and have
    neither processes to start (2 s or more) nor pictures to send over: on 2 cores they decode 1.1 to 1.4 times as many
    pictures per second, and the 1,000 ImageNet samples in half the time. Many cores would wait for that lock.
    """
    return min(cores(), 16) if cores() > 4 and pictures >= 2000 else 0


def in_workers(batches: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Has so many processes make the batches, each whole ones, which come over in shared memory."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain 0.2.18 reads a flag of its own and fails otherwise (google/grain#1355)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    options = grain.MultiprocessingOptions(num_workers=workers)
    return batches.to_iter_dataset(reading).mp_prefetch(options, worker_init_fn=_start_worker)


@contextlib.contextmanager
def deaths_named(name: str) -> Iterator[None]:
    """Raises an InputError that says what to do where a worker process of a source has been killed."""
    try:
        yield
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise InputError(
            f"a worker process of {name} died ({reason(error)}): where memory or /dev/shm is short, "
            "take fewer workers, smaller batches, or threads (workers 0)"
        ) from error


def _batches(source, pixels, batch_size, workers, indices, skip_bad) -> Iterator[Batch]:
    load = functools.partial(_load, source, pixels)
    collate = functools.partial(_collate, pixels.size, batch_size)
    pictures = grain.MapDataset.source(indices).map(load)
    if workers:
        dataset = in_workers(pictures.batch(batch_size, batch_fn=collate), workers).map(_own)
    else:
        threads = grain.ReadOptions(num_threads=cores(), prefetch_buffer_size=max(2 * batch_size, cores()))
        dataset = pictures.to_iter_dataset(threads).batch(batch_size, batch_fn=collate)
    with contextlib.ExitStack() as stack:
        if workers:
            stack.callback(gc.collect)  # Grain's closed iterators are cycles that hold the last batches' shared memory
        iterator = stack.enter_context(contextlib.closing(iter(dataset)))
        starting = hidden_main() if workers else contextlib.nullcontext()
        while True:
            try:
                with starting, deaths_named(source.name):
                    batch = next(iterator)
            except StopIteration:
                return
            starting = contextlib.nullcontext()
            if batch.bad and not skip_bad:
                bad = batch.bad[0]
                raise InputError(
                    f"{source.name}: picture {bad.index}, {bad.id}, cannot be read ({bad.reason}): "
                    "replace it, or go on without it with --skip-bad (skip_bad=True)"
                )
            yield batch


class _Loaded(NamedTuple):
    image: UInt8[np.ndarray, "s s 3"] | None
    label: int
    place: int
    id: str
    bad: BadImage | None


def _load(source: Source, pixels: Preprocess, index: int) -> _Loaded:
    index = int(index)
    if index < 0:
        return _Loaded(None, -1, -1, "", None)
    name, label = f"index {index}", -1
    try:
        example = source[index]
        name, label = example.id, example.label
        return _Loaded(preprocess(decode(example.image_bytes), pixels), label, index, name, None)
    except (InputError, OSError) as error:
        return _Loaded(None, label, index, name, BadImage(index, name, " ".join(str(error).split())))


def _collate(size: int, batch_size: int, loaded: Sequence[_Loaded]) -> Batch:
    images = np.zeros((batch_size, size, size, 3), np.uint8)
    labels = np.full(batch_size, -1, np.int32)
    indices = np.full(batch_size, -1, np.int64)
    mask = np.zeros(batch_size, bool)
    for row, picture in enumerate(loaded):
        labels[row], indices[row] = picture.label, picture.place
        if picture.image is not None:
            images[row], mask[row] = picture.image, True
    ids = tuple(picture.id for picture in loaded if picture.place >= 0)
    return Batch(images, labels, indices, mask, ids, tuple(p.bad for p in loaded if p.bad is not None))


def _own(batch: Batch) -> Batch:
    """Out of shared memory, which Grain would not free in time where the caller keeps a batch until exit."""
    images, labels, indices, mask = map(np.array, batch[:4])
    return Batch(images, labels, indices, mask, batch.ids, batch.bad)


def _start_worker(index: int, count: int) -> None:
    """What a worker process does first: leave Ctrl-C and accelerators to its parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jax.config.update("jax_platforms", "cpu")

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Processes that start meanwhile do not import the caller's script, which would run it again where it has no guard.

    Grain spawns its workers when the first element is asked for, and sends them what they need by value (cloudpickle).
    """
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


_STARTING = threading.Lock()
