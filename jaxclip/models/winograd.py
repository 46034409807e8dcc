"""3x3 convolutions with 16 products where the definition has 36: F(2x2, 3x3) of Lavin and Gray (2016, 4.1).

Each 4x4 tile of the picture gives a 2x2 tile of the output. Tiles and kernel are transformed by sums and halves, which
costs about one bit of float32's accuracy; then channels are summed by 16 matrix products; then the inverse transform.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

WIDE = 128
"""From so many channels on, the products saved outweigh the transforms (on a CPU, ``benchmarks/NOTES.md``)."""


def conv3x3(x: Float[Array, "n H W c"], kernel: Float[Array, "3 3 c e"]) -> Float[Array, "n H W e"]:
    """The convolution of stride 1, padded by 1 on every side."""
    n, height, width, c = x.shape
    rows, columns = -(-height // 2), -(-width // 2)  # of tiles
    x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)))
    # Bᵀ d B, G g Gᵀ and Aᵀ m A of the paper, one axis after the other.
    halves = _tile([x[:, i : i + 2 * rows - 1 : 2] for i in range(4)])
    tiles = [_tile([half[:, :, j : j + 2 * columns - 1 : 2] for j in range(4)]) for half in halves]
    filters = [_filter([g[0], g[1], g[2]]) for g in _filter([kernel[0], kernel[1], kernel[2]])]
    products = [
        [(d.reshape(-1, c) @ g).reshape(n, rows, columns, -1) for d, g in zip(*pair, strict=True)]
        for pair in zip(tiles, filters, strict=True)
    ]
    across = [_output(m) for m in products]
    down = [_output([row[j] for row in across]) for j in range(2)]  # down[j][i] is pixel (i, j) of each tile
    out = jnp.stack([jnp.stack([down[j][i] for j in range(2)], axis=3) for i in range(2)], axis=2)
    return out.reshape(n, 2 * rows, 2 * columns, -1)[:, :height, :width]


def _tile(d: list[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _filter(g: list[Array]) -> list[Array]:
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _output(m: list[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
