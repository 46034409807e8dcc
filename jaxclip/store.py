"""Representations on disk: content-addressed folders of Parquet shards with a manifest.

``STORE/KEY/`` holds ``00000.parquet``, ``00001.parquet``, … and ``manifest.json``. KEY is the SHA-256 of all that
decides the contents (:func:`identity`), so that the same request finds what is there and a changed model does not. A
row is a picture: ``index`` (its place in the data set), ``id``, ``label`` and ``representation`` (a list of d floats).

Parquet, because a shard is then one file, which is renamed into place whole and has one digest, with ids, labels and
representations of the same pictures in it, and because pandas, Polars, DuckDB and ``datasets`` read it. (Zarr would
spread a shard over several files and has no strings in TensorStore; ArrayRecord holds bytes whose layout would be our
own.) Pages are neither compressed, which gains nothing on floats, nor nullable: they are read from a memory map.

While a store is being written, ``00000.json`` beside each shard has its entry of the manifest to be.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

import jaxclip
from jaxclip import checkpoint
from jaxclip.config import check_batch_size
from jaxclip.datasets import Source
from jaxclip.errors import InputError
from jaxclip.files import new_file
from jaxclip.loader import BadImage
from jaxclip.model import Model

MANIFEST = "manifest.json"
SHARD_ROWS = 2048
STORE_DTYPES = ("float32", "float16")
_KEYS = ("identity", "model", "data", "n", "d", "shards")
_SHARD_KEYS = ("sha256", "rows", "rounding", "bad_images")


def identity(model: Model, source: Source, store_dtype: str = "float32") -> dict[str, Any]:
    """All that decides what is in a store: digests of model and data, preprocessing, types, version, layout."""
    return {
        "model": model_digest(model),
        "data": source.fingerprint(),
        "preprocess": dataclasses.asdict(model.config.preprocess),
        "dtype": str(model.dtype),
        "store_dtype": store_dtype,
        "shard_rows": SHARD_ROWS,
        "jaxclip": jaxclip.__version__,
    }


def key_of(what: Any) -> str:
    """The SHA-256 of something's JSON: of an :func:`identity`, the name of its folder in a store."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def model_digest(model: Model) -> str:
    """SHA-256 of the architecture and of every parameter's name, shape and bytes.

    The same for the same weights wherever they lie: neither the name, the source nor Orbax's files (which differ each
    time they are written) are in it. About a second for each GB, over
    the number of cores.
    """
    config = {name: value for name, value in model.config.to_json().items() if name not in ("name", "source")}
    state = hashlib.sha256(json.dumps(config, sort_keys=True).encode())

    def of_one(name: str, leaf: Any) -> bytes:
        array = np.ascontiguousarray(leaf)
        part = hashlib.sha256(f"{name} {array.dtype} {array.shape}".encode())
        part.update(array.data)
        return part.digest()

    with ThreadPoolExecutor() as pool:
        for part in pool.map(of_one, *zip(*sorted(checkpoint.named(model.params).items()), strict=True)):
            state.update(part)
    return state.hexdigest()


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Representations:
    """A finished store: a matrix [n, d] on disk, read a shard at a time, with the label and id of each row.

    The analyses take it in place of an array. A shard is checked against its digest when it is first read.

    Attributes:
        folder: Where it is.
        manifest: What it is, see ``manifest.json``.
    """

    folder: Path
    manifest: dict[str, Any]
    _checked: set[int] = dataclasses.field(default_factory=set)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d): pictures that could be decoded, and features."""
        return self.manifest["n"], self.manifest["d"]

    @property
    def dtype(self) -> np.dtype:
        """``float32`` or ``float16``."""
        return np.dtype(self.manifest["identity"]["store_dtype"])

    @property
    def name(self) -> str:
        """The data set's."""
        return self.manifest["data"]["name"]

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels index."""
        return tuple(self.manifest["data"]["classes"])

    @property
    def bad_images(self) -> tuple[BadImage, ...]:
        """The pictures that could not be decoded, which have no row."""
        return tuple(BadImage(**bad) for shard in self.manifest["shards"] for bad in shard["bad_images"])

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Of each row; -1 where a picture has none."""
        return self._column("label")

    @functools.cached_property
    def indices(self) -> Int[np.ndarray, " n"]:
        """The place of each row's picture in the data set."""
        return self._column("index")

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The data set's name of each row's picture."""
        return tuple(itertools.chain.from_iterable(self._table(k, "id")["id"].to_pylist() for k in self._shards))

    def __len__(self) -> int:
        return self.manifest["n"]

    def __repr__(self) -> str:
        n, d = self.shape
        return f"Representations({n} x {d}, {self.manifest['model']['name']} on {self.name}, {self.folder})"

    def __getitem__(self, rows: int | slice | Sequence[int] | Int[np.ndarray, " m"]) -> Float[np.ndarray, "*m d"]:
        """The given rows, or one: only the shards that they lie in are read, one after the other.

        ``[rows, ...]`` is the same: so scikit-learn takes the rows of a split.
        """
        if isinstance(rows, tuple) and len(rows) == 2 and rows[1] is Ellipsis:
            rows = rows[0]
        if isinstance(rows, tuple):
            raise InputError("a store is indexed by rows: take the columns from what it gives")
        places = np.arange(len(self))[rows]
        if places.ndim > 1:
            raise InputError("a store is indexed by rows: by one number, a slice, or a list of numbers")
        if places.ndim == 0:
            return self[[int(places)]][0]
        out = np.empty((len(places), self.shape[1]), self.dtype)
        shard = np.searchsorted(self._starts, places, side="right") - 1
        for k in np.unique(shard):
            here = shard == k
            out[here] = self._matrix(int(k))[places[here] - self._starts[k]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def batches(self, size: int) -> Iterator[tuple[slice, Float[np.ndarray, "b d"]]]:
        """The rows in order, ``size`` at a time (the last ones fewer), with their places.

        One shard at most is in memory beside the batch.

        Raises:
            InputError: ``size`` is below 1.
        """
        check_batch_size(size)
        rest = np.empty((0, self.shape[1]), self.dtype)
        start = 0
        for k in self._shards:
            matrix = self._matrix(k)
            while len(rest) + len(matrix) >= size:
                taken = size - len(rest)
                yield slice(start, start + size), np.concatenate([rest, matrix[:taken]])
                start, rest, matrix = start + size, rest[:0], matrix[taken:]
            rest = np.concatenate([rest, matrix])
        if len(rest):
            yield slice(start, start + len(rest)), rest

    @functools.cached_property
    def _starts(self) -> Int[np.ndarray, " k"]:
        return np.cumsum([0] + [shard["rows"] for shard in self.manifest["shards"]])[:-1]

    @property
    def _shards(self) -> range:
        return range(len(self.manifest["shards"]))

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([self._table(k, name)[name].to_numpy() for k in self._shards])

    def _matrix(self, k: int) -> Float[np.ndarray, "r d"]:
        column = self._table(k, "representation")["representation"].combine_chunks()
        return column.flatten().to_numpy().reshape(-1, self.shape[1])

    def _table(self, k: int, column: str) -> pa.Table:
        shard = self.manifest["shards"][k]
        path = shard_path(self.folder, k)
        try:
            mapped = pa.memory_map(str(path)).read_buffer()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}): {_MEND}") from error
        if k not in self._checked and hashlib.sha256(mapped).hexdigest() != shard["sha256"]:
            raise InputError(f"{path} is corrupt (its SHA-256 is not the manifest's): {_MEND}")
        self._checked.add(k)
        return pq.read_table(pa.BufferReader(mapped), columns=[column], use_threads=False)


_MEND = "the same `jaxclip embed` again computes this shard, and no other"


def open_store(path: str | os.PathLike, key: str = "") -> Representations:
    """Opens the representations in a store.

    Args:
        path: The store, or the folder of one key in it.
        key: Which, where there are several: the key or its first letters.

    Raises:
        InputError: There is no such store or key, there are several (the message lists them), or it is not finished.
    """
    path = Path(path)
    folders = (
        [path]
        if (path / MANIFEST).is_file()
        else sorted(f for f in path.glob(f"{key}*") if f.is_dir() and len(f.name) == 64)
    )
    if not folders:
        raise InputError(
            f"{path} has no representations{f' of key {key}' if key else ''}: make them with `jaxclip embed`"
        )
    manifests = {folder: read_json(folder / MANIFEST) for folder in folders}
    if len(folders) > 1:
        several = "; ".join(
            f"{f.name[:12]} ({m['model']['name']} on {m['data']['name']}, stored in {m['identity']['store_dtype']})"
            if m
            else f"{f.name[:12]} (not finished)"
            for f, m in manifests.items()
        )
        raise InputError(f"{path} has several representations, name one by its key: {several}")
    (folder, manifest), *_ = manifests.items()
    if manifest is None:
        raise InputError(f"{folder} is not finished: the same `jaxclip embed` again goes on with it")
    return Representations(folder, manifest)


def find(store: str | os.PathLike, model: Model, source: Source) -> Representations | None:
    """The finished representations of a data set by a model in a store, float32 rather than float16, if there are.

    Raises:
        InputError: There is no such folder.
    """
    if not Path(store).is_dir():
        raise InputError(f"there is no store {store}: make it with `jaxclip embed`")
    what = identity(model, source)
    for store_dtype in STORE_DTYPES:
        folder = Path(store) / key_of(what | {"store_dtype": store_dtype})
        if manifest := read_json(folder / MANIFEST):
            return Representations(folder, manifest)
    return None


def check_bad(stored: Representations, skip_bad: bool) -> None:
    """Raises an InputError where pictures are missing that could not be decoded, unless they may be."""
    if stored.bad_images and not skip_bad:
        bad = stored.bad_images[0]
        raise InputError(
            f"{stored.folder} lacks {len(stored.bad_images)} pictures of {stored.name} that could not be decoded, the "
            f"first {bad.id} ({bad.reason}): take it as it is with --skip-bad (skip_bad=True), or replace the pictures"
        )


def shard_path(folder: Path, k: int) -> Path:
    """The file of shard k."""
    return folder / f"{k:05}.parquet"


def entry_path(folder: Path, k: int) -> Path:
    """The shard's entry of the manifest, while there is no manifest."""
    return shard_path(folder, k).with_suffix(".json")


def read_json(path: Path) -> dict[str, Any] | None:
    """A manifest, or a shard's entry; None where there is none.

    Raises:
        InputError: It is damaged.
    """
    try:
        content = json.loads(path.read_text())
        is_manifest = path.name == MANIFEST
        if missing := [key for key in (_KEYS if is_manifest else _SHARD_KEYS) if key not in content]:
            raise ValueError(f"{missing[0]!r} is missing")
        if is_manifest and content["n"] != sum(shard["rows"] for shard in content["shards"]):
            raise ValueError("its shards have other numbers of rows than it says")
        return content
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} is corrupt ({error}): remove it, and run the same `jaxclip embed` again") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a manifest, or a shard's entry."""
    with new_file(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")


def write_shard(
    path: Path,
    h: Float[np.ndarray, "r d"],
    labels: Int[np.ndarray, " r"],
    indices: Int[np.ndarray, " r"],
    ids: Sequence[str],
) -> str:
    """Writes a shard, whole or not at all, and returns the SHA-256 of the file: the same rows give the same bytes.

    Args:
        path: The file.
        h: Representations, of the type to be stored.
        labels: Labels of the rows.
        indices: Places of the rows' pictures in the data set.
        ids: Their ids.
    """
    row = pa.list_(pa.field("element", pa.from_numpy_dtype(h.dtype), nullable=False), h.shape[1])
    columns = {
        "index": pa.array(indices, pa.int64()),
        "id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.int32()),
        "representation": pa.FixedSizeListArray.from_arrays(pa.array(h.reshape(-1)), type=row),
    }
    schema = pa.schema([pa.field(name, column.type, nullable=False) for name, column in columns.items()])
    table = pa.table(list(columns.values()), schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False, write_statistics=False)
    with new_file(path, "wb") as file:
        file.write(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
