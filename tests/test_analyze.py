"""`jaxclip analyze` and `jaxclip robustness`: one synthetic model with planted truths, through the command line."""

import csv
import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import synthetic_study as synthetic
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score
from tiny import tiny_clip

from experiments.effective_robustness import scatter
from jaxclip import analyze
from jaxclip.analysis import (
    SHIFTS,
    concept_counts,
    effective_robustness,
    outlier_features,
    privileged_directions,
    prune_sweep,
)
from jaxclip.cli import main
from jaxclip.datasets import class_subset, label_map
from jaxclip.datasets.named import Concepts
from jaxclip.errors import InputError
from jaxclip.model import load_model
from jaxclip.sections import Section, title
from jaxclip.store import MANIFEST, model_digest

NAME = "synthetic-model"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A robust synthetic model, with the reference and two shifts in a store of two models."""
    root = tmp_path_factory.mktemp("analyze")
    rng = np.random.default_rng(0)
    W = synthetic.classes_matrix(rng, robust=True)
    synthetic.save_classifier(root / "model", NAME, W, rng)
    digest = model_digest(load_model(root / "model"))
    for seed, set_ in enumerate(("imagenet2012", "imagenet_v2", "imagenet_r")):
        h, labels, names = synthetic.images(np.random.default_rng(seed), W, set_, True, 0.17)
        synthetic.put(root / "store", NAME, digest, set_, h, labels, names)
        synthetic.put(root / "store", "other", "f" * 64, set_, -h, labels, names)
    concepts = synthetic.concept_images(rng, W, 4, True)
    synthetic.put(root / "store", NAME, digest, "broden", concepts, np.full(len(concepts), -1), ())
    return root


def test_no_store_is_named() -> None:
    """A shell pattern may match nothing: the message names the option, not an empty path."""
    with pytest.raises(InputError, match="--data"):
        analyze.analyze_stored(tiny_clip(), [])


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The planted outlier and direction are in the files; what is missing, Broden's labels too, is said."""
    out = tmp_path / "out"
    args = ["analyze", "--model", root / "model", "--data", root / "store", "--out", out, "--data-dir", tmp_path]
    assert main([*map(str, args)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "analysis.json").read_text())
    assert found["model"] == NAME and set(found["stores"]) == {"imagenet2012", "imagenet_v2", "imagenet_r"}
    share = found["activations"]["share"]
    assert np.flatnonzero(np.array(share) > 0.5).tolist() == [synthetic.OUTLIER]
    assert found["directions"]["features"][0][0] == synthetic.OUTLIER
    assert 0.6 < found["accuracy"]["imagenet2012"]["value"] < 1, "the store's other model was read"
    for shift in SHIFTS:
        assert (f"no representations of {shift}" in printed) == (shift not in ("imagenet_v2", "imagenet_r"))
    er, pruned = found["robustness"], found["pruned_robustness"]
    assert len(pruned["shift"]["imagenet_r"]) == len(found["pruning"]["fractions"]) == 101
    assert pruned["shift"]["imagenet_r"][0] == pytest.approx(er["shift"]["imagenet_r"][0]), "no direction is pruned"
    assert "broden is not prepared" in printed.replace("\n", " ") or "datasets prepare broden" in printed
    rows = list(csv.DictReader((out / "tables" / "effective-robustness.csv").open()))
    assert [row["Shift"] for row in rows if row["ER"]] == ["ImageNet-V2", "ImageNet-R"]
    accuracy = found["accuracy"]["imagenet2012"]["value"]
    for row in rows[:2]:  # the line that is printed gives the accuracy that is printed as expected
        expected = expit(float(row["Slope"]) * logit(accuracy) + float(row["Intercept"]))
        assert float(row["Expected"]) == pytest.approx(expected, abs=1e-5)
        assert float(row["Accuracy"]) - float(row["Expected"]) == pytest.approx(float(row["ER"]), abs=1e-6)
    assert list(found["accuracy"]) == ["imagenet2012", "imagenet_v2", "imagenet_r"], "in the order of hashes"
    with (out / "tables" / "pruning-curves.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 101
    page = (out / "index.html").read_text()
    assert "Privileged directions" in page and "no representations of objectnet" in page


def test_options_of_the_method(monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture) -> None:
    """What the command is told is what the analyses do; what makes no sense is refused before any work."""
    seen: list[analyze.Options] = []

    def stop(model: object, data: object, options: analyze.Options, data_dir: object) -> None:
        seen.append(options)
        raise InputError("seen")

    monkeypatch.setattr(analyze, "analyze_stored", stop)
    command = ["analyze", "--model", str(root / "model"), "--data", str(root / "store")]
    given = {"--outlier-threshold": "5", "--concept-threshold": "0.8", "--min-images": "30"}
    assert main([*command, *(x for pair in given.items() for x in pair)]) == 2
    assert seen == [analyze.Options(outlier_threshold=5.0, concept_threshold=0.8, min_images=30)]
    assert main(command) == 2 and seen[1] == analyze.Options(), "the command's defaults are others than the library's"
    for bad in (["--outlier-threshold", "0"], ["--concept-threshold", "90"], ["--min-images", "0"]):
        assert main([*command, *bad]) == 2 and len(seen) == 2, bad
        assert f"{bad[0][2:].replace('-', ' ')} is" in capsys.readouterr().err


def test_one_key_is_enough(root: Path) -> None:
    """A folder of one key in place of the store; and a set alone is its own reference."""
    model = load_model(root / "model")
    (one,) = [
        s for s in analyze.finished(root / "store") if s.name == "imagenet_v2" and s.manifest["model"]["name"] == NAME
    ]
    assert [s.folder for s in analyze.finished(one.folder)] == [one.folder]
    options = analyze.Options(fractions=(0.0, 0.8))
    found = analyze.analyze_stored(model, [one.folder], options)
    assert found.reference == "imagenet_v2" and list(found.accuracy) == ["imagenet_v2"]
    assert found.robustness is found.pruned_robustness is None, "a shift's accuracy stood for ImageNet's"
    assert "no effective robustness without representations of imagenet2012" in found.missing


def test_what_is_read_of_a_store(root: Path, tmp_path: Path) -> None:
    """Authors' names of shifts are known; two sets of one name, or several that may be the reference, are not chosen
    between by chance.
    """
    model = load_model(root / "model")
    digest, options = model_digest(model), analyze.Options(fractions=(0.0, 0.8))
    stored = {s.name: s for s in analyze.finished(root / "store") if s.manifest["model"]["name"] == NAME}
    one, shift = stored["imagenet2012"], stored["imagenet_r"]
    put = synthetic.put
    put(tmp_path, NAME, digest, "val", np.asarray(one), one.labels, one.classes)
    put(tmp_path, NAME, digest, "imagenet-r", np.asarray(shift), shift.labels, shift.classes)
    found = analyze.analyze_stored(model, [tmp_path], options)
    assert found.reference == "val" and found.robustness is not None
    assert np.isfinite(found.robustness.shift["imagenet_r"][0])
    put(tmp_path, NAME, digest, "test", np.asarray(one), one.labels, one.classes)
    with pytest.raises(InputError, match=r"any of (val, test|test, val) may be"):
        analyze.analyze_stored(model, [tmp_path], options)
    (named,) = [s.folder for s in analyze.finished(tmp_path) if s.name == "test"]
    assert analyze.analyze_stored(model, [named, tmp_path], options).reference == "test"
    manifest = json.loads((named / MANIFEST).read_text())
    manifest["data"]["name"] = "val"
    (named / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="are both of val, by one model"):
        analyze.analyze_stored(model, [tmp_path], options)
    assert analyze.analyze_stored(model, [named, tmp_path], options).stores["val"] == named.name


def test_subset_accuracies(root: Path) -> None:
    """x="subset" measures ImageNet's images of a shift's classes, choosing between these alone."""
    stored = {s.name: s for s in analyze.finished(root / "store") if s.manifest["model"]["name"] == NAME}
    views = analyze.views(stored["imagenet2012"], {"imagenet_r": stored["imagenet_r"]}, "subset")
    subset = np.asarray(class_subset("imagenet_r"))
    data = views["imagenet_on_imagenet_r"]
    rows = np.isin(stored["imagenet2012"].labels, subset)
    assert len(data.labels) == rows.sum() > 0 and np.array_equal(data.classes, subset)
    np.testing.assert_array_equal(data.h, np.asarray(stored["imagenet2012"])[rows])
    assert set(views) >= {"imagenet_on_objectnet", "imagenet_on_imagenet_a", "imagenet2012", "imagenet_r"}


def test_classes_of_one_objectnet_label_are_one(root: Path) -> None:
    """As in the testbed, which made the baselines' column so: 125 classes, 113 to tell apart. Else ER is too high."""
    stored = next(s for s in analyze.finished(root / "store") if s.name == "imagenet2012")
    data = analyze.views(stored, {}, "subset")["imagenet_on_objectnet"]
    label = {int(c): label for label, of in label_map("objectnet").items() for c in of}
    assert len(data.classes) == len(label) == 125 and len(set(label.values())) == 113
    alike = [[label[int(a)] == label[int(b)] for b in data.classes] for a in data.classes]
    np.testing.assert_array_equal(data.answers[np.ix_(data.classes, data.classes)], alike)
    others = np.setdiff1d(np.arange(1000), data.classes)
    np.testing.assert_array_equal(data.answers[others], np.eye(1000, dtype=bool)[others])
    assert not analyze.labelled(stored).answers.sum(1).max() > 1, "the whole of ImageNet has one right class each"
    # A head that always takes another class of the same label is right.
    swapped = {label[int(c)]: c for c in data.classes}
    W = np.zeros((1000, 1000), np.float32)
    W[[swapped[label[int(c)]] for c in data.classes], data.classes] = 1
    head = analyze.Head(W, np.zeros(1000, np.float32), "made up")
    wrong = data._replace(h=np.eye(1000, dtype=np.float32)[data.labels])
    assert analyze.accuracy(head, wrong).value == 1.0


def test_cka_is_of_the_same_pictures(root: Path, tmp_path: Path) -> None:
    """Rows of another download in another order would be paired by their places."""
    one = next(s for s in analyze.finished(root / "store") if s.name == "imagenet2012")
    assert analyze.cka(one, one) == pytest.approx(1, abs=1e-5)
    shutil.copytree(one.folder, tmp_path / one.folder.name)
    manifest = tmp_path / one.folder.name / MANIFEST
    manifest.write_text(manifest.read_text().replace("synthetic imagenet2012", "another download"))
    with pytest.raises(InputError, match="of different pictures, both called imagenet2012"):
        analyze.cka(one, analyze.finished(tmp_path)[0])


def test_sets_of_other_classes_are_refused(root: Path, tmp_path: Path) -> None:
    """Labels are numbers of a set's own classes: a head that has others would be right about other pictures."""
    stored = [s for s in analyze.finished(root / "store") if s.classes and s.manifest["model"]["name"] == NAME]
    one, other = stored[:2]
    shutil.copytree(other.folder, tmp_path / other.folder.name)
    manifest = json.loads((tmp_path / other.folder.name / MANIFEST).read_text())
    manifest["data"]["classes"].reverse()
    (tmp_path / other.folder.name / MANIFEST).write_text(json.dumps(manifest))
    assert analyze.views(one, {other.name: other}, "full").keys() == {one.name, other.name}
    with pytest.raises(InputError, match=f"{other.name} has other classes than {one.name}"):
        analyze.views(one, {other.name: analyze.finished(tmp_path)[0]}, "full")


def test_shares_that_are_pruned() -> None:
    """What was not tried has no value; a mean over sets is of all of them or none."""
    for fractions in ((), (0.5, 1.0), (0.0, 0.8, 0.5), (0.0, 80.0), (1.0, 0.8, 0.0)):
        with pytest.raises(InputError, match="fractions are"):
            analyze.Options(fractions=fractions)
    found = analyze.Pruning([0.0, 0.5, 1.0], {"a": [0.9, 0.8, 0.1], "b": [0.7, 0.6, 0.1]})
    assert found.at(found.accuracy["a"], 0.5) == 0.8 and np.isnan(found.at(found.accuracy["a"], 0.8))
    np.testing.assert_allclose(found.mean(["a", "b"]), [0.8, 0.7, 0.1])
    fine = analyze.Pruning([0.0, 0.796, 0.799, 0.803], {})
    assert fine.at([1.0, 0.7, 0.6, 0.5], 0.8) == 0.6, "the first within reach, not the nearest"
    assert np.isnan(found.mean(["a", "b", "c"])).all()


def test_defaults_are_the_method_s() -> None:
    """Another default is another number in every table, and one of the kernels that is not the options' is two."""
    options = analyze.Options()
    for function, given in (
        (privileged_directions, {"importance": options.importance}),
        (prune_sweep, {"importance": options.importance}),
        (outlier_features, {"threshold": options.outlier_threshold}),
        (effective_robustness, {"x": options.x}),
        (
            concept_counts,
            {
                "threshold": options.concept_threshold,
                "negatives": options.negatives,
                "min_images": options.min_images,
            },
        ),
    ):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in given} == given, function.__name__
    assert (options.importance, options.outlier_threshold, options.x) == ("cosine", 6, "full")
    assert (options.directions, options.concept_threshold, options.negatives) == ("head", 0.9, "balanced")
    assert options.fractions == tuple(np.linspace(0, 1, 101).round(2))
    assert options.min_images == 20, "of chance see concept_counts, which says what 20 images are enough for"


def test_options_reach_the_kernels_of_a_head() -> None:
    """The threshold, the importance, the head's bias and the classes to choose from, against numpy: an option that is
    passed over gives the default's numbers under the other's name.
    """
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((9, 6)).astype(np.float32), 2 * rng.standard_normal(9).astype(np.float32)
    h = rng.standard_normal((80, 6)) * rng.exponential(size=(80, 1)) ** 2 * np.array([1, 1, 1, 1, 1, 4])
    h, classes = h.astype(np.float32), np.array([1, 2, 4, 8])
    data = analyze.Labelled(h, rng.choice(classes, 80), np.eye(9, dtype=bool), classes)
    head = analyze.Head(W, b, "made up")
    share = analyze.activations(h, analyze.Options(outlier_threshold=1.5)).share
    np.testing.assert_array_equal(share, (np.abs(h) > 1.5 * h.std(1, keepdims=True)).mean(0))

    _, sigma, v = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    projected = sigma * np.abs(h @ v.T).mean(0)
    options = analyze.Options(importance="projection", fractions=(0.0, 0.5, 1.0))
    ranked = analyze.rank(head, h, options)
    found = analyze.directions(ranked, options)
    np.testing.assert_allclose(found.importance, projected, rtol=1e-5)
    order = np.argsort(-projected)
    assert found.kind == "projection" and found.order == order.tolist() != list(range(6))
    assert found.features == np.argsort(-np.abs(v[order[: analyze.LEADING]]), axis=1)[:, : analyze.LEADING].tolist()

    def right(kept: np.ndarray) -> float:
        logits = h @ v[kept].T @ v[kept] @ W.T + b
        return (classes[logits[:, classes].argmax(1)] == data.labels).mean()

    assert analyze.accuracy(head, data).value == pytest.approx(right(np.arange(6)), abs=1e-9)
    assert analyze.prune(head, ranked, data, options) == pytest.approx([right(order[:k]) for k in (6, 3, 0)], abs=1e-9)


def test_outliers_are_features_of_half_the_images() -> None:
    """Sorted by share, then by mean: what is listed as outlier features, of which half the images is enough."""
    found = analyze.Activations(9.0, 0.1, 8, 0, 6.0, [1.0, 5.0, 9.0, 6.0, 7.0], [0.5, 1.0, 0.375, 1.0, 0.75])
    assert found.outliers == [3, 1, 4, 0]


def test_options_reach_the_concepts() -> None:
    """Threshold, negatives, least number of images and seed, against scikit-learn; concepts come by the number of
    directions, then by average precision, each with the images that its best direction scores highest.
    """
    rng = np.random.default_rng(1)
    n, d = 90, 5
    labels = rng.random((n, 6)) < (0.3, 0.3, 0.3, 0.3, 0.1, 0.02)
    h = rng.standard_normal((n, d)).astype(np.float32)
    for concept, feature, step in ((0, 0, 2.5), (1, 1, -2.5), (1, 2, 2.4), (2, 3, 2.0), (4, 4, 4.0)):
        h[:, feature] += step * labels[:, concept]
    names = tuple("abcdef")
    shown = Concepts(scipy.sparse.csr_array(labels), names, ("object",) * 6)
    ids = [f"{row}.png" for row in range(n)]
    options = analyze.Options(
        concept_threshold=0.7, concept_thresholds=(0.6, 0.7, 0.95), negatives="all", min_images=5, seed=3
    )
    found = analyze.summarise_concepts(h, ids, shown, np.eye(d, dtype=np.float32), options)
    signed = np.array([[[average_precision_score(y, sign * s) for y in labels.T[:5]] for s in h.T] for sign in (1, -1)])
    precision = signed.max(0)
    times = (precision >= 0.7).sum(0)
    assert found.encoded == {names[c]: times[c] for c in range(5) if times[c]} and times.tolist() == [1, 2, 1, 0, 1]
    assert found.unique_over["directions"] == [(precision.max(0) >= t).sum() for t in (0.6, 0.7, 0.95)]
    assert (found.tested, found.skipped, found.min_images, found.threshold) == (5, 1, 5, 0.7)
    order = sorted(np.flatnonzero(times), key=lambda c: (-times[c], -precision[:, c].max()))
    assert [b["concept"] for b in found.best] == [names[c] for c in order] != sorted(b["concept"] for b in found.best)
    for b, c in zip(found.best, order, strict=True):
        i = precision[:, c].argmax()
        sign = 1 if signed[0, i, c] >= signed[1, i, c] else -1
        assert (b["direction"], b["sign"], b["images"], b["directions"]) == (i, sign, labels[:, c].sum(), times[c])
        assert b["average_precision"] == pytest.approx(precision[i, c], abs=1e-5)
        assert b["top_images"] == [ids[row] for row in np.argsort(-sign * h[:, i])[:9]]

    def sampled(seed: int) -> list[float]:
        balanced = analyze.Options(concept_threshold=0.7, min_images=5, seed=seed)
        best = analyze.summarise_concepts(h, ids, shown, np.eye(d, dtype=np.float32), balanced).best
        return [b["average_precision"] for b in best]

    assert sampled(3) == sampled(3) != sampled(4), "the seed is not that of the sample of negatives"


def test_the_seed_is_the_bootstrap_s() -> None:
    """Two seeds have two intervals and one estimate; else a reader's own seed would change nothing."""
    accuracies = {"mine": [0.7], **{shift: [0.5] for shift in SHIFTS}}
    a, again, b = (analyze.robustness("mine", accuracies, analyze.Options(seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.mean_interval, again.mean_interval)
    assert (a.mean_interval != b.mean_interval).all() and a.mean == b.mean


def test_some_of_the_shifts() -> None:
    """A study of two of ImageNet's shifts is measured from the testbed's lines for these, whichever x."""
    accuracies = {"mine": [0.7], "imagenet_v2": [0.65], "objectnet": [0.5], "imagenet_on_objectnet": [0.8]}
    for x in ("full", "subset"):
        found = analyze.robustness("mine", accuracies, analyze.Options(x=x), shifts=("imagenet_v2", "objectnet"))  # type: ignore[arg-type]
        assert list(found.fits) == ["imagenet_v2", "objectnet"] and np.isfinite(found.mean).all()
        section = Section("")
        scatter(section, [], found, x, "two")  # type: ignore[arg-type]
        assert len(section.figures["two"].axes) == 3, "two panels and the legend"


def test_the_coordinates_as_directions(root: Path, tmp_path: Path) -> None:
    """With unit coordinates, concepts along coordinates 10, 11 and 12 (downwards) are encoded by these."""
    old = next(s for s in analyze.finished(root / "store") if s.name == "broden")
    shown = synthetic.planted_concepts(old)
    h = 0.1 * np.random.default_rng(0).standard_normal(old.shape).astype(np.float32)
    h[:, 10:13] -= shown.matrix.toarray()[:, :3]
    synthetic.put(tmp_path, NAME, "0", "broden", h, np.full(len(h), -1), ())
    (stored,) = analyze.finished(tmp_path)
    options = analyze.Options(directions="coordinates")
    head = analyze.read_head(load_model(root / "model"), [""] * 1000)
    rows = analyze.concept_directions(analyze.rank(head, stored, options), options)
    found = analyze.summarise_concepts(stored, stored.ids, shown, rows, options)
    signed = {b["concept"]: (b["direction"], b["sign"]) for b in found.best}
    assert signed == {f"synthetic concept {c}": (10 + c, -1) for c in range(3)}


def test_bad_input(root: Path, tmp_path: Path) -> None:
    model = load_model(root / "model")
    with pytest.raises(InputError, match="no finished representations"):
        analyze.analyze_stored(model, [tmp_path])
    other = [s.folder for s in analyze.finished(root / "store") if s.manifest["model"]["name"] == "other"]
    with pytest.raises(InputError, match=f"by {NAME}"):
        analyze.analyze_stored(model, other)
    with pytest.raises(InputError, match="1000 classes, and the data 3"):
        analyze.read_head(model, ["a", "b", "c"])
    names = next(s.classes for s in analyze.finished(root / "store") if s.name == "imagenet2012")
    synthetic.put(
        tmp_path,
        NAME,
        model_digest(model),
        "imagenet2012",
        np.ones((3, synthetic.D), np.float32),
        np.array([0, -1, 1]),
        names,
    )
    with pytest.raises(InputError, match=r"0001\.png has the label -1"):
        analyze.analyze_stored(model, [tmp_path])


def test_what_sets_are_called_in_print() -> None:
    assert title("imagenet_on_objectnet") == "ImageNet, classes of ObjectNet"
    assert title("cats_on_mats") == "cats_on_mats", "somebody's own"


def test_json_has_no_nan(tmp_path: Path) -> None:
    """Other programs' JSON readers refuse NaN; what experiments read again is a number everywhere."""
    analyze.save_json(tmp_path / "x.json", {"a": [float("nan"), np.float32(1)], "b": np.array([np.inf, 2])})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.0], "b": [None, 2.0]}
    again = analyze.read_json(tmp_path / "x.json")
    np.testing.assert_equal(again, {"a": [np.nan, 1.0], "b": [np.nan, 2.0]})


def test_robustness_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table, out = tmp_path / "mine.csv", tmp_path / "out"
    table.write_text("model,imagenet,imagenet_v2\nmine,0.7,0.65\n")
    command = ["robustness", "--accuracies", str(table), "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "mine" in printed and f"written: {out / 'index.html'}" in printed.replace("\n", "")
    (row,) = csv.DictReader((out / "tables" / "effective-robustness.csv").open())
    assert 0 < float(row["ER on ImageNet-V2"]) < 0.2 and row["ER"] == "", (
        "0.65 is above the line, and four shifts are missing"
    )
    assert sorted(file.name for file in out.glob("*/*")) == [
        "effective-robustness.csv",
        "effective-robustness.png",
        "lines.csv",
    ]
    shutil.rmtree(out)
    assert main([*command, "--x", "subset"]) == 2
    assert "imagenet_on_imagenet_r" in capsys.readouterr().err
    table.write_text("model,imagenet,imagenet_v2\nmine,70,65\n")
    assert main(command) == 2
    assert "divide percent by 100" in capsys.readouterr().err
    assert not out.exists()
