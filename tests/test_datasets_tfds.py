"""tfds's own test of our builders, and tfds's own builders through `prepare`: these need TensorFlow ([prepare])."""

import io
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow prepares tfds's data sets; reading them is tested without it")
pytest.importorskip("dill", reason="tfds.testing imports it")

import tensorflow_datasets as tfds
from made_datasets import broden_files, jpeg, objectnet_files, write_folder, write_zip

from jaxclip.datasets import class_subset, open_source, prepare
from jaxclip.datasets.broden import Broden
from jaxclip.datasets.objectnet import Objectnet
from jaxclip.datasets.subsets import objectnet
from jaxclip.errors import InputError


@pytest.fixture(scope="class", autouse=True)
def example_dir(request, tmp_path_factory):
    """Where DatasetBuilderTestCase finds what a user has downloaded."""
    if make := getattr(request.cls, "make", None):
        request.cls.EXAMPLE_DIR = tmp_path_factory.mktemp("published")
        make(request.cls.EXAMPLE_DIR)


class ObjectnetTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Objectnet
    BUILDER_CONFIG_NAMES_TO_TEST = ["overlapping"]  # noqa: RUF012
    SPLITS = {"test": 113}  # noqa: RUF012

    @staticmethod
    def make(folder: Path) -> None:
        write_zip(folder / "objectnet-1.0.zip", objectnet_files(list(objectnet()["folders"])))


class ObjectnetAllTest(ObjectnetTest):
    BUILDER_CONFIG_NAMES_TO_TEST = ["all"]  # noqa: RUF012
    SPLITS = {"test": 314}  # noqa: RUF012


class BrodenTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Broden
    BUILDER_CONFIG_NAMES_TO_TEST = ["224"]  # noqa: RUF012
    SPLITS = {"train": 3, "val": 1}  # noqa: RUF012

    @staticmethod
    def make(folder: Path) -> None:
        write_zip(folder / "broden1_224.zip", broden_files()[0])


class Broden384Test(BrodenTest):
    BUILDER_CONFIG_NAMES_TO_TEST = ["384"]  # noqa: RUF012

    @staticmethod
    def make(folder: Path) -> None:
        write_folder(folder, broden_files(384)[0])


def picture(seed: int) -> bytes:
    return jpeg(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8))


def through_tfds(spec: str, downloaded: object, data_dir: Path):
    """Prepares one of tfds's data sets from what its download would have given, and opens it."""
    with mock.patch.multiple(
        "tensorflow_datasets.core.download.DownloadManager",
        download=lambda self, urls: downloaded,
        download_and_extract=lambda self, urls: downloaded,
    ):
        prepare(spec, None, data_dir)
    return open_source(spec, data_dir=data_dir)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_imagenet_a_and_r(name, tmp_path):
    """As tfds prepares them: labels are ImageNet's indices, and all are in the class subset."""
    wnids = [tfds.builder(name, data_dir=tmp_path).info.features["label"].names[i] for i in class_subset(name)[::40]]
    root = f"imagenet-{name[-1]}"
    files = {f"{root}/{wnid}/{i}_{wnid}.jpg": picture(i) for i, wnid in enumerate(wnids)}
    source = through_tfds(name, str(write_folder(tmp_path / "x", files)), tmp_path / "data")
    assert source.name == name and len(source) == 5 and len(source.classes) == 1000
    for i in range(5):
        example = source[i]
        wnid = example.id.split("_")[-1].removesuffix(".jpg")
        assert source.classes[example.label] == wnid and example.label in class_subset(name)
        assert example.image_bytes == files[f"{root}/{wnid}/{wnids.index(wnid)}_{wnid}.jpg"], "the JPEG was re-encoded"


def test_imagenet_v2_is_the_matched_frequency_one(tmp_path):
    root = "imagenetv2-matched-frequency-format-val"
    files = {f"{root}/{label}/{label:x}.jpeg": picture(label) for label in (0, 2, 10, 999)}
    source = through_tfds("imagenet_v2", str(write_folder(tmp_path / "x", files)), tmp_path / "data")
    assert {source[i].id: source[i].label for i in range(4)} == {f"{k}/{k:x}.jpeg": k for k in (0, 2, 10, 999)}


def test_imagenet_sketch(tmp_path):
    path = tmp_path / "sketch.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("sketch/n01443537/sketch_1.JPEG")
        info.size = len(picture(0))
        archive.addfile(info, io.BytesIO(picture(0)))
    source = through_tfds("imagenet_sketch", path, tmp_path / "data")
    assert list(source[0]) == ["n01443537/sketch_1.JPEG", picture(0), 1]


def test_imagenet2012_from_the_users_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    with tarfile.open(tmp_path / "mine" / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in (1, 2):
            info = tarfile.TarInfo(f"ILSVRC2012_val_0000000{i}.JPEG")
            info.size = len(picture(i))
            archive.addfile(info, io.BytesIO(picture(i)))
    assert prepare("imagenet2012", tmp_path / "mine", tmp_path / "data") == {"validation": 2}
    source = open_source("imagenet2012", data_dir=tmp_path / "data")
    in_place = open_source(tmp_path / "mine" / "ILSVRC2012_img_val.tar")
    assert {source[i] for i in range(2)} == {in_place[i] for i in range(2)}, "tfds and the tar in place differ"
    with pytest.raises(InputError, match="no split 'train'"):
        open_source("imagenet2012", split="train", data_dir=tmp_path / "data")
    with pytest.raises(InputError, match="could not prepare"):
        prepare("imagenet2012", tmp_path / "data", tmp_path / "other")


def test_cifar10_and_its_shifts(tmp_path):
    """Raw pixels, which tfds stores as PNG; of the shifts tfds knows no names of classes."""
    rng = np.random.default_rng(0)
    labels, pixels = rng.integers(0, 10, 30), rng.integers(0, 256, (30, 32, 32, 3), np.uint8)
    binary = b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in zip(labels, pixels, strict=True)
    )
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = {f"cifar-10-batches-bin/{name}.bin": binary for name in names}
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join(classes).encode()
    cifar = through_tfds("cifar10", str(write_folder(tmp_path / "c", files)), tmp_path / "data")
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "labels.npy", labels)
    new = through_tfds("cifar10_1", (tmp_path / "images.npy", tmp_path / "labels.npy"), tmp_path / "data")
    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", np.concatenate([pixels] * 5))
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.concatenate([labels] * 5))
    foggy = through_tfds("cifar10_corrupted/fog_3", str(tmp_path), tmp_path / "data")
    from PIL import Image

    for source in (cifar, new, foggy):
        assert source.classes == classes and len(source) == 30
        read = {
            np.asarray(Image.open(io.BytesIO(e.image_bytes))).tobytes(): e.label
            for e in map(source.__getitem__, range(30))
        }
        assert read == {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}, source
        assert len({source[i].id for i in range(30)}) == 30
    assert foggy.name == "cifar10_corrupted/fog_3"
    with pytest.raises(InputError, match="fogg_3"):
        prepare("cifar10_corrupted/fogg_3", None, tmp_path / "data")


def test_a_data_set_in_another_format_says_what_to_do(tmp_path):
    """tfds's default format, TFRecord, has no random access."""
    write_zip(tmp_path / "broden1_224.zip", broden_files()[0])
    builder = tfds.builder("broden", data_dir=tmp_path / "data")
    (tmp_path / "manual").mkdir()
    (tmp_path / "broden1_224.zip").rename(tmp_path / "manual" / "broden1_224.zip")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "manual"))
    with pytest.raises(InputError, match=r"in the format tfrecord.*remove it and run `jaxclip datasets prepare broden"):
        open_source("broden", data_dir=tmp_path / "data")
