"""Accuracy: what is counted as right, over what, and how sure one can be."""

import csv
import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from tiny import cache_size, changed, class_folders, tiny_classifier, tiny_clip, unit

from jaxclip.data import imagenet_classnames, imagenet_wnids
from jaxclip.datasets import Example, class_subset, label_map, open_source
from jaxclip.embedding import embed
from jaxclip.errors import InputError
from jaxclip.evaluation import Accuracy, evaluate, label_space, representations, top_k_hits
from jaxclip.models.clip import representation_size
from jaxclip.zero_shot import zero_shot_head

TEMPLATES = ("a photo of a {}.", "a drawing of the {}.")


@dataclasses.dataclass
class Listed:
    """Real pictures under labels that the test gives them."""

    name: str
    classes: tuple[str, ...]
    pictures: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Example:
        path, label = self.pictures[i]
        return Example(path.name, path.read_bytes(), label)

    def fingerprint(self) -> str:
        return f"{self.name}, {len(self)} pictures"


@pytest.fixture
def animals(imagenet_samples: list[Path], tmp_path: Path) -> Path:
    return class_folders(imagenet_samples, tmp_path / "animals")


@pytest.fixture(scope="module")
def encoded(imagenet_samples: list[Path]) -> np.ndarray:
    """h of the 1,000 real pictures by a tiny random CLIP, float64."""
    source = open_source(str(imagenet_samples[0].parent))
    found = representations(tiny_clip(), source, batch_size=64, workers=0)
    return np.concatenate([np.asarray(h, np.float64)[batch.mask] for h, batch in found])


def planted(h: np.ndarray, noise: float) -> np.ndarray:
    """A head [n, d] whose row i would choose picture i, but for noise: right for some of the pictures only."""
    centred = unit(h - h.mean(axis=0))
    return (centred + noise * np.random.default_rng(0).standard_normal(h.shape)).astype(np.float32)


def scores(h: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    return h @ W.T.astype(np.float64) + b


def test_real_pictures_with_a_planted_head(imagenet_samples: list[Path], encoded: np.ndarray, tmp_path: Path) -> None:
    """Top-1, top-5 and each class are what scikit-learn finds from logits computed apart; all is compiled once.

    There are 1,000 pictures and 64 rows, so that the last batch is padded.
    """
    W = planted(encoded, noise=0.1)
    b = -(W @ encoded.mean(axis=0)).astype(np.float32)
    logits, labels = scores(encoded, W, b), np.arange(1000)
    model = tiny_clip()
    before = cache_size(top_k_hits), cache_size(model._encode_image)
    found = evaluate(
        model, str(imagenet_samples[0].parent), head=(W, b), batch_size=64, workers=0, out=tmp_path / "result"
    )
    assert cache_size(top_k_hits) <= before[0] + 1
    assert cache_size(model._encode_image) <= max(before[1], 1), "the encoder is compiled for more than one shape"
    for accuracy, k in ((found.top1, 1), (found.top5, 5)):
        expected = top_k_accuracy_score(labels, logits, k=k)
        assert 0.05 < expected < 0.95, "the planted head is too good or too bad for this test to tell anything"
        assert accuracy.total == 1000
        assert abs(accuracy.value - expected) <= 0.002, "more than two near-ties decided otherwise"
        assert accuracy.low < accuracy.value < accuracy.high
    assert [c.label for c in found.per_class] == imagenet_wnids()
    assert [c.name for c in found.per_class] == imagenet_classnames()
    assert sum(c.top1 for c in found.per_class) == found.top1.right
    right = logits.argmax(axis=1) == labels
    assert np.sum(right != [c.top1 for c in found.per_class]) <= 2, "a hit is booked to another class"

    saved = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert saved["top1"]["right"] == found.top1.right
    assert saved["data"] == found.data
    assert saved["model"] == {"name": model.config.name, "source": model.config.source, "dtype": "float32"}
    with (tmp_path / "result" / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000
    for column, accuracy in (("top1", found.top1), ("top5", found.top5)):
        assert sum(float(row[column]) * int(row["images"]) for row in rows) == accuracy.right


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 7, 12]), st.sampled_from([1, 3, 5]))
def test_top_k_is_scikit_learns(seed: int, classes: int, k: int) -> None:
    """For any logits without ties."""
    rng = np.random.default_rng(seed)
    h, W, b = rng.standard_normal((20, 6)), rng.standard_normal((classes, 6)), rng.standard_normal(classes)
    labels = rng.integers(0, classes, 20)
    hits = top_k_hits(*map(np.float32, (h, W, b)), labels, np.eye(classes, dtype=bool), k=min(k, classes))
    if k < classes:
        expected = top_k_accuracy_score(labels, scores(h, W, b), k=k, labels=np.arange(classes))
        assert np.mean(hits[:, -1]) == pytest.approx(expected)
    np.testing.assert_array_equal(hits[:, 0], scores(h, W, b).argmax(axis=1) == labels)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_model_that_says_nothing_is_not_right(value: float) -> None:
    """All logits equal, or not a number: counting ties as right would call such a model perfect."""
    h, W = np.full((10, 4), value, np.float32), np.ones((10, 4), np.float32)
    hits = top_k_hits(h, W, np.zeros(10, np.float32), np.arange(10), np.eye(10, dtype=bool), k=5)
    assert np.mean(hits[:, 0]) == pytest.approx(0.1)
    assert np.mean(hits[:, -1]) == pytest.approx(0.5)


def test_a_representation_that_is_not_finite_is_named(animals: Path) -> None:
    """A broken checkpoint must not be reported as a model of chance accuracy."""
    broken = changed(tiny_clip(), name="vision.projection", by=np.nan)
    with pytest.raises(InputError, match=r"representation of picture bird/\S+ is not finite"):
        evaluate(broken, str(animals), head=np.ones((2, 32), np.float32), workers=0)


def test_any_of_a_labels_classes_is_right() -> None:
    """ObjectNet: label 0 is classes 0 or 3, label 1 is class 1; the first choices are 3, 3, 1."""
    W = np.eye(4, dtype=np.float32)
    h = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [0, 3, 2, 1]], np.float32)
    answers = np.array([[True, False, False, True], [False, True, False, False]])
    hits = top_k_hits(h, W, np.zeros(4, np.float32), np.array([0, 1, 1]), answers, k=3)
    assert hits.tolist() == [[True, True, True], [False, False, True], [True, True, True]]


def test_sweeping_heads_is_one_vmap(encoded: np.ndarray) -> None:
    """Pruning will score many heads on stored representations at once: the core must be pure to be mapped."""
    heads = np.stack([planted(encoded, noise) for noise in (0.05, 0.2)])[:, :50]
    h, labels, answers = np.float32(encoded[:50]), np.arange(50), np.eye(50, dtype=bool)
    b = np.zeros(50, np.float32)
    both = jax.vmap(lambda W: top_k_hits(h, W, b, labels, answers))(heads)
    for one, W in zip(both, heads, strict=True):
        np.testing.assert_array_equal(one, top_k_hits(h, W, b, labels, answers))


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_is_the_published_one(right: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: Wilson's, without continuity correction."""
    found = Accuracy.of(right, total)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert (found.right, found.total, found.value) == (right, total, right / total)


def test_clip_chooses_between_the_folders_by_their_names(animals: Path) -> None:
    """A CLIP on folders that are no WNIDs: the head is from their names, and accuracy is that of its logits."""
    model = tiny_clip()
    found = evaluate(model, str(animals), templates=TEMPLATES, batch_size=4, workers=0)
    W = np.asarray(zero_shot_head(model, ["bird", "fish"], TEMPLATES))
    h = np.concatenate([np.asarray(h)[b.mask] for h, b in representations(model, open_source(str(animals)), workers=0)])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    assert found.top1.right == np.sum((h @ W.T).argmax(axis=1) == labels)
    assert found.top5.value == 1, "there are only two classes"
    assert [(c.label, c.name, c.total) for c in found.per_class] == [("bird", "bird", 3), ("fish", "fish", 4)]
    assert found.head == {"kind": "zero-shot", "classes": 2, "templates": 2}


def test_given_classes_name_the_choices() -> None:
    """More choices than the data has classes, in their own order; or other names for the prompts."""
    source = Listed("animals", ("bird", "Sea_Fish"), [])
    names, answers, columns = label_space(source, ["sea fish", "dog", "bird"])
    assert names == ["sea fish", "dog", "bird"]
    assert answers.tolist() == [[False, False, True], [True, False, False]]
    assert columns.tolist() == [0, 1, 2]
    names, answers, _ = label_space(source, {"Sea_Fish": "fish", "bird": "flying bird"})
    assert [names[row.argmax()] for row in answers] == ["flying bird", "fish"]


def test_classes_that_differ_in_case_alone_are_two() -> None:
    """Letters, say: one key's class would be scored as the other's."""
    source = Listed("letters", ("A", "a", "hot dog", "hot_dog"), [])
    _, answers, _ = label_space(source, ["a", "hot_dog", "A", "hot dog"])
    assert answers.argmax(axis=1).tolist() == [2, 0, 3, 1]


def test_numbered_folders_by_names() -> None:
    """Flowers-102's are 1 … 102, with a file that names these: there is no class 0."""
    source = Listed("flowers", ("0", "1", "2"), [])
    names, answers, _ = label_space(source, {"01": "pink primrose", "2": "globe thistle"})
    assert names == ["pink primrose", "globe thistle"] and answers.tolist() == [[0, 0], [1, 0], [0, 1]]


def test_a_folder_called_objectnet_is_not_taken_for_it(imagenet_samples: list[Path]) -> None:
    """Its folders' places in sorted order would count as ImageNet's classes."""
    source = Listed("objectnet", ("air_freshener", "alarm_clock"), [(imagenet_samples[0], 0)])
    with pytest.raises(InputError, match="'air_freshener' is none of its labels: prepare the published archive"):
        evaluate(tiny_clip(), source, workers=0)


def test_classifier_by_its_own_head(animals: Path) -> None:
    """Its W and b, and no text; two classes in the order of the folders."""
    model = tiny_classifier(2)
    found = evaluate(model, str(animals), batch_size=8, workers=0)
    assert model.head is not None
    W, b = map(np.asarray, model.head)
    h = np.concatenate([np.asarray(h)[x.mask] for h, x in representations(model, open_source(str(animals)), workers=0)])
    assert found.top1.right == np.sum((h @ W.T + b).argmax(axis=1) == [0, 0, 0, 1, 1, 1, 1])
    assert found.head["kind"] == "the model's own"


def test_shift_set_chooses_between_its_own_classes(imagenet_samples: list[Path], encoded: np.ndarray) -> None:
    """Among 200 classes the choice is easier than among 1,000; by the set's name, or by ``subset`` for a folder."""
    allowed = np.asarray(class_subset("imagenet_a"))
    pictures = [(imagenet_samples[i], int(i)) for i in allowed]
    W = planted(encoded, noise=0.1)
    b = -(W @ encoded.mean(axis=0)).astype(np.float32)
    source = Listed("imagenet_a", tuple(imagenet_wnids()), pictures)
    found = evaluate(tiny_clip(), source, head=(W, b), workers=0)
    logits = scores(encoded[allowed], W, b)
    restricted = np.full_like(logits, -np.inf)
    restricted[:, allowed] = logits[:, allowed]
    expected = np.sum(restricted.argmax(axis=1) == allowed)
    assert expected > np.sum(logits.argmax(axis=1) == allowed) + 5, "the test cannot tell the two apart"
    assert abs(found.top1.right - expected) <= 1
    assert found.head["classes"] == 200
    again = evaluate(
        tiny_clip(), dataclasses.replace(source, name="downloaded"), head=(W, b), subset="imagenet_a", workers=0
    )
    assert again.top1 == found.top1
    # Of all of ImageNet, the same pictures count, and the other 800 classes' are in no total.
    whole = Listed("imagenet2012", tuple(imagenet_wnids()), [(path, i) for i, path in enumerate(imagenet_samples)])
    of_all = evaluate(tiny_clip(), whole, head=(W, b), subset="imagenet_a", workers=0)
    assert of_all.top1 == found.top1 and of_all.per_class == found.per_class and of_all.data["subset"] == "imagenet_a"
    source = dataclasses.replace(whole, name="imagenet_a")
    with pytest.raises(InputError, match=r"n01440764.*not to choose from: --subset"):
        evaluate(tiny_clip(), source, head=(W, b), workers=0)
    with pytest.raises(InputError, match=r"n01440764.*not to choose from: name it among the classes"):
        evaluate(tiny_clip(), whole, classes=["cat", "dog"], workers=0)


def test_subset_of_a_store_is_that_of_the_pictures(imagenet_samples: list[Path], tmp_path: Path) -> None:
    """Pictures of other classes are left out alike; so are damaged ones of theirs, which are in a store's list."""
    allowed = np.asarray(class_subset("imagenet_r"))
    chosen = [*allowed[:20], *np.setdiff1d(np.arange(1000), allowed)[:20]]
    pictures = [(imagenet_samples[i], int(i)) for i in chosen]
    for row in (5, 30):
        pictures[row] = tmp_path / f"{row}.JPEG", pictures[row][1]
        pictures[row][0].write_bytes(b"no picture")
    source = Listed("imagenet2012", tuple(imagenet_wnids()), pictures)
    model = tiny_clip()
    head = np.random.default_rng(0).normal(size=(1000, representation_size(model.config.vision)))
    embed(model, source, tmp_path / "store", workers=0, skip_bad=True)
    direct, stored = (
        evaluate(model, source, head=head, subset="imagenet_r", workers=0, skip_bad=True, store=store)
        for store in (None, tmp_path / "store")
    )
    assert stored.stored and direct.top1.total == 19 and [b.index for b in direct.bad_images] == [5]
    assert dataclasses.replace(stored, stored=None) == direct


def test_objectnet_labels_are_right_in_any_of_their_classes() -> None:
    """An ObjectNet prediction is right when it is any ImageNet class that its label maps to."""
    mapped = label_map("objectnet")
    source = Listed("objectnet", tuple(mapped), [])
    names, answers, columns = label_space(source)
    assert names == imagenet_classnames()
    assert answers.shape == (113, 1000)
    for label, right in enumerate(mapped.values()):
        assert np.flatnonzero(answers[label]).tolist() == sorted(right)
    assert columns.tolist() == np.asarray(class_subset("objectnet")).tolist()
    assert answers[:, columns].sum() == answers.sum(), "a right class cannot be chosen"


def test_bad_pictures(animals: Path) -> None:
    """A truncated picture ends the run; with skip_bad it is listed, and counted in no total."""
    victim = sorted((animals / "fish").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:2000])
    model = tiny_classifier(2)
    with pytest.raises(InputError, match=victim.name):
        evaluate(model, str(animals), workers=0)
    found = evaluate(model, str(animals), workers=0, skip_bad=True)
    assert [(bad.index, Path(bad.id).name) for bad in found.bad_images] == [(5, victim.name)]
    assert found.top1.total == 6
    assert [c.total for c in found.per_class] == [3, 3]


def test_nothing_but_bad_pictures(animals: Path) -> None:
    for path in animals.glob("*/*"):
        path.write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(InputError, match="no picture that can be decoded"):
        evaluate(tiny_classifier(2), str(animals), workers=0, skip_bad=True)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("chooses between 7 classes, but animals has 2", lambda path: evaluate(tiny_classifier(7), path)),
        ("'fish' is none of the 2 given classes: did you mean dish",
         lambda path: evaluate(tiny_clip(), path, classes=["bird", "dish"])),
        ("classes are 'bird'", lambda path: evaluate(tiny_clip(), path, classes="bird")),
        ("subset 'imagenet_b' cannot be taken", lambda path: evaluate(tiny_clip(), path, subset="imagenet_b")),
        ("'a photo' has no {}", lambda path: evaluate(tiny_clip(), path, templates=["a photo"])),
        ("templates are of no use", lambda path: evaluate(tiny_classifier(2), path, templates=TEMPLATES)),
        (r"the head has shape \(2, 5\)", lambda path: evaluate(tiny_clip(), path, head=np.zeros((2, 5)))),
        (r"bias has shape \(1,\), not \[2\]",
         lambda path: evaluate(tiny_clip(), path, head=(np.zeros((2, 32)), np.zeros(1)))),
        ("row of class 'fish' is not finite",
         lambda path: evaluate(tiny_clip(), path, head=np.array([[0.0] * 32, [np.nan] * 32]))),
        ("class 'bird' may be 'Bird' or 'BIRD'",
         lambda path: evaluate(tiny_clip(), path, classes={"Bird": "a", "BIRD": "b", "fish": "c"})),
    ],
)  # fmt: skip
def test_bad_input_is_named(animals: Path, says: str, call: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match=says):
        call(str(animals))


def test_labels_are_needed(imagenet_samples: list[Path]) -> None:
    for classes, label, says in (((), -1, "has no labels"), (("a", "b"), -1, "has no label")):
        with pytest.raises(InputError, match=says):
            evaluate(tiny_classifier(2), Listed("unlabelled", classes, [(imagenet_samples[0], label)]), workers=0)
    mixed = Listed("mixed", tuple(imagenet_wnids()), [(imagenet_samples[0], -1)])
    with pytest.raises(InputError, match="has no label"):  # a subset leaves out other classes, not what has none
        evaluate(tiny_clip(), mixed, head=np.zeros((1000, 32)), subset="imagenet_r", workers=0)


def test_a_picture_outside_the_subset_is_named(imagenet_samples: list[Path]) -> None:
    outside = min(set(range(1000)) - set(np.asarray(class_subset("imagenet_a"))))
    source = Listed("imagenet_a", tuple(imagenet_wnids()), [(imagenet_samples[outside], outside)])
    with pytest.raises(InputError, match=f"{imagenet_samples[outside].name} is of class {imagenet_wnids()[outside]!r}"):
        evaluate(tiny_clip(), source, head=np.zeros((1000, 32)), workers=0)


def test_a_full_disk_leaves_no_half_written_result(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files or none: the disk fills up when the second of them is flushed."""
    calls = []

    def fsync(_: int) -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        evaluate(tiny_classifier(2), str(animals), workers=0, out=tmp_path / "result")
    assert calls, "nothing was flushed: the test would pass whatever the code does"
    assert list((tmp_path / "result").iterdir()) == []
