"""Checks on inputs, and the walk over row blocks that lets a kernel read more rows than fit in memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclip.errors import InputError
from jaxclip.machine import cores

BLOCK = 4096
"""Rows that go through a kernel at once: enough for full matrix-multiply speed, and 16 MB at 1,024 features."""

EXACT = lax.Precision.HIGHEST
"""For every matrix multiply of the analyses: true float32, where accelerators would otherwise round to fewer bits."""


T = TypeVar("T")
R = TypeVar("R")


class AnyArray(Protocol):
    """What functions take: arrays of numpy (memory maps too) and of JAX, and what :func:`jaxclip.open_store` gives."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype: ...  # noqa: D102

    def __getitem__(self, rows: Any, /) -> Any: ...


def matrix(name: str, x: Any, columns: int | None = None) -> Any:
    """``x`` itself (numpy, memory map or JAX; else what numpy makes of it), once known to be a non-empty real matrix.

    Raises:
        InputError: It is not, or has not ``columns`` columns, or it is traced (``jit``, ``grad``, ``vmap``).
    """
    if isinstance(x, jax.core.Tracer):
        raise InputError(f"{name} is traced, and the analyses look at values: call them outside of jit, grad and vmap")
    if not isinstance(getattr(x, "dtype", None), np.dtype):  # a list, a table, a tensor of PyTorch
        x = np.asarray(x)
    if len(x.shape) != 2 or 0 in x.shape:
        raise InputError(f"{name} has shape {tuple(x.shape)}: give a matrix with at least one row and one column")
    if columns is not None and x.shape[1] != columns:
        raise InputError(f"{name} has {x.shape[1]} columns where {columns} are needed")
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise InputError(f"{name} holds {x.dtype}, not real numbers")
    return x


def blocks(name: str, x: Any) -> Iterator[tuple[slice, Float[Array, "b d"]]]:
    """The rows of a :func:`matrix`, ``BLOCK`` at a time, on the device as float32 and known to be finite.

    Raises:
        InputError: A row has a NaN or an infinity; the message names the first.
    """
    for rows in row_slices(x):
        block = jnp.asarray(x[rows], jnp.float32)
        check_finite(name, block, rows.start)
        yield rows, block


def row_slices(x: Any) -> list[slice]:
    """The rows of ``x`` in pieces of ``BLOCK``."""
    count = x.shape[0]
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def for_jit(x: Any) -> Any:
    """``x``, but as float32 what ``jit`` would cut or misread: whole numbers of 64 bits, another byte order.

    Wider floats, which it does not know, too.
    """
    taken = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.isnative and x.dtype.itemsize <= 8
    return x if taken else jnp.asarray(x, jnp.float32)


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``function`` of each item, in order; on a CPU several at once, since XLA runs most operations on one core."""
    workers = min(cores(), 16) if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)


def take(values: Array, indices: Int[Array, "..."]) -> Array:
    """``values[indices]`` without the check of bounds, or of a sign."""
    return values.at[indices].get(mode="promise_in_bounds", wrap_negative_indices=False)


def check_finite(name: str, x: Float[Array, "n d"], first_row: int = 0) -> None:
    """Raises InputError that names the first row with a NaN or an infinity; ``first_row`` is the number of row 0."""
    if not all_finite(x):
        row = int(np.flatnonzero(~np.isfinite(np.asarray(x)).all(1))[0])
        raise InputError(f"{name}: row {first_row + row} has a NaN or infinite value; mend or leave out that row")


@jax.jit
def all_finite(x: Float[Array, "n d"]) -> Bool[Array, ""]:
    """Whether no number is NaN or infinite."""
    return jnp.isfinite((x * 0).sum(0)).all()  # 0 · x is NaN else; a maximum of XLA's on a CPU passes over NaN
