"""How alike two representations of the same images are: linear CKA, in one pass over the images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxclip.analysis.rows import EXACT, AnyArray, blocks, matrix
from jaxclip.errors import InputError


def linear_cka(a: Float[AnyArray, "n p"], b: Float[AnyArray, "n q"]) -> float:
    """Linear centred kernel alignment: ‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖) in Frobenius norms, A and B with column means removed.

    1 when the two differ by a rotation, a scale and a shift; near 0 (about √(pq)/n for noise) when unrelated.

    Args:
        a: Representations by one model; row i of both is the same image.
        b: Representations by another; the widths may differ.

    Returns:
        Between 0 and 1; NaN where one of the two does not vary (n = 1, or the same row throughout).

    Raises:
        InputError: The numbers of rows differ, or a row has a NaN or an infinity (the message names it).

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equation 6 with linear
        kernels.
    """
    a, b = matrix("a", a), matrix("b", b)
    return LinearCKA.empty(a.shape[1], b.shape[1]).update(a, b).result()


@dataclasses.dataclass(frozen=True)
class LinearCKA:
    """Running linear CKA, for representations that are streamed or sharded: ``update``, ``merge``, ``result``.

    Each block of rows is centred on its own mean before its products are taken in float32, and blocks are joined in
    float64 on the host, so that a mean far from 0 costs no digits: with means 1,000 standard deviations from 0 the
    result is within 1e-5 of a float64 computation. The state has p² + pq + q² numbers, whatever the number of images.

    Attributes:
        images: Rows seen.
        mean_a: Column means [p].
        mean_b: Column means [q].
        aa: Σ (a − mean)(a − mean)ᵀ over the rows [p, p].
        ab: The same of a with b [p, q].
        bb: The same of b [q, q].
    """

    images: int
    mean_a: Float[np.ndarray, " p"]
    mean_b: Float[np.ndarray, " q"]
    aa: Float[np.ndarray, "p p"]
    ab: Float[np.ndarray, "p q"]
    bb: Float[np.ndarray, "q q"]

    @classmethod
    def empty(cls, p: int, q: int) -> "LinearCKA":
        """No image yet, of representations with ``p`` and ``q`` features."""
        return cls(0, np.zeros(p), np.zeros(q), np.zeros((p, p)), np.zeros((p, q)), np.zeros((q, q)))

    def update(self, a: Float[AnyArray, "n p"], b: Float[AnyArray, "n q"]) -> "LinearCKA":
        """With the rows of ``a`` and ``b`` added; row i of both is the same image.

        Raises:
            InputError: As :func:`linear_cka`; or a width differs from the state's.
        """
        a, b = matrix("a", a, len(self.mean_a)), matrix("b", b, len(self.mean_b))
        if a.shape[0] != b.shape[0]:
            raise InputError(f"a has {a.shape[0]} rows and b has {b.shape[0]}: give both for the same images")
        state = self
        for (rows, block_a), (_, block_b) in zip(blocks("a", a), blocks("b", b), strict=True):
            parts = [np.asarray(part, np.float64) for part in jax.device_get(_moments(block_a, block_b))]
            unit_a, unit_b, centre_a, centre_b, rest_a, rest_b, aa, ab, bb = parts
            n = rows.stop - rows.start
            # The float32 centre is off by ``rest``; what that adds to the products is taken off again.
            aa, ab, bb = (
                product - n * np.outer(left, right)
                for product, left, right in ((aa, rest_a, rest_a), (ab, rest_a, rest_b), (bb, rest_b, rest_b))
            )
            aa, ab, bb = aa * unit_a**2, ab * (unit_a * unit_b), bb * unit_b**2
            means = centre_a + rest_a * unit_a, centre_b + rest_b * unit_b
            state = state.merge(LinearCKA(n, *means, aa, ab, bb))
        return state

    def merge(self, other: "LinearCKA") -> "LinearCKA":
        """Both together, as if one had seen the rows of both (Chan, Golub and LeVeque 1983).

        Raises:
            InputError: They differ in number of features.
        """
        if self.ab.shape != other.ab.shape:
            raise InputError("merge: the two states differ in number of features")
        images = self.images + other.images
        weight = other.images / max(images, 1)
        gap_a, gap_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        scale = self.images * weight
        return LinearCKA(
            images,
            self.mean_a + weight * gap_a,
            self.mean_b + weight * gap_b,
            self.aa + other.aa + scale * np.outer(gap_a, gap_a),
            self.ab + other.ab + scale * np.outer(gap_a, gap_b),
            self.bb + other.bb + scale * np.outer(gap_b, gap_b),
        )

    def result(self) -> float:
        """The CKA of all rows so far; NaN where one of the two does not vary."""
        aa, ab, bb = (float(np.linalg.norm(product)) for product in (self.aa, self.ab, self.bb))
        return ab / aa * (ab / bb) if aa > 0 and bb > 0 else float("nan")


@jax.jit
def _moments(a: Float[Array, "b p"], b: Float[Array, "b q"]) -> tuple[Any, ...]:
    def centre(x: Array) -> tuple[Array, Array, Array]:
        shift = x[0]  # exact where a column does not vary, so that its products are exactly 0
        shift = shift + (x - shift).mean(0)
        x = x - shift
        power = jnp.frexp(jnp.abs(x).max())[1]  # in this unit products neither over- nor underflow
        return jnp.ldexp(jnp.float32(1), power), shift, jnp.ldexp(x, -power)

    def product(x: Array, y: Array) -> Array:
        return jnp.matmul(x.T, y, precision=EXACT)

    (unit_a, centre_a, a), (unit_b, centre_b, b) = centre(a), centre(b)
    return unit_a, unit_b, centre_a, centre_b, a.mean(0), b.mean(0), product(a, a), product(a, b), product(b, b)
