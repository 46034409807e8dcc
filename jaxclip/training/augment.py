"""Augmentation: of one picture, with Pillow on the host; of a batch (mixup, CutMix), in JAX on the device.

No kept library does this without PyTorch, TensorFlow or OpenCV (whose resampling is not the one that the recipes were
tuned with), and Pillow has every operation, so these are Pillow's, in the arithmetic of torchvision's transforms.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from PIL import Image, ImageEnhance, ImageOps

from jaxclip.config import Preprocess
from jaxclip.errors import InputError
from jaxclip.preprocess import preprocess

_BINS = 31


@dataclasses.dataclass(frozen=True)
class Augment:
    """What happens to training pictures.

    Attributes:
        crop_scale: Share of the picture's area that a random resized crop takes, from and to (Szegedy et al. 2015);
            None crops the centre as in evaluation.
        crop_ratio: The crop's width over height, from and to.
        flip: Mirror half of the pictures.
        randaugment: Operations for each picture and their magnitude, 0 to 30 (Cubuk et al. 2020); None for none.
        mixup: The Beta distribution's parameter (Zhang et al. 2018); 0 for none.
        cutmix: The same (Yun et al. 2019). With both, each batch gets one or the other.
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    randaugment: tuple[int, int] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        for name, pair in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if pair is not None and not 0 < pair[0] <= pair[1] < math.inf:
                raise InputError(f"augmentation: {name} is {pair}, not from a positive number to a larger one")
        if self.randaugment is not None and not _is_level(self.randaugment):
            raise InputError(
                f"augmentation: randaugment is {self.randaugment}, not a number of operations and a magnitude to 30, "
                "both integers"
            )
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise InputError(
                    f"augmentation: {name} is {alpha}, and is the parameter of a Beta distribution: a positive number, "
                    "0 for none"
                )


def _is_level(pair: tuple[int, ...]) -> bool:
    return [type(x) for x in pair] == [int, int] and pair[0] > 0 and 0 <= pair[1] < _BINS


def augment(
    image: Image.Image, pixels: Preprocess, cfg: Augment, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """A training crop of a decoded picture: the same for the same generator.

    Raises:
        InputError: The picture does not convert to RGB, or is too narrow.
    """
    if cfg.crop_scale is not None:
        box = crop_box(image.width, image.height, cfg.crop_scale, cfg.crop_ratio, rng)
        whole = dataclasses.replace(pixels, resize="squash", resize_to=pixels.size)
        image = Image.fromarray(preprocess(image.crop(box), whole))
    else:
        image = Image.fromarray(preprocess(image, pixels))
    if cfg.flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if cfg.randaugment is not None:
        image = randaugment(image, *cfg.randaugment, rng)
    return np.asarray(image)


def crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random crop: torchvision's ``RandomResizedCrop.get_params``.

    Of ten tries the first that fits is taken; where none does, the largest centre crop with a ratio that is allowed.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


# --- RandAugment -----------------------------------------------------------------------------------------------------


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, amount: kind(image).enhance(1 + amount)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, m: _affine(image, 1, m, 0, 0, 1, 0),
    "ShearY": lambda image, m: _affine(image, 1, 0, 0, m, 1, 0),
    "TranslateX": lambda image, m: _affine(image, 1, 0, -int(m), 0, 1, 0),
    "TranslateY": lambda image, m: _affine(image, 1, 0, 0, 0, 1, -int(m)),
    "Rotate": lambda image, m: image.rotate(m, Image.Resampling.NEAREST),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "Solarize": lambda image, m: ImageOps.solarize(image, m),  # type: ignore[arg-type]
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}
"""torchvision's ``RandAugment``: its operations, by its names, with nearest-neighbour resampling and black corners."""


def magnitudes(level: int, width: int, height: int) -> dict[str, tuple[float, bool]]:
    """What level 0 to 30 means to each operation, and whether its sign is random: torchvision's table."""
    share = level / (_BINS - 1)
    signed = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150 / 331 * width,
        "TranslateY": 150 / 331 * height,
        "Rotate": 30.0,
    }
    signed |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9)
    table = dict.fromkeys(OPERATIONS, (0.0, False)) | {name: (most * share, True) for name, most in signed.items()}
    return table | {"Posterize": (8 - round(4 * share), False), "Solarize": (255 * (1 - share), False)}


def randaugment(image: Image.Image, operations: int, level: int, rng: np.random.Generator) -> Image.Image:
    """So many operations, drawn with replacement, one after the other."""
    table = magnitudes(level, *image.size)
    for name in rng.choice(list(OPERATIONS), operations):
        magnitude, signed = table[str(name)]
        image = OPERATIONS[str(name)](image, -magnitude if signed and rng.random() < 0.5 else magnitude)
    return image


# --- of a batch ------------------------------------------------------------------------------------------------------

Mix = Callable[
    [Key[Array, ""], Float[Array, "n H W 3"], Float[Array, "n c"]], tuple[Float[Array, "n H W 3"], Float[Array, "n c"]]
]


def make_mix(cfg: Augment) -> Mix | None:
    """Mixup, CutMix, or for each batch one of them; None where the recipe has neither."""
    kinds = [(mixup, cfg.mixup), (cutmix, cfg.cutmix)]
    chosen = [functools.partial(kind, alpha=alpha) for kind, alpha in kinds if alpha > 0]
    if len(chosen) < 2:
        return chosen[0] if chosen else None

    def either(key, images, targets):
        which, key = jax.random.split(key)
        return jax.lax.cond(jax.random.bernoulli(which), *chosen, key, images, targets)

    return either


def mixup(
    key: Key[Array, ""], images: Float[Array, "n H W 3"], targets: Float[Array, "n c"], *, alpha: float
) -> tuple[Float[Array, "n H W 3"], Float[Array, "n c"]]:
    """Each picture and its target, averaged with the next one's; the batch's weight is from Beta(alpha, alpha)."""
    weight = jax.random.beta(key, alpha, alpha)
    return _blend(images, weight), _blend(targets, weight)


def cutmix(
    key: Key[Array, ""], images: Float[Array, "n H W 3"], targets: Float[Array, "n c"], *, alpha: float
) -> tuple[Float[Array, "n H W 3"], Float[Array, "n c"]]:
    """A box of the next picture in each one; targets are weighted by area. The box is the batch's."""
    keys = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(keys[0], alpha, alpha)) / 2
    inside = jnp.ones((height, width), bool)
    for axis, (place, length) in enumerate(zip(keys[1:], (height, width), strict=True)):
        centre = jax.random.randint(place, (), 0, length)
        half = (side * length).astype(int)
        at = jnp.arange(length)
        within = (at >= centre - half) & (at < centre + half)
        inside &= within[:, None] if axis == 0 else within[None, :]
    mixed = jnp.where(inside[None, :, :, None], jnp.roll(images, 1, axis=0), images)
    return mixed, _blend(targets, 1 - inside.mean())


def _blend(x: Float[Array, "n *s"], weight: Float[Array, ""]) -> Float[Array, "n *s"]:
    return weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)
