"""Linear CKA against a direct float64 computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclip.analysis import LinearCKA, linear_cka
from jaxclip.errors import InputError

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def direct(a: np.ndarray, b: np.ndarray) -> float:
    """By Gram matrices over the images, as Kornblith et al. define it: another way than the one under test."""
    a, b = (x - x.mean(0) for x in (a.astype(np.float64), b.astype(np.float64)))
    k, m = a @ a.T, b @ b.T
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def pair(seed: int, n: int = 60, p: int = 12, q: int = 9) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a = random.standard_normal((n, p)).astype(np.float32)
    return a, (a @ random.standard_normal((p, q)) + 2 * random.standard_normal((n, q))).astype(np.float32)


@pytest.mark.parametrize("offset", [0, 1e3, 1e5])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_cka_is_the_direct_one(offset, scale):
    """Badly conditioned input (means far from 0) keeps the digits: uncentred float32 moments would lose all of them."""
    a, b = pair(0, n=500)
    a = np.float32(a * scale + offset * scale)
    assert linear_cka(a, b) == pytest.approx(direct(a, b), abs=1e-5)


def test_a_mean_that_float32_does_not_have():
    """From 2**24 on it has even numbers alone: what the centre is off by would be variance that all columns share."""
    random = np.random.default_rng(0)
    a = np.float32(2**24 + 2 * random.integers(0, 3, (200, 5)))
    b = np.float32(a[:, :3] - 2**24 + random.standard_normal((200, 3)))
    assert linear_cka(a, b) == pytest.approx(direct(a, b), abs=1e-6)


def test_many_blocks_with_drifting_means():
    """A mean that moves from block to block is between-block variance: merging must add it."""
    random = np.random.default_rng(1)
    a = random.standard_normal((10_000, 4)).astype(np.float32) + np.linspace(0, 300, 10_000, dtype=np.float32)[:, None]
    b = np.float32(a[:, :2] ** 2 / 300 + random.standard_normal((10_000, 2)))
    centred = [x - x.mean(0) for x in (a.astype(np.float64), b.astype(np.float64))]
    norms = [np.linalg.norm(centred[i].T @ centred[j]) for i, j in ((0, 1), (0, 0), (1, 1))]
    assert linear_cka(a, b) == pytest.approx(norms[0] ** 2 / norms[1] / norms[2], abs=1e-6)


@few
@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_cka_is_blind_to_rotation_scale_shift_and_order(seed, scale, shift):
    """The invariances that make CKA a similarity of representations; and it is symmetric and at most 1."""
    a, b = pair(seed)
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.standard_normal((12, 12)))[0]
    order = random.permutation(60)
    found = linear_cka(a, b)
    assert 0 <= found <= 1 + 1e-6
    changed = (scale * a @ rotation + shift).astype(np.float32)
    assert linear_cka(changed[order], b[order]) == pytest.approx(found, abs=1e-4)
    assert linear_cka(b, a) == pytest.approx(found, abs=1e-6)
    assert linear_cka(a, changed) == pytest.approx(1, abs=1e-5)


@few
@given(seeds, st.permutations(range(3)))
def test_merge_order_changes_nothing(seed, order):
    """Shards merged in any order, an empty one among them, give what all rows give at once."""
    a, b = pair(seed)
    empty = LinearCKA.empty(12, 9)
    parts = [empty.update(a[i], b[i]) for i in (slice(0, 20), slice(20, 40), slice(40, 60))]
    merged = empty
    for i in order:
        merged = merged.merge(parts[i])
    assert merged.images == 60
    assert merged.result() == pytest.approx(linear_cka(a, b), abs=1e-6)


def test_nothing_varies():
    """One image, or the same row throughout, has no similarity: NaN, not 0 or 1."""
    a, b = pair(2)
    assert np.isnan(linear_cka(a[:1], b[:1]))
    constant = np.full((60, 3), 0.1, np.float32)
    assert np.isnan(linear_cka(constant, b)) and np.isnan(linear_cka(b, constant))
    assert linear_cka(a[:, :1], a[:, :1] * -3) == pytest.approx(1, abs=1e-6)


def test_bad_input():
    """Each mistake is one clear error that names the row or the widths."""
    a, b = pair(3)
    with pytest.raises(InputError, match="b: row 41"):
        linear_cka(a, np.where(np.arange(60)[:, None] == 41, np.nan, b))
    with pytest.raises(InputError, match="60 rows and b has 59"):
        linear_cka(a, b[:-1])
    with pytest.raises(InputError, match="12 columns where 9"):
        LinearCKA.empty(9, 9).update(a, b)
    with pytest.raises(InputError, match="differ"):
        LinearCKA.empty(9, 9).merge(LinearCKA.empty(9, 8))
