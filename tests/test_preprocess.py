"""Crops are the references' crops, bit for bit; bad pictures are refused by name."""

import contextlib
import dataclasses
import functools
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxclip import config
from jaxclip.config import Preprocess
from jaxclip.errors import InputError
from jaxclip.preprocess import decode, normalize, preprocess

Crop = Callable[[Image.Image], np.ndarray]


# --- the references, without their last steps (to tensor, normalise) --------------------------------------------------


def _until_tensor(compose, convert: bool) -> Crop:
    """A torchvision ``Compose`` up to its tensor step; ``convert``: the library's data set opens pictures as RGB."""

    def crop(image: Image.Image) -> np.ndarray:
        image = image.convert("RGB") if convert else image
        for step in compose.transforms:
            if "ToTensor" in type(step).__name__:
                return np.asarray(image)
            image = step(image)
        raise AssertionError("the reference has no tensor step")

    return crop


def _open_clip(**kwargs) -> Crop:
    import open_clip

    return _until_tensor(open_clip.image_transform(is_train=False, **kwargs), convert=False)


def _timm(name: str, **changes) -> Crop:
    import timm

    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())  # type: ignore[union-attr]
    return _until_tensor(timm.data.create_transform(**data | changes), convert=True)  # as its ImageDataset does


def _torchvision(weights: str) -> Crop:
    import torchvision

    preset = torchvision.models.get_weight(weights).transforms()
    preset.mean, preset.std = [0.0] * 3, [1.0] * 3  # what is left of the tensor step is a division by 255

    def crop(image: Image.Image) -> np.ndarray:
        scaled = preset(image.convert("RGB"))  # as its ImageFolder does
        return (scaled * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)

    return crop


def _padded() -> Crop:
    import torchvision.transforms as t

    steps = [t.Resize(100, t.InterpolationMode.BICUBIC), t.CenterCrop(223), lambda i: i.convert("RGB"), t.ToTensor()]
    return _until_tensor(t.Compose(steps), convert=False)


TORCHVISION = Preprocess(
    224,
    resize_to=256,
    interpolation="bilinear",
    convert_rgb="before",
    mean=config.IMAGENET_MEAN,
    std=config.IMAGENET_STD,
)
TIMM = dataclasses.replace(TORCHVISION, interpolation="bicubic")
REFERENCES: dict[str, tuple[Preprocess, Callable[[], Crop]]] = {
    "open_clip": (Preprocess(224), lambda: _open_clip(image_size=224)),
    "open_clip 336": (Preprocess(336), lambda: _open_clip(image_size=336)),
    "open_clip bilinear": (
        Preprocess(224, interpolation="bilinear"),
        lambda: _open_clip(image_size=224, interpolation="bilinear"),
    ),
    "open_clip squash": (
        Preprocess(224, "squash", interpolation="bilinear"),
        lambda: _open_clip(image_size=224, resize_mode="squash", interpolation="bilinear"),
    ),
    "torchvision v1": (TORCHVISION, lambda: _torchvision("ResNet50_Weights.IMAGENET1K_V1")),
    "torchvision v2": (
        dataclasses.replace(TORCHVISION, resize_to=232),
        lambda: _torchvision("ResNet50_Weights.IMAGENET1K_V2"),
    ),
    "torchvision ViT-L/16": (
        dataclasses.replace(TORCHVISION, resize_to=242),
        lambda: _torchvision("ViT_L_16_Weights.IMAGENET1K_V1"),
    ),
    "torchvision 384": (
        dataclasses.replace(TIMM, size=384, resize_to=384),
        lambda: _torchvision("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"),
    ),
    "timm ViT": (dataclasses.replace(TIMM, resize_to=248), lambda: _timm("vit_base_patch16_224.augreg_in1k")),
    "timm ResNet": (dataclasses.replace(TIMM, resize_to=235), lambda: _timm("resnet50.a1_in1k")),
    "timm squash": (
        Preprocess(378, "squash", convert_rgb="before"),
        lambda: _timm("vit_huge_patch14_clip_378.dfn5b", crop_mode="squash", crop_pct=1.0),
    ),
    "padded": (Preprocess(223, resize_to=100), _padded),
    "timm padded": (
        dataclasses.replace(TIMM, resize_to=179),
        lambda: _timm("vit_base_patch16_224.augreg_in1k", crop_pct=1.25),
    ),
}


# The others differ from these in sizes alone.
QUICK = ("open_clip", "open_clip squash", "torchvision v1", "timm ViT", "padded")
EACH = pytest.mark.parametrize("name", REFERENCES)


@functools.cache
def _reference(name: str) -> tuple[str, Preprocess, Crop]:
    for library in ("torch", "torchvision", "timm", "open_clip"):
        pytest.importorskip(library)
    pixels, make = REFERENCES[name]
    return name, pixels, make()


_decoded = functools.lru_cache(maxsize=100)(decode)


def _compare(files: list[Path], reference: tuple[str, Preprocess, Crop]) -> None:
    name, pixels, crop = reference
    assert files, "no pictures to compare"
    for file in files:
        image = _decoded(file)
        ours, theirs = preprocess(image, pixels), crop(image)
        assert ours.dtype == np.uint8 and ours.shape == (pixels.size, pixels.size, 3)
        np.testing.assert_array_equal(ours, theirs, f"{file.name} differs from {name}'s crop")


@EACH
def test_samples(imagenet_samples, name):
    """A wrong filter, rounding of sizes, or crop offset shows on some real pictures of many shapes."""
    _compare(imagenet_samples[:: 10 if name in QUICK else 40], _reference(name))


@pytest.mark.slow
@EACH
def test_all_samples(imagenet_samples, name):
    """The same on all 1,000."""
    _compare(imagenet_samples, _reference(name))


def test_all_samples_open_clip(imagenet_samples):
    """The preprocessing of most checkpoints, on all 1,000 pictures even in a quick run."""
    _compare(imagenet_samples, _reference("open_clip"))


def _full_size() -> list[Path]:
    folder = SHARED / "imagenet_full"
    if not folder.is_dir():
        pytest.skip(f"real pictures are missing: {folder}")
    return sorted(folder.glob("*.JPEG"))


def test_full_size_open_clip():
    """Strong downsampling, where antialiasing matters most, is open_clip's on the 50 full-size pictures."""
    _compare(_full_size(), _reference("open_clip"))


@pytest.mark.slow
@EACH
def test_full_size(name):
    """The same for every reference."""
    _compare(_full_size(), _reference(name))


# --- pictures that are not plain RGB ----------------------------------------------------------------------------------


def _noise(mode: str, width: int = 301, height: int = 237) -> Image.Image:
    """A smooth random colour field, with fine noise on top."""
    rng = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    coarse = Image.merge(mode, [Image.fromarray(rng.integers(0, 256, (7, 9), np.uint8)) for _ in range(channels)])
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    fine = smooth + rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(fine.clip(0, 255).astype(np.uint8), mode)


def _saved(image: Image.Image, format: str, **kwargs) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **kwargs)
    return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _sixteen_bit(mode: str, format: str) -> bytes:
    values = np.asarray(_noise("L"), np.uint32) * 257
    return _saved(Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32}[mode])), format)


def _palette() -> Image.Image:
    return _noise("RGB").quantize(64)


ODD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "grey": ("L", lambda: _saved(_noise("L"), "JPEG")),
    "grey with alpha": ("LA", lambda: _saved(_noise("LA"), "PNG")),
    "CMYK": ("CMYK", lambda: _saved(_noise("CMYK"), "JPEG")),
    "palette": ("P", lambda: _saved(_palette(), "PNG")),
    "palette with one transparent colour": ("P", lambda: _saved(_palette(), "PNG", transparency=5)),
    "palette with alpha": ("P", lambda: _saved(_palette(), "PNG", transparency=bytes(range(0, 256, 4)))),
    "GIF with a transparent colour": ("P", lambda: _saved(_palette(), "GIF", transparency=5)),
    "RGB with a transparent colour": ("RGB", lambda: _saved(_noise("RGB"), "PNG", transparency=(0, 0, 0))),
    "RGBA": ("RGBA", lambda: _saved(_noise("RGBA"), "PNG")),
    "1 bit": ("1", lambda: _saved(_noise("L").convert("1"), "PNG")),
    "16 bit": ("I;16", lambda: _sixteen_bit("I;16", "PNG")),
    "32 bit": ("I", lambda: _sixteen_bit("I", "TIFF")),
    "floating point": ("F", lambda: _saved(_noise("L").convert("F"), "TIFF")),
    "EXIF-rotated": ("RGB", lambda: _saved(_noise("RGB"), "JPEG", exif=_exif(6))),
    "1xN": ("RGB", lambda: _saved(_noise("RGB", 1, 97), "PNG")),
    "Nx1": ("RGB", lambda: _saved(_noise("RGB", 97, 1), "PNG")),
    "1xN palette": ("P", lambda: _saved(_palette().crop((9, 0, 10, 97)), "PNG")),
    "1x1": ("RGB", lambda: _saved(_noise("RGB", 1, 1), "PNG")),
    "exact size": ("RGB", lambda: _saved(_noise("RGB", 224, 224), "PNG")),
    "exact short side": ("RGB", lambda: _saved(_noise("RGB", 225, 224), "PNG")),
    "small": ("RGB", lambda: _saved(_noise("RGB", 57, 31), "PNG")),
    "animation": ("P", lambda: _saved(_palette(), "GIF", save_all=True, append_images=[_noise("L").convert("P")])),
}


@functools.cache
def _odd(kind: str) -> bytes:
    return ODD[kind][1]()


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCES])
@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures(kind, name):
    """Modes, alpha, palettes and extreme shapes go through the reference's order of steps; it raises on none."""
    mode, data = ODD[kind][0], _odd(kind)
    _, pixels, crop = _reference(name)
    image = decode(data)
    assert image.mode == mode, f"the test's picture is {image.mode}, so {mode} is not tested"
    theirs = crop(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(preprocess(image, pixels), theirs, f"{kind}: differs from {name}'s crop")


def test_order_of_conversion_matters():
    """Were ``convert_rgb`` ignored, the two orders would agree on a palette (where Pillow resizes by nearest)."""
    image = decode(_odd("palette"))
    before = preprocess(image, Preprocess(224, convert_rgb="before"))
    assert (before != preprocess(image, Preprocess(224))).any()


def test_exif_is_left_alone():
    """The references ignore the orientation tag; to obey it would turn the picture."""
    plain, rotated = (decode(_saved(_noise("RGB"), "JPEG", exif=_exif(n))) for n in (1, 6))
    np.testing.assert_array_equal(preprocess(plain, Preprocess(224)), preprocess(rotated, Preprocess(224)))


def _huge(width: int, height: int) -> bytes:
    row, column = np.arange(width) // 7, np.arange(height)[:, None] // 5
    return _saved(Image.fromarray((row ^ column).astype(np.uint8)), "PNG", compress_level=1)


def test_huge():
    """24 million pixels give open_clip's crop."""
    data = _huge(6000, 4000)
    _, pixels, crop = _reference("open_clip")
    np.testing.assert_array_equal(preprocess(decode(data), pixels), crop(Image.open(io.BytesIO(data))))


@pytest.mark.slow
def test_huge_with_warning():
    """Between Pillow's two limits a picture is used, with Pillow's warning, as in the reference."""
    data = _huge(12000, 9000)
    _, pixels, crop = _reference("open_clip")
    with pytest.warns(Image.DecompressionBombWarning):
        ours = preprocess(decode(data), pixels)
    with pytest.warns(Image.DecompressionBombWarning):
        theirs = crop(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(ours, theirs)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def _hugging_face(processor) -> Crop:
    return lambda image: np.moveaxis(processor(image)["pixel_values"][0], 0, -1)


def _hugging_face_clip() -> tuple[str, Preprocess, Crop]:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    crop = _hugging_face(clip.CLIPImageProcessorPil(do_rescale=False, do_normalize=False))
    return "Hugging Face CLIP", Preprocess(224, convert_rgb="over_white", crop_rounding="down"), crop


def test_hugging_face_clip(imagenet_samples):
    """CLIPImageProcessor's Pillow backend, whose crop is a pixel off torchvision's for some shapes."""
    _compare(imagenet_samples[::10], _hugging_face_clip())


@pytest.mark.parametrize("size", [20, 21, 29, 31])
def test_hugging_face_pads(imagenet_samples, size):
    """A crop that is larger than the picture: for an odd difference transformers pads the first side by the most."""
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": 32, "width": 32}}
    crop = _hugging_face(clip.CLIPImageProcessorPil(do_rescale=False, do_normalize=False, **sizes))
    pixels = Preprocess(32, resize_to=size, convert_rgb="over_white", crop_rounding="down")
    _compare(imagenet_samples[::50], ("Hugging Face CLIP", pixels, crop))


@pytest.mark.parametrize("kind", ODD)
def test_hugging_face_odd_pictures(kind):
    """Transparency is put over white, by an alpha channel or by a palette's."""
    name, pixels, crop = _hugging_face_clip()
    image = decode(_odd(kind))
    np.testing.assert_array_equal(preprocess(image, pixels), crop(image), f"{kind}: differs from {name}'s crop")


def test_hugging_face_resnet(imagenet_samples):
    """ConvNextImageProcessor, which ResNets use: resized to 256, cropped to 224; it converts no colours."""
    convnext = pytest.importorskip("transformers.models.convnext.image_processing_pil_convnext")
    processor = convnext.ConvNextImageProcessorPil(size={"shortest_edge": 224}, do_rescale=False, do_normalize=False)
    pixels = Preprocess(224, resize_to=256, convert_rgb="before", crop_rounding="down")
    colour = [file for file in imagenet_samples[::10] if Image.open(file).mode == "RGB"]
    _compare(colour, ("Hugging Face ResNet", pixels, _hugging_face(processor)))


def test_hugging_face_vit(imagenet_samples):
    """ViTImageProcessor's squash resize; it converts no colours and fails on grey, so RGB pictures only."""
    vit = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    crop = _hugging_face(vit.ViTImageProcessorPil(do_rescale=False, do_normalize=False))
    pixels = Preprocess(224, "squash", interpolation="bilinear", convert_rgb="before")
    colour = [file for file in imagenet_samples[::10] if Image.open(file).mode == "RGB"]
    _compare(colour, ("Hugging Face ViT", pixels, crop))


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.sampled_from([None, 17, 80]))
def test_always_the_size_asked_for(width, height, size, resize_to):
    """Whatever the picture's shape, the crop is square, of the size asked for, and of RGB."""
    image = Image.new("RGB", (width, height), (10, 20, 30))
    out = preprocess(image, Preprocess(size, resize_to=resize_to))
    assert out.shape == (size, size, 3) and out.dtype == np.uint8
    if resize_to is None:
        assert (out == (10, 20, 30)).all(), "a picture of one colour became another, or was padded"


@pytest.mark.parametrize("jit", [False, True])
def test_normalize(jit):
    """All 256 values: another order of operations, or a wrong channel, is far more than float32 rounding."""
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = np.concatenate([values, values[:, ::-1], values[:, :, ::-1]], axis=3)
    function = jax.jit(normalize, static_argnums=(1, 2)) if jit else normalize
    for mean, std in (
        (config.OPENAI_MEAN, config.OPENAI_STD),
        (config.IMAGENET_MEAN, config.IMAGENET_STD),
        (config.INCEPTION_MEAN, config.INCEPTION_STD),
    ):
        ours = function(jnp.asarray(images), mean, std)
        reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])(images[0])
        assert ours.dtype == jnp.float32 and reference.dtype == torch.float32
        np.testing.assert_allclose(ours[0], reference.numpy().transpose(1, 2, 0), rtol=0, atol=1e-6)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_decode_reads_files_and_bytes(tmp_path):
    """Path, string and bytes give the same picture, and nothing is left to be read later."""
    path = tmp_path / "a.png"
    path.write_bytes(_saved(_noise("RGB"), "PNG"))
    pictures = [decode(path), decode(str(path)), decode(path.read_bytes())]
    path.unlink()
    for picture in pictures:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(_noise("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9])
def test_truncated(format, part, tmp_path):
    """A file cut anywhere is refused by name: never half a picture, never an exception of the decoder's own."""
    data = _saved(_noise("RGB"), format)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=re.escape(str(path))):
        decode(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_corrupt(data):
    """Whatever bytes are changed, the outcome is a picture or an InputError."""
    original = data.draw(st.sampled_from([_SMALL_JPEG, _SMALL_PNG, _SMALL_GIF]))
    corrupt = bytearray(original)
    for place in data.draw(st.lists(st.integers(0, len(original) - 1), min_size=1, max_size=8)):
        corrupt[place] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(InputError):
            decode(bytes(corrupt)).getpixel((0, 0))


_SMALL_JPEG, _SMALL_PNG, _SMALL_GIF = (_saved(_noise("RGB", 20, 15), format) for format in ("JPEG", "PNG", "GIF"))


def test_not_a_picture(tmp_path):
    """A web page, a missing file and a folder are told apart, each by name."""
    page = tmp_path / "page.jpg"
    page.write_text("<html>404</html>")
    for path, message in ((page, "page.jpg is not a picture"), (tmp_path / "none.jpg", "none.jpg: No such file"),
                          (tmp_path, "Is a directory")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            decode(path)
    with pytest.raises(InputError, match="picture of 3 bytes"):
        decode(b"abc")


def test_bomb(monkeypatch):
    """More than twice Pillow's limit is refused before any pixel is decoded."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(InputError, match=r"20001 pixels\) exceeds limit of 20000.*MAX_IMAGE_PIXELS"):
        decode(_saved(Image.new("1", (20_001, 1)), "PNG"))


def test_too_narrow():
    """Resizing the shorter side of 1x50,000 would need 10 GB: refused in words, not by the operating system."""
    with pytest.raises(InputError, match="1x50000 pixels is too narrow"):
        preprocess(Image.new("L", (1, 50_000)), Preprocess(224))


def test_resized_to_no_more_than_is_decoded(monkeypatch):
    """Twice Pillow's limit, as in decode, and none where the user took the limit away: else good pictures are lost."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    preprocess(Image.new("L", (50, 156)), Preprocess(80))  # 80x249, of 19,920 pixels
    narrow = Image.new("L", (50, 160))
    with pytest.raises(InputError, match="it would have 80x256"):
        preprocess(narrow, Preprocess(80))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert preprocess(narrow, Preprocess(80)).shape == (80, 80, 3)


def test_unconvertible_mode():
    """A mode that Pillow cannot convert (the reference raises ValueError) is named."""
    with pytest.raises(InputError, match="mode La"):
        preprocess(Image.new("La", (300, 300)), Preprocess(224))
