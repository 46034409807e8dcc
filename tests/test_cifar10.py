"""The miniature: corruptions, captions, the configuration, WiSE-FT's curve; and the whole command, small and killed."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import synthetic_study as synthetic
from PIL import Image

from experiments import study as studies
from experiments import wise_ft
from experiments.cifar10 import first, pixel_concepts, shift_sets
from experiments.configs import cifar10 as config
from experiments.corruptions import CORRUPTIONS, disk
from jaxclip.datasets.files import open_folder, open_tars
from jaxclip.training.recipe import Recipe

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "cifar10"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"CIFAR-10 is not at {DATA}")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A smooth picture with an edge, which every corruption changes."""
    y, x = np.mgrid[:32, :32]
    return np.stack([8 * x, 8 * y, np.where(x > y, 200, 40)], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_severity(name: str, picture: np.ndarray) -> None:
    """A constant out of order would make a higher severity change less; and the same seed gives the same picture."""
    made = [CORRUPTIONS[name](picture, severity, np.random.default_rng(0)) for severity in range(1, 6)]
    changed = [np.square(x.astype(float) - picture).mean() for x in made]
    assert all(x.shape == picture.shape and x.dtype == np.uint8 for x in made)
    assert changed[0] < changed[2] < changed[4], changed
    np.testing.assert_array_equal(made[3], CORRUPTIONS[name](picture, 4, np.random.default_rng(0)))


def test_constants_are_cifar_10_cs(picture: np.ndarray) -> None:
    """Those of make_cifar_c.py (github.com/hendrycks/robustness), at every severity, seen in what comes out: noise's
    deviation, contrast's range, pixelate's blocks, JPEG's tables, the disk's light and edge.
    """
    rng = np.random.default_rng(0)
    grey = np.full((256, 256, 3), 128, np.uint8)
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4] = 200
    slope = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    dot = np.zeros((17, 17, 3), np.uint8)
    dot[8, 8] = 255
    published = zip(
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.75, 0.5, 0.4, 0.3, 0.15),
        (0.95, 0.9, 0.85, 0.75, 0.65),
        (80, 65, 58, 50, 40),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        strict=True,
    )
    for severity, (noise, contrast, share, quality, (radius, alias)) in enumerate(published, 1):
        noisy = CORRUPTIONS["gaussian_noise"](grey, severity, rng)
        assert noisy.std() / 255 == pytest.approx(noise, abs=0.001)
        drawn = CORRUPTIONS["contrast"](halves, severity, rng).astype(int)
        assert drawn.max() - drawn.min() == pytest.approx(contrast * 200, abs=1)
        assert len(np.unique(CORRUPTIONS["pixelate"](slope, severity, rng)[0, :, 0])) == int(32 * share)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(
            CORRUPTIONS["jpeg_compression"](picture, severity, rng), np.asarray(Image.open(file))
        )
        near, far = np.exp(-1 / (2 * alias**2)), np.exp(-1 / alias**2)  # of the Gaussian, beside its middle's 1
        whole = 1 + 4 * near + 4 * far
        middle, cells = (whole, 9) if radius == 1.5 else (1 + 4 * near, 5) if radius == 1 else (1, 1)
        blurred = CORRUPTIONS["defocus_blur"](dot, severity, rng)[8, 8, 0]
        assert blurred == pytest.approx(255 * middle / whole / cells, abs=1)
    for radius, alias in ((0.3, 0.4), (1, 0.2), (1.5, 0.1)):
        kernel = disk(radius, alias)
        assert kernel.sum() == pytest.approx(1) and np.array_equal(kernel, kernel.T) and kernel.min() >= 0
    assert np.count_nonzero(disk(1.5, 0.1) > 0.05) == 9, "a disk of radius 1.5 covers 3x3 pixels"


def test_captions_name_their_class_and_no_other() -> None:
    labels = np.arange(10).repeat(200)
    classes = tuple(config.NAMES)
    texts = config.captions(labels, classes)
    assert texts == config.captions(labels, classes) != config.captions(labels, classes, seed=1)
    for name, names in config.NAMES.items():
        mine = [text for text, label in zip(texts, labels, strict=True) if classes[label] == name]
        starts = {template.format(word) for template in config.TEMPLATES for word in names}
        assert {text.partition(" it is")[0] for text in mine} == starts, f"{name}: a name or a template is missing"
        kind = "an animal." if name in config.CONCEPTS["animal"] else "a vehicle."
        kinds = [text for text in mine if "it is" in text]
        assert all(text.endswith(kind) for text in kinds) and 0.3 < len(kinds) / len(mine) < 0.7


def test_configuration_names_what_the_method_needs(tmp_path: Path) -> None:
    """One model of each of the groups that can be trained here, of one backbone, five shifts, concepts of all kinds."""
    for step in (100, 200, 299, 300):
        (tmp_path / config.VIT.name / "snapshots" / f"step_{step:06}").mkdir(parents=True)
    study = studies.load(Path(config.__file__), tmp_path)
    groups = {model.group for model in study.models if model.backbone == "ViT"}
    assert groups == {"zero-shot", "fine-tuned", "supervised"} and len(study.shifts) == 5
    assert {m.name for m in study.standard} == {
        f"{config.VIT.name}-step_000100", f"{config.VIT.name}-step_000200", config.VIT.name, config.RESNET.name,
    }, "snapshots at the end are the model itself, which must not count twice"  # fmt: skip
    assert set(config.SHIFTS) == set(CORRUPTIONS)
    assert all(isinstance(recipe, Recipe) and recipe.seed == config.SEED for recipe in config.RECIPES.values())
    classes = set(config.NAMES)
    assert all(set(of) <= classes and 0 < len(of) < 10 for of in config.CONCEPTS.values())


def test_concepts_of_the_pixels_are_the_tenth_with_the_most(tmp_path: Path) -> None:
    """Bright is by the mean of all values, a hue by what a channel is above it: a white picture is bright, not red."""
    colors = {"white": (255, 255, 255), "black": (0, 0, 0), "red": (200, 20, 20), "green": (20, 200, 20),
              "blue": (20, 20, 200)}  # fmt: skip
    greys = {f"grey{i}": (100 + i,) * 3 for i in range(5)}
    for name, color in (colors | greys).items():
        (tmp_path / "pictures" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), color).save(tmp_path / "pictures" / "a" / f"{name}.png")
    pixel_concepts(tmp_path, open_folder(tmp_path / "pictures"))
    found = json.loads((tmp_path / config.PIXEL_CONCEPTS).read_text())
    of = {"bright": "white", "dark": "black", "reddish": "red", "greenish": "green", "bluish": "blue"}
    assert {concept: [Path(i).stem for i in ids] for concept, ids in found.items()} == {c: [n] for c, n in of.items()}


def test_wise_ft_curve_of_a_made_up_study(tmp_path: Path) -> None:
    """Sorted by alpha, the ends from the study's models; without a model in between there is no curve."""
    made = dataclasses.replace(synthetic.make(tmp_path), results=tmp_path / "results")
    first, middle, last = (
        next(model for model in made.models if model.name == f"synthetic-{kind}-a")
        for kind in ("zero-shot", "captions", "fine-tuned")
    )
    study = dataclasses.replace(made, interpolated=(studies.Interpolation(first, last, {0.5: middle}),))
    ((name, points),) = wise_ft.curves(study).items()
    assert name == last.name and [p.alpha for p in points] == [0.0, 0.5, 1.0]
    accuracies = studies.accuracies(study)
    names = ["synthetic-zero-shot-a", middle.name, "synthetic-fine-tuned-a"]
    assert [p.accuracy for p in points] == [accuracies[name]["imagenet2012"] for name in names]
    shifted = [np.mean([accuracies[name][shift].value for shift in study.shifts]) for name in names]
    np.testing.assert_allclose([p.shifted for p in points], shifted)
    best = max(points, key=lambda p: p.accuracy.value).alpha
    assert f"at alpha {best:g}." in "".join(wise_ft.run(study).blocks)
    one_short = wise_ft._point(study, 0.5, {k: v for k, v in accuracies[middle.name].items() if k != "objectnet"}, None)
    assert np.isnan(one_short.shifted), "a mean over four shifts beside means over five"
    result = studies.robustness(study, accuracies)
    assert result is not None
    er = dict(zip(accuracies, result.mean, strict=True))
    np.testing.assert_allclose([p.er.value for p in points if p.er], [er[name] for name in names], atol=1e-6)
    assert "wise-ft" in wise_ft.run(study).figures and not wise_ft.run(made).figures
    ends = dataclasses.replace(study, interpolated=(studies.Interpolation(first, last, {}),))
    assert not wise_ft.curves(ends), "two points make no curve"


def test_a_line_of_the_studys_own(tmp_path: Path) -> None:
    """A study's own standard models take the testbed's place: those on the line have about no effective robustness."""
    made = dataclasses.replace(synthetic.make(tmp_path), results=tmp_path / "results")
    names = ("synthetic-fine-tuned-a", "synthetic-captions-a", "synthetic-supervised-a")
    study = dataclasses.replace(made, standard=tuple(m for m in made.models if m.name in names))
    accuracies = studies.accuracies(study)
    own, testbed = studies.robustness(study, accuracies), studies.robustness(made, accuracies)
    assert own is not None and testbed is not None
    place = [list(accuracies).index(name) for name in names]
    assert np.abs(own.mean[place]).max() < 0.05 < np.abs(testbed.mean[place]).max()
    assert all(fit.models == 3 for fit in own.fits.values())
    few = dataclasses.replace(study, standard=study.standard[:2])
    assert studies.robustness(few, accuracies) is None, "two points make a line that everything is compared with"


@needs_data
def test_shift_sets_are_of_the_same_pictures(tmp_path: Path) -> None:
    """A class or an order that slips would be counted as a shift; a second call reads what the first made."""
    clean = first(open_tars([DATA / "test.tar.gz"]), 2)
    assert np.bincount(clean.labels).tolist() == [2] * 10
    sources = shift_sets(tmp_path, clean)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert list(sources) == list(config.SHIFTS) and len(before) == 5 * len(clean)
    for source in sources.values():
        assert source.classes == clean.classes
        assert [source[i].label for i in range(len(source))] == clean.labels.tolist()
        assert [Path(source[i].id).stem for i in range(len(source))] == [Path(name).stem for name in clean.ids]
    shift_sets(tmp_path, clean)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}


@needs_data
@pytest.mark.slow
def test_the_command_killed_and_not_gives_the_same_numbers(tmp_path: Path) -> None:
    """On a few pictures and steps: SIGKILL in the second training run, then the command again; results are equal."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _command(whole).wait(600) == 0
    process = _command(killed)
    until = time.monotonic() + 300
    while not (killed / config.RESNET.name / "run" / "checkpoints").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "report" / "index.html").exists(), "the kill came too late to test anything"
    assert _command(killed).wait(600) == 0
    tables = sorted((whole / "report" / "tables").glob("*.csv"))
    assert {"accuracy.csv", "wise-ft.csv", "kurtosis.csv"} <= {path.name for path in tables}
    for path in tables:
        assert path.read_bytes() == (killed / "report" / "tables" / path.name).read_bytes(), path.name
    made = {path: path.stat().st_mtime_ns for path in (whole / "store").rglob("*.parquet")}
    assert _command(whole).wait(300) == 0
    assert made == {path: path.stat().st_mtime_ns for path in (whole / "store").rglob("*.parquet")}, "embedded again"
    assert json.loads((whole / "seconds.json").read_text())


def _command(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.cifar10", "--out", str(out), "--data", str(DATA)]
    return subprocess.Popen([*command, "--pictures", "30", "--epochs", "2"], cwd=ROOT)
