"""3x3 convolutions with 16 products where the definition has 36: F(2x2, 3x3) of Lavin and Gray (2016, 4.1).

Each 4x4 tile of the picture gives a 2x2 tile of the output. Tiles and kernel are transformed by sums and halves, which
costs about one bit of float32's accuracy; then channels are summed by 16 matrix products; then the inverse transform.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

WIDE = 128
"""From so many channels on, the products saved outweigh the transforms (on a CPU, ``benchmarks/NOTES.md``)."""


def conv3x3(x: Float[Array, "n H W c"], kernel: Float[Array, "3 3 c e"]) -> Float[Array, "n H W e"]:
    """The convolution of stride 1, padded by 1 on every side."""
    return _convolve(x, _twice(_filter, [[kernel[i, j] for j in range(3)] for i in range(3)]))


def picture_gradient(kernel: Float[Array, "3 3 c e"], gradient: Float[Array, "n H W e"]) -> Float[Array, "n H W c"]:
    """The gradient of :func:`conv3x3`'s picture, from that of its output: the convolution with the kernel turned."""
    # Transposed here, after the filter's transform, it is the product that reads its operand the other way.
    filters = _twice(_filter, [[kernel[2 - i, 2 - j] for j in range(3)] for i in range(3)])
    return _convolve(gradient, [[g.T for g in row] for row in filters])


def _convolve(x: Float[Array, "n H W c"], filters: list[list[Float[Array, "c e"]]]) -> Float[Array, "n H W e"]:
    n, height, width, c = x.shape
    products = [
        [(d.reshape(-1, c) @ g).reshape(*d.shape[:3], -1) for d, g in zip(*pair, strict=True)]
        for pair in zip(_tiles(x), filters, strict=True)
    ]
    (out00, out01), (out10, out11) = _twice(_output, products)  # the pixels of each 2x2 tile
    out = jnp.stack([jnp.stack([out00, out01], axis=3), jnp.stack([out10, out11], axis=3)], axis=2)
    return out.reshape(n, 2 * out.shape[1], 2 * out.shape[3], -1)[:, :height, :width]


def _tiles(x: Float[Array, "n H W c"]) -> list[list[Float[Array, "n H/2 W/2 c"]]]:
    """Bᵀ d B of the paper: the pixels of every transformed 4x4 tile."""
    _, height, width, _ = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)))
    # One axis after the other: the first is transformed for whole rows of pixels, of which tiles share half.
    halves = _tile([x[:, i : i + 2 * rows - 1 : 2] for i in range(4)])
    return [_tile([half[:, :, j : j + 2 * columns - 1 : 2] for j in range(4)]) for half in halves]


def _twice(transform: Callable[[list[Array]], list[Array]], square: list[list[Array]]) -> list[list[Array]]:
    """A square of arrays, transformed along its rows and then along its columns."""
    columns = zip(*(transform(row) for row in square), strict=True)
    return [list(row) for row in zip(*(transform(list(column)) for column in columns), strict=True)]


def _tile(d: list[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _filter(g: list[Array]) -> list[Array]:
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _output(m: list[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
