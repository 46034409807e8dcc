"""Picture → uint8 crop, bit-exact with the reference libraries; then, on the device, the normalisation.

The references are Pillow pipelines: open_clip's and OpenAI's inference transform, torchvision's presets, timm's
evaluation transform, transformers' Pillow-backed image processors. Pillow does the same work here, so equality rests on
the order of steps and on rounding, which the tests compare. Rotation by EXIF is left undone, as it is there.
"""

import io
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from jaxclip.config import Preprocess
from jaxclip.errors import InputError

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode(source: bytes | str | os.PathLike) -> Image.Image:
    """Reads and decodes the whole of a picture (the first frame of an animation).

    Pillow's limits hold as they do in the references: above ``Image.MAX_IMAGE_PIXELS`` (89 million) pixels it warns and
    goes on; above twice that the picture is refused as a decompression bomb, before it is decoded.

    Args:
        source: The encoded bytes, or the path of a file.

    Raises:
        InputError: There is no such file, or it is no picture, is truncated, corrupt, or too large.
    """
    where = f"picture of {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source)) as image:
            image.load()
            return image
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{where}: {error}. If it is real, raise PIL.Image.MAX_IMAGE_PIXELS or shrink the picture"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{where} is not a picture in a format that Pillow reads, or its header is corrupt") from error
    except Exception as error:  # a decoder fed with garbage raises anything
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{where}: {error.strerror}") from error
        raise InputError(f"{where} is truncated or corrupt ({error or type(error).__name__})") from error


def preprocess(image: Image.Image, config: Preprocess) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes, crops the centre (zeros around where the picture is smaller) and converts to RGB.

    Args:
        image: A decoded picture, of any mode that Pillow converts to RGB.
        config: Sizes, filter, and whether RGB comes first.

    Raises:
        InputError: The mode does not convert to RGB, or the picture is so narrow that resizing its shorter side would
            make more pixels than :func:`decode` accepts.
    """
    if config.convert_rgb == "over_white" and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), _convert(image, "RGBA"))
    if config.convert_rgb != "after":
        image = _convert(image, "RGB")
    size, width, height = config.size, *_resized(image.width, image.height, config)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise InputError(
            f"picture of {image.width}x{image.height} pixels is too narrow: resized, it would have {width}x{height}"
        )
    if (width, height) != image.size:
        image = image.resize((width, height), _FILTERS[config.interpolation])
    left, top = (_margin(length, size, config.crop_rounding) for length in (width, height))
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(_convert(image, "RGB"))


def normalize(
    images: UInt8[Array, "n H W 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "n H W 3"]:
    """(images / 255 - mean) / std in float32: jittable, on the device where ``images`` are.

    Within 1e-6 of torchvision's ``ToTensor`` and ``Normalize`` (XLA multiplies by a reciprocal where they divide).
    """
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def _resized(width: int, height: int, config: Preprocess) -> tuple[int, int]:
    """Torchvision's arithmetic: the longer side is rounded down."""
    to = config.size if config.resize_to is None else config.resize_to
    if config.resize == "squash":
        return to, to
    return (to, int(to * height / width)) if width <= height else (int(to * width / height), to)


def _margin(length: int, size: int, rounding: str) -> int:
    """What is cut off before the centre, or (negative) padded: rounded down by torchvision, up by transformers."""
    if length < size:
        return -((size - length) // 2) if rounding == "even" else (length - size) // 2
    return (length - size) // 2 if rounding == "down" else round((length - size) / 2)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    try:
        return image.convert(mode)
    except (ValueError, OSError) as error:
        raise InputError(f"picture of mode {image.mode} cannot be converted to {mode}: {error}") from error
