"""Augmentation agrees with torchvision operation by operation, and a generator decides all of it."""

import io
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxclip.config import Preprocess
from jaxclip.errors import InputError
from jaxclip.training.augment import (
    OPERATIONS,
    Augment,
    augment,
    crop_box,
    cutmix,
    magnitudes,
    make_mix,
    mixup,
    randaugment,
)

LEVELS = (0, 3, 9, 15, 30)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    return small.resize((61, 48), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_torchvisions(name: str, picture: Image.Image) -> None:
    """Every operation of RandAugment, at several levels and both signs, pixel by pixel."""
    pytest.importorskip("torchvision")
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.autoaugment import RandAugment, _apply_op

    theirs = RandAugment()._augmentation_space(31, (picture.height, picture.width))
    assert set(theirs) == set(OPERATIONS)
    for level in LEVELS:
        magnitude, signed = magnitudes(level, picture.width, picture.height)[name]
        table, their_sign = theirs[name]
        assert signed == their_sign
        assert magnitude == pytest.approx(float(table[level]) if table.ndim else 0.0, rel=1e-5, abs=1e-4)
        for m in (magnitude, -magnitude) if signed else (magnitude,):
            expected = _apply_op(picture, name, m, InterpolationMode.NEAREST, None)
            assert np.array_equal(OPERATIONS[name](picture, m), expected), f"{name} at {m} differs"


def test_crop_boxes_are_inside_and_of_the_asked_area_and_shape() -> None:
    """Areas are uniform in the range and aspects within theirs, as torchvision's are; a strip gets its centre."""
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(500, 375, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 500 and bottom.max() <= 375
    area, aspect = (right - left) * (bottom - top) / (500 * 375), (right - left) / (bottom - top)
    assert 0.075 < area.min() < 0.1 and area.max() > 0.95
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    assert np.log(aspect).std() > 0.14, "the aspect hardly varies"
    torchvision = pytest.importorskip("torchvision")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    params = torchvision.transforms.RandomResizedCrop.get_params
    image = Image.new("RGB", (500, 375))
    theirs = np.array([params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)])
    assert area.mean() == pytest.approx((theirs[:, 2] * theirs[:, 3]).mean() / (500 * 375), abs=0.02)
    assert crop_box(1000, 10, (0.9, 1.0), (3 / 4, 4 / 3), rng) == (493, 0, 506, 10)
    square = np.array([crop_box(400, 400, (0.08, 0.9), (3 / 4, 4 / 3), rng) for _ in range(4000)])
    left, top, right, bottom = square.T
    assert np.log((right - left) / (bottom - top)).mean() == pytest.approx(0, abs=0.012), "wide as often as tall"


def test_a_random_crop_is_torchvisions(picture: Image.Image) -> None:
    """The whole box is resized to the square, of whatever shape it is; nothing of it is cut off."""
    functional = pytest.importorskip("torchvision").transforms.functional
    cfg, pixels = Augment(flip=False), Preprocess(32)
    for seed in range(5):
        left, top, right, bottom = crop_box(*picture.size, cfg.crop_scale, cfg.crop_ratio, np.random.default_rng(seed))
        assert right - left != bottom - top, "a square box tells nothing"
        theirs = functional.resized_crop(
            picture, top, left, bottom - top, right - left, [32, 32], functional.InterpolationMode.BICUBIC
        )
        np.testing.assert_array_equal(augment(picture, pixels, cfg, np.random.default_rng(seed)), theirs)


def test_operations_are_drawn_as_often_and_as_far_as_asked(picture: Image.Image, monkeypatch) -> None:
    """So many for each picture, all of them alike often, each with its magnitude, and half of the signed ones down."""
    drawn: list[tuple[str, float]] = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, m, name=name: drawn.append((name, m)) or image)
    rng = np.random.default_rng(0)
    for _ in range(500):
        randaugment(picture, 3, 15, rng)
    assert len(drawn) == 1500
    for name, (magnitude, signed) in magnitudes(15, *picture.size).items():
        mine = [m for other, m in drawn if other == name]
        assert 60 < len(mine) < 160 and {abs(m) for m in mine} == {magnitude}, name
        assert (0.3 < np.mean(np.array(mine) < 0) < 0.7) if signed else min(mine) >= 0, name


def test_the_generator_decides_everything(imagenet_samples: list[Path]) -> None:
    """Same generator, same crop; others differ; the size is the model's; half of the pictures are mirrored."""
    image = Image.open(io.BytesIO(imagenet_samples[0].read_bytes()))
    cfg, pixels = Augment(randaugment=(2, 9)), Preprocess(48)
    crops = [augment(image, pixels, cfg, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert crops[0].shape == (48, 48, 3) and crops[0].dtype == np.uint8
    assert np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])
    plain = Augment(crop_scale=None, flip=False)
    straight = augment(image, pixels, plain, np.random.default_rng(0)).astype(int)
    flips = 0
    for seed in range(200):
        crop = augment(image, pixels, Augment(crop_scale=None), np.random.default_rng(seed))
        mirrored = np.array_equal(crop, straight[:, ::-1])
        assert mirrored or np.array_equal(crop, straight)
        flips += mirrored
    assert 70 < flips < 130


def test_mixed_targets_say_what_is_in_the_picture() -> None:
    """Picture i is the constant i with target i: the mean pixel must equal the target's mean class."""
    images = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None], (4, 8, 6, 3))
    targets, classes = np.eye(4, dtype=np.float32), np.arange(4)
    weights, cut = [], []
    both = make_mix(Augment(mixup=0.8, cutmix=1.0))
    assert both is not None and make_mix(Augment()) is None
    for kind in (lambda *a: mixup(*a, alpha=0.8), lambda *a: cutmix(*a, alpha=1.0), both):
        for seed in range(8):
            x, y = kind(jax.random.key(seed), images, targets)
            assert x.shape == images.shape
            np.testing.assert_allclose(np.mean(x, axis=(1, 2, 3)), y @ classes, atol=1e-5)
            np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
            weights.append(float(y[1, 1]))
            if kind is both:
                cut.append(np.array_equal(x, np.round(x)))  # a box of another picture leaves every pixel whole
    assert np.std(weights) > 0.1, "the weight does not vary"
    assert 0 < sum(cut) < 8, "with both, it is always the one"


def test_mixing_is_as_strong_as_asked() -> None:
    """Mixup's weight has the variance of Beta(alpha, alpha); CutMix pastes as much as torchvision's does."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    torch = pytest.importorskip("torch")
    images, targets = np.zeros((2, 32, 32, 3), np.float32), np.eye(2, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), 1000)
    weights = jax.vmap(lambda key: mixup(key, images, targets, alpha=0.2)[1][0, 0])(keys)
    assert np.var(weights) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.1)
    torch.manual_seed(0)
    pair = torch.zeros(2, 3, 32, 32), torch.arange(2)
    theirs = [float(v2.CutMix(num_classes=2, alpha=1.0)(*pair)[1][0, 0]) for _ in range(1000)]
    ours = jax.vmap(lambda key: cutmix(key, images, targets, alpha=1.0)[1][0, 0])(keys)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.03)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("randaugment", (2.5, 9)),
        ("randaugment", (2, 9.0)),
        ("randaugment", (2,)),
        ("crop_scale", (0.1, math.inf)),
        ("mixup", math.nan),
        ("cutmix", math.inf),
        ("mixup", -1.0),
    ],
)
def test_bad_values_are_named(field: str, value: object) -> None:
    """Where they are given: later they are a traceback from a worker, or a loss that is NaN."""
    with pytest.raises(InputError, match=f"augmentation: {field} is "):
        Augment(**{field: value})
