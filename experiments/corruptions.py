"""Five of the corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019), with its constants for 32x32 pictures.

Each is a function of one picture, a severity from 1 to 5 and a generator. They follow the paper's description and
published constants, on NumPy, SciPy and Pillow; they are not bit for bit what CIFAR-10-C holds.
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

Picture = UInt8[np.ndarray, "H W 3"]
Corruption = Callable[[Picture, int, np.random.Generator], Picture]


def gaussian_noise(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Independent normal noise on every value."""
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return _bytes(x / 255 + rng.normal(scale=scale, size=x.shape))


def defocus_blur(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Convolution with a disk, whose edge a Gaussian of 3x3 smooths; nothing is random."""
    radius, alias = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    kernel = disk(radius, alias)[..., None]
    return _bytes(ndimage.correlate(x / 255, kernel, mode="mirror"))


def contrast(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Values drawn towards the mean of their channel; nothing is random."""
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = (x / 255).mean(axis=(0, 1))
    return _bytes((x / 255 - mean) * share + mean)


def pixelate(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Shrunk and enlarged again with a box filter; nothing is random."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = x.shape[:2]
    small = Image.fromarray(x).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(x: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Written as a JPEG of low quality and read again; nothing is random."""
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    return np.asarray(Image.open(file))


CORRUPTIONS: Mapping[str, Corruption] = {
    f.__name__: f for f in (gaussian_noise, defocus_blur, contrast, pixelate, jpeg_compression)
}


def disk(radius: float, alias: float) -> Float[np.ndarray, "17 17"]:
    """A disk that sums to one, smoothed by a 3x3 Gaussian with standard deviation ``alias``."""
    at = np.arange(-8, 9)
    hard = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    gauss = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * alias**2))
    return ndimage.correlate(hard / hard.sum(), np.outer(gauss, gauss) / gauss.sum() ** 2, mode="mirror")


def _bytes(x: Float[np.ndarray, "H W 3"]) -> Picture:
    """From 0 to 1, clipped; the fraction is cut off, as the paper's code does."""
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)
