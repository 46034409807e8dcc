"""Training batches: shuffled anew each epoch, augmented by a seed of each example, able to go on from a position."""

import contextlib
import csv
import dataclasses
import functools
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int, UInt8

from jaxclip.config import Preprocess
from jaxclip.datasets import FileSource, Source
from jaxclip.datasets.files import from_members, is_picture, matching, members_of, sample_key
from jaxclip.errors import InputError, reason
from jaxclip.loader import deaths_named, default_workers, hidden_main, in_workers
from jaxclip.machine import cores
from jaxclip.preprocess import decode
from jaxclip.progress import progress
from jaxclip.tokenizer import load_tokenizer
from jaxclip.training.augment import Augment, augment

_EPOCHS = 2**32  # endless; without a number, Grain's lengths overflow at batches of one


@dataclasses.dataclass(frozen=True)
class Captions:
    """Pictures with a caption each.

    Attributes:
        source: The pictures; their labels are not used.
        texts: The captions, in the pictures' order.
    """

    source: Source
    texts: tuple[str, ...]


def class_batches(
    source: Source, pixels: Preprocess, cfg: Augment, batch_size: int, *, seed: int, workers: int | None = None
) -> grain.DatasetIterator:
    """Endless batches ``{"images", "labels", "ids"}`` of labelled pictures; see :func:`caption_batches`.

    Raises:
        InputError: The source has no labels or is smaller than a batch; or, later, a picture cannot be decoded.
    """
    if not source.classes:
        raise InputError(f"{source.name} has no labels, and training needs them: put the pictures in class folders")
    return _batches(source, functools.partial(_labelled, source, pixels, cfg), batch_size, seed, workers)


def caption_batches(
    captions: Captions,
    pixels: Preprocess,
    cfg: Augment,
    batch_size: int,
    *,
    context_length: int,
    seed: int,
    workers: int | None = None,
) -> grain.DatasetIterator:
    """Endless batches ``{"images", "tokens", "ids"}``.

    An epoch is a permutation of the pictures, drawn from the seed and the epoch's number; batches go on over its end.
    Each example has a generator of its own, from the seed and its place in the run, so that neither workers nor a
    restart change it: ``get_state`` and ``set_state`` of the iterator are a position, of any number of workers.

    Args:
        captions: Pictures and texts.
        pixels: Size, filter and conversion to RGB.
        cfg: Augmentation.
        batch_size: Of all processes together; each reads its part.
        context_length: Tokens of a text.
        seed: Of the order and the augmentation.
        workers: Processes that decode; 0 decodes in threads; None is :func:`jaxclip.loader.default_workers`.

    Raises:
        InputError: There are fewer pictures than a batch has; or, later, a picture cannot be decoded.
    """
    _tokens("", context_length)  # threads that race into transformers' lazy imports break them
    load = functools.partial(_captioned, captions, pixels, cfg, context_length)
    return _batches(captions.source, load, batch_size, seed, workers)


def check_batches(source: Source, batch_size: int, workers: int | None) -> None:
    """Raises an InputError where a source has no such batches; for those who have work to do before."""
    processes = jax.process_count()
    if batch_size < 1 or batch_size % processes:
        raise InputError(f"batch size is {batch_size}: it must be a positive multiple of the {processes} processes")
    if len(source) < batch_size:
        raise InputError(
            f"{source.name} has {len(source)} pictures, fewer than a batch of {batch_size}: take a smaller"
        )
    if workers is not None and workers < 0:
        raise InputError(f"workers is {workers}: it must be 0 (threads) or more")


def _batches(
    source: Source,
    load: Callable[[int, np.random.Generator], dict[str, Any]],
    batch_size: int,
    seed: int,
    workers: int | None,
) -> grain.DatasetIterator:
    check_batches(source, batch_size, workers)
    processes = jax.process_count()
    workers = default_workers(len(source)) if workers is None else workers
    examples = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat(_EPOCHS).random_map(load)
    batches = examples[jax.process_index() :: processes].batch(batch_size // processes, batch_fn=_collate)
    return _Batches(source.name, batches, workers)


class _Batches(grain.DatasetIterator):
    """Batches whose position is their number: those of Grain's own iterators differ with the number of workers."""

    def __init__(self, name: str, batches: grain.MapDataset, workers: int):
        super().__init__()
        self._name, self._batches, self._workers = name, batches, workers
        self._done = 0
        self._rest: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, Any]:
        starting: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self._rest is None:
            self._rest = _read(self._batches[self._done :], self._workers)
            starting = hidden_main() if self._workers else starting
        with starting, deaths_named(self._name):
            batch = next(self._rest)
        self._done += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._done}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stop()
        self._done = state["next_index"]

    def close(self) -> None:
        super().close()
        self._stop()

    def _stop(self) -> None:
        if self._rest is not None:
            self._rest.close()
            self._rest = None


def _read(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    if workers:
        return iter(in_workers(batches, workers))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=min(cores(), 16), prefetch_buffer_size=4)))


def _picture(
    source: Source, pixels: Preprocess, cfg: Augment, index: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "s s 3"], int, str]:
    name = f"picture {index}"
    try:
        example = source[index]
        name = example.id
        return augment(decode(example.image_bytes), pixels, cfg, rng), example.label, name
    except (InputError, OSError) as error:
        raise InputError(f"{source.name}: {name} cannot be trained on: {reason(error)}") from None


def _labelled(source: Source, pixels: Preprocess, cfg: Augment, index: int, rng: np.random.Generator) -> dict[str, Any]:
    image, label, name = _picture(source, pixels, cfg, int(index), rng)
    if label < 0:
        raise InputError(f"{source.name}: {name} has no label")
    return {"images": image, "labels": np.int32(label), "ids": name}


def _captioned(
    captions: Captions, pixels: Preprocess, cfg: Augment, context_length: int, index: int, rng: np.random.Generator
) -> dict[str, Any]:
    image, _, name = _picture(captions.source, pixels, cfg, int(index), rng)
    return {"images": image, "tokens": _tokens(captions.texts[int(index)], context_length), "ids": name}


def _tokens(text: str, context_length: int) -> Int[np.ndarray, " t"]:
    return _tokenizer(context_length)(text)[0]


_tokenizer = functools.cache(load_tokenizer)


def _collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: np.stack([e[name] for e in examples]) for name in examples[0] if name != "ids"}
    return batch | {"ids": np.array([e["ids"] for e in examples])}


# --- captions --------------------------------------------------------------------------------------------------------


def open_captions(spec: str | os.PathLike, images: str | os.PathLike | None = None) -> Captions:
    """Opens image-caption data.

    Args:
        spec: A ``.csv`` (or ``.tsv``) with columns ``path`` and ``caption`` (or open_clip's ``filepath`` and
            ``title``); WebDataset shards (``shards/{000..099}.tar``) with ``KEY.jpg`` and ``KEY.txt``; or the ``.json``
            of ImageNet-Captions (Fang et al. 2022): a list of objects with ``filename``, ``wnid``, ``title``,
            ``description`` and ``tags``, whose caption is title, description and tags, joined.
        images: The folder that paths start from: for ImageNet-Captions ImageNet's training folder, with a folder for
            each WNID. None is the folder that the file is in.

    Raises:
        InputError: The file or a picture is missing, or the file is not as above.
    """
    spec = os.fspath(spec)
    if spec.endswith(".tar"):
        return _tar_captions(spec)
    path = Path(spec)
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _imagenet_captions}
    if path.suffix not in readers:
        raise InputError(f"{path} is no image-caption data: a .csv, .tsv, ImageNet-Captions' .json, or .tar shards")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    root = path.parent if images is None else Path(images)
    rows = readers[path.suffix](path)
    if not rows:
        raise InputError(f"{path} has no captions")
    sizes = []
    for number, (name, _) in enumerate(rows, 1):
        picture = os.path.join(root, name)  # noqa: PTH118 (many files)
        try:
            found = os.stat(picture)  # noqa: PTH116 (many files)
        except (OSError, ValueError):
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise InputError(
                f"{path}, caption {number}: there is no picture {picture!r}: name the pictures' folder by --images"
            )
        sizes.append(found.st_size)
    n = len(rows)
    source = FileSource(
        path.name,
        (),
        tuple(name for name, _ in rows),
        np.full(n, -1),
        (root,),
        None,
        np.zeros(n, np.int64),
        np.array(sizes, np.int64),
    )
    return Captions(source, tuple(text for _, text in rows))


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            columns = table.fieldnames or []
            for names in (("path", "caption"), ("filepath", "title")):
                if set(names) <= set(columns):
                    rows = [(row[names[0]], row[names[1]]) for row in table]
                    if any(None in row for row in rows):
                        raise InputError(f"{path}: a line has fewer columns than the first")
                    return rows
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not in UTF-8 ({error}): save it so") from None
        except csv.Error as error:
            raise InputError(f"{path}, line {table.reader.line_num}: {error}: is a quotation mark missing?") from None
    found = f"has columns {', '.join(columns)}" if columns else "names no columns in its first line"
    raise InputError(f"{path} {found}: it needs path and caption, or filepath and title")


def _imagenet_captions(path: Path) -> list[tuple[str, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = []
        for entry in entries:
            parts = [entry.get("title"), entry.get("description"), " ".join(entry.get("tags") or ())]
            rows.append((f"{entry['wnid']}/{entry['filename']}", " ".join(part for part in parts if part)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not ImageNet-Captions' list of filename, wnid, title, …: {error!r}") from None
    return rows


def _tar_captions(spec: str) -> Captions:
    paths, rows, texts = matching(spec), [], []
    with progress("indexing", None) as advance:
        for number, path in enumerate(paths):
            if not path.is_file():
                raise InputError(f"there is no file {path}")
            with path.open("rb") as file:
                members = list(members_of(file, number, path))
                captions = {sample_key(m.name): m for m in members if m.name.endswith(".txt")}
                for member in filter(lambda m: is_picture(m.name), members):
                    if (text := captions.get(sample_key(member.name))) is None:
                        raise InputError(f"{path}: {member.name} has no caption {sample_key(member.name)}.txt")
                    file.seek(text.start)
                    texts.append(file.read(text.size).decode(errors="replace").strip())
                    rows.append(member)
                    advance(1)
    if not rows:
        raise InputError(f"{spec} has no pictures")
    return Captions(from_members(paths, rows, np.full(len(rows), -1)), tuple(texts))
