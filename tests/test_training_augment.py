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
from jaxclip.training.augment import OPERATIONS, Augment, augment, crop_box, cutmix, magnitudes, make_mix, mixup

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
    weights = []
    both = make_mix(Augment(mixup=0.8, cutmix=1.0))
    assert both is not None and make_mix(Augment()) is None
    for kind in (lambda *a: mixup(*a, alpha=0.8), lambda *a: cutmix(*a, alpha=1.0), both):
        for seed in range(8):
            x, y = kind(jax.random.key(seed), images, targets)
            assert x.shape == images.shape
            np.testing.assert_allclose(np.mean(x, axis=(1, 2, 3)), y @ classes, atol=1e-5)
            np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
            weights.append(float(y[1, 1]))
    assert np.std(weights) > 0.1, "the weight does not vary"


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
