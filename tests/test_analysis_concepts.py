"""Average precision against scikit-learn, and concept counts against their definition and planted truth."""

import sys

import jax
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from jaxclip.analysis import average_precision, concept_counts
from jaxclip.errors import InputError

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.filterwarnings("ignore:No positive class:UserWarning")


def by_sklearn(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    return np.array([[average_precision_score(y, s) for y in labels.T] for s in scores.T])


def problem(seed: int, n: int, d: int, c: int, ties: str = "none") -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((n, d)).astype(np.float32)
    if ties == "some":
        scores = np.round(scores, 1)
    elif ties == "all":
        scores[:] = 0.3
    elif ties == "relu":
        scores = np.maximum(scores, 0) * np.where(random.random((n, d)) < 0.5, -0.0, 1.0).astype(np.float32)
    random = np.random.default_rng(seed)  # the same labels whatever the ties: one compilation for all
    return scores, random.random((n, c)) < random.uniform(0, 0.6, c)


@pytest.mark.parametrize("ties", ["none", "some", "all", "relu"])
@pytest.mark.parametrize("n", [1, 31, 128, 700])
def test_average_precision_is_sklearn_s(n, ties):
    """Every pair equals scikit-learn, with ties (also of 0.0 and -0.0), none and all positive, at bitmap edges."""
    scores, labels = problem(0, n, 11, 9, ties)
    labels[:, 0], labels[:, 1] = False, True
    labels[:, 2] = np.arange(n) == n // 2
    np.testing.assert_allclose(average_precision(scores, labels), by_sklearn(scores, labels), atol=1e-6)


def test_tiny_and_huge_scores():
    """Order is that of the numbers over float32's whole range: subnormal scores must not fall together as zero."""
    scores = np.float32(np.geomspace(1e-44, 3e38, 64) * np.where(np.arange(64) % 2, 1, -1))[:, None]
    labels = np.random.default_rng(0).random((64, 5)) < 0.3
    ranks = np.argsort(np.argsort(scores.astype(np.float64)[:, 0])).astype(np.float32)[:, None]
    np.testing.assert_allclose(average_precision(scores, labels), by_sklearn(ranks, labels), atol=1e-6)


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "coo_array", "lil_array"])
def test_sparse_labels_are_dense_labels(form):
    """The form of the labels changes nothing, stored zeros are no positives, the caller's labels stay as they are."""
    scores, labels = problem(1, 128, 11, 9)
    sparse = getattr(scipy.sparse, form)(labels.astype(int))
    np.testing.assert_array_equal(average_precision(scores, sparse), average_precision(scores, labels))
    stored_zero = scipy.sparse.coo_matrix(([1, 0], ([3, 4], [0, 0])), shape=(128, 9))
    single = np.zeros((128, 9), bool)
    single[3, 0] = True
    for same in (stored_zero, stored_zero.tocsc()):
        np.testing.assert_array_equal(average_precision(scores, same), average_precision(scores, single))
        assert same.nnz == 2 and same.data.tolist() == [1, 0]


@few
@given(seeds)
def test_average_precision_depends_on_order_alone(seed):
    """A rising map of the scores changes nothing, and neither does a permutation of the images."""
    scores = problem(seed, 128, 11, 9, "some")[0]
    labels = scipy.sparse.csc_array(problem(0, 128, 11, 9)[1])  # the same for all examples: one compilation
    found = average_precision(scores, labels)
    np.testing.assert_array_equal(average_precision(np.exp(scores / 2) - 3, labels), found)
    order = np.random.default_rng(seed).permutation(128)
    np.testing.assert_allclose(average_precision(scores[order], labels[order]), found, atol=1e-6)


@pytest.mark.parametrize("table", [300, 1])
def test_memory_pieces_change_nothing(table, monkeypatch):
    """Concepts that do not fit into memory at once go through in pieces, of at least one concept, with one result."""
    scores, labels = problem(2, 128, 11, 9)
    whole = average_precision(scores, labels)
    monkeypatch.setattr(sys.modules["jaxclip.analysis.average_precision"], "_TABLE", table)
    np.testing.assert_array_equal(average_precision(scores, labels), whole)


def test_more_images_than_are_counted_exactly_are_refused():
    """Running counts are float32, which has every whole number below 2**24 and not all above."""
    labels = scipy.sparse.coo_array(([True], ([5], [0])), shape=(2**24, 1))
    with pytest.raises(InputError, match="exactly up to 16,777,215 images"):
        average_precision(np.zeros((2**24, 1), np.float32), labels)


def test_bad_input_of_average_precision():
    """Each mistake is one clear error that names the row."""
    scores, labels = problem(3, 31, 11, 9)
    with pytest.raises(InputError, match="row 5 has a NaN"):
        average_precision(np.where(np.arange(31)[:, None] == 5, np.nan, scores), labels)
    with pytest.raises(InputError, match=r"shape \(30, 9\).*31 images"):
        average_precision(scores, labels[:-1])
    with pytest.raises(InputError, match=r"row 7 .* neither 0 nor 1"):
        average_precision(scores, np.where(np.arange(31)[:, None] == 7, 2, labels))
    with pytest.raises(InputError, match="neither 0 nor 1"):
        average_precision(scores, np.where(np.arange(31)[:, None] == 7, np.nan, labels))
    with pytest.raises(InputError, match="labels have shape"):
        average_precision(scores, labels[:, 0])


KEY = jax.random.key(0)


@pytest.mark.parametrize("negatives", ["balanced", "all"])
def test_planted_concepts_are_recovered_exactly(negatives):
    """Three planted concepts (one on the negative side, two on one direction) are found where they are, and no other;
    random directions and permuted labels find none.
    """
    random = np.random.default_rng(0)
    h = random.standard_normal((600, 128)).astype(np.float32)
    concepts = random.random((600, 12)) < 0.3
    concepts[:, 4] = concepts[:, 1]
    concepts[:, 10] = np.arange(600) < 5
    concepts[:, 11] = True
    directions = np.linalg.qr(random.standard_normal((128, 128)))[0]
    h += 4.5 * concepts[:, [1]] * directions[3] - 4.5 * concepts[:, [6]] * directions[8]
    done: list[int] = []
    found = concept_counts(h, concepts, directions, negatives=negatives, key=KEY, advance=done.append)
    assert sum(done) == 3 * 128 * 12, "every pair, also of the skipped concepts"
    assert np.argwhere(found.directions.encoded).tolist() == [[3, 1], [3, 4], [8, 6]]
    assert found.directions.unique == 3 and found.directions.polysemanticity == 1.5
    assert found.directions.per_direction[[3, 8]].tolist() == [2, 1]
    assert np.flatnonzero(found.directions.concepts).tolist() == [1, 4, 6]
    assert found.directions.unique_over([0.0, 0.9, 1.1]).tolist() == [10, 3, 0]
    assert [int(found.directions.sign[at]) for at in ((3, 1), (3, 4), (8, 6), (3, 10))] == [1, 1, -1, 0]
    if negatives == "all":
        scores = h @ directions.T
        both = np.stack([average_precision(scores, concepts), average_precision(-scores, concepts)])[:, :, :10]
        np.testing.assert_allclose(found.directions.average_precision[:, :10], both.max(0), atol=1e-4)
        differ = abs(both[0] - both[1]) > 1e-3
        np.testing.assert_array_equal(
            found.directions.sign[:, :10][differ], np.where(both[0] >= both[1], 1, -1)[differ]
        )
    assert found.permuted_labels.unique == 0 and np.isnan(found.permuted_labels.polysemanticity)
    assert found.random_directions.unique == 0
    assert found.skipped == 2 and np.isnan(found.directions.average_precision[:, [10, 11]]).all()
    np.testing.assert_array_equal(found.images, concepts.sum(0))


def test_all_negatives_are_the_better_sign_of_sklearn_s():
    """With all negatives a pair's value is scikit-learn's for the better of the two signs."""
    random = np.random.default_rng(1)
    h, directions = (
        random.standard_normal((200, 6)).astype(np.float32),
        random.standard_normal((9, 6)).astype(np.float32),
    )
    labels = random.random((200, 5)) < 0.2
    done: list[int] = []
    counts = concept_counts(h, labels, directions, negatives="all", key=KEY, min_images=1, advance=done.append)
    found = counts.directions.average_precision
    assert sum(done) == 3 * 9 * 5, "nine directions go through eight at a time: pairs are told twice"
    scores = h @ directions.T
    np.testing.assert_allclose(found, np.maximum(by_sklearn(scores, labels), by_sklearn(-scores, labels)), atol=1e-5)


def test_balanced_negatives_are_a_sample_of_equal_size():
    """A useless score gives about 1/2 however rare the concept is; another key gives another sample, the same key the
    same; where as many others do not exist, all of them count.
    """
    random = np.random.default_rng(2)
    h = random.standard_normal((3000, 8)).astype(np.float32)
    labels = random.random((3000, 5)) < (0.02, 0.05, 0.2, 0.4, 0.97)
    found = [
        concept_counts(h, labels, np.eye(8), key=jax.random.key(k)).directions.average_precision for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][:, :4] != found[2][:, :4]).any(0).all()
    assert np.abs(found[0][:, :4] - 0.5).max() < 0.2
    few_left = found[0][:, 4]  # fewer images without it than with it: all of those count
    full = np.maximum(by_sklearn(h, labels[:, 4:]), by_sklearn(-h, labels[:, 4:]))[:, 0]
    np.testing.assert_allclose(few_left, full, atol=1e-6)


def test_balanced_negatives_are_compared_within_the_sample(monkeypatch):
    """Ranks count the sampled images alone, ties included: checked against scikit-learn on the very sample drawn."""
    from jaxclip.analysis import concepts as module

    drawn = []
    original = module._balanced
    monkeypatch.setattr(module, "_balanced", lambda *a: drawn.append(original(*a)) or drawn[-1])
    random = np.random.default_rng(3)
    h = np.round(random.standard_normal((300, 4)), 1).astype(np.float32)
    labels = random.random((300, 6)) < 0.2
    found = module.concept_counts(h, labels, np.eye(4), key=KEY).directions.average_precision
    sample = drawn[0].toarray()
    assert (sample.sum(0) == labels.sum(0)).all() and not (sample & labels).any()
    for c in range(6):
        some = sample[:, c] | labels[:, c]
        best = np.maximum(by_sklearn(h[some], labels[some, c : c + 1]), by_sklearn(-h[some], labels[some, c : c + 1]))
        np.testing.assert_allclose(found[:, c], best[:, 0], atol=1e-6)


def test_the_least_number_and_the_least_precision_are_enough():
    """A concept in exactly ``min_images`` images is tested, and a precision of exactly the threshold encodes. With one
    feature every random direction is the given one, so random directions find what it finds; permuted labels do not.
    """
    concepts = np.arange(60)[:, None] < (5, 4)
    h = np.where(concepts[:, :1], -1, 1) + np.linspace(0, 0.5, 60, dtype=np.float32)[:, None]
    found = concept_counts(h, concepts, [[1.0]], 1.0, "all", key=KEY, min_images=5)
    none = concept_counts(h, np.pad(concepts, ((0, 0), (0, 1))), [[1.0]], 1.0, "all", key=KEY, min_images=0)
    assert none.skipped == 1, "a concept of no image has no precision, whatever the least number"
    assert (found.skipped, found.directions.encoded.tolist()) == (1, [[True, False]])
    assert found.directions.unique_over([1.0]).tolist() == [1] == [found.random_directions.unique]
    assert found.permuted_labels.unique == 0


def test_both_baselines_are_drawn_by_the_key():
    """The given directions are the same for all keys, with all negatives; each baseline is another, as a baseline that
    is drawn once for all cannot tell how far chance goes.
    """
    h, labels = problem(5, 128, 6, 4)
    labels[:30] = True
    a, b = (concept_counts(h, labels, np.eye(6), negatives="all", key=jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(a.directions.average_precision, b.directions.average_precision)
    for baseline in ("random_directions", "permuted_labels"):
        one, other = (getattr(counts, baseline).average_precision for counts in (a, b))
        assert (one != other).all(), baseline


@few
@given(seeds)
def test_counts_do_not_depend_on_sign_or_length_of_directions(seed):
    """-v and 5 v are the direction v: else the count would depend on the SVD's arbitrary signs."""
    random = np.random.default_rng(seed)
    h, directions = (
        random.standard_normal((128, 6)).astype(np.float32),
        random.standard_normal((5, 6)).astype(np.float32),
    )
    labels = np.zeros((128, 4), bool)
    for c, count in enumerate((20, 30, 40, 50)):  # fixed sizes: one compilation for all examples
        labels[random.permutation(128)[:count], c] = True
    a, b = (concept_counts(h, labels, v, key=KEY).directions.average_precision for v in (directions, -4 * directions))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_bad_input_of_concept_counts():
    """Each mistake is one clear error that names what is wrong."""
    h, labels = problem(4, 31, 11, 9)
    good = {"h": h, "concepts": labels, "directions": np.eye(11), "key": KEY}
    for change, message in (
        ({"h": np.where(np.arange(31)[:, None] == 2, np.inf, h)}, "h: row 2"),
        ({"directions": np.eye(10)}, "10 columns where 11"),
        ({"negatives": "some"}, "'some', not one of balanced, all"),
        ({"threshold": 0}, "threshold is 0"),
        ({"threshold": 90}, "threshold is 90"),
        ({"min_images": 32}, "at least 32 of the 31"),
    ):
        with pytest.raises(InputError, match=message):
            concept_counts(**{**good, **change})
