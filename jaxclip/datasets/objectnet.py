"""tfds builder of ObjectNet (Barbu et al. 2019), from the zip that its authors publish, or the folder it unpacks to."""

import concurrent.futures
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxclip.datasets.archive import Reader, open_reader
from jaxclip.datasets.subsets import label_map, objectnet
from jaxclip.errors import InputError, reason
from jaxclip.preprocess import decode

BORDER = 2  # pixels of red around every picture, against its use in training


class Objectnet(tfds.core.GeneratorBasedBuilder):
    """ObjectNet without its border, stored losslessly (PNG); labels index the configuration's labels."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="overlapping", description="The 113 labels that ImageNet's classes cover."),
        tfds.core.BuilderConfig(name="all", description="All 313 labels."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "objectnet-1.0.zip from https://objectnet.dev, or the folder that it unpacks to."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=self._labels()),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://objectnet.dev",
            license="CC BY 4.0; may not be used to tune the parameters of any model",
        )

    def _labels(self) -> list[str]:
        return list(label_map(f"objectnet/{self.builder_config.name}"))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"test": self._generate_examples(open_reader(Path(dl_manager.manual_dir), "images"))}

    def _generate_examples(self, reader: Reader) -> Iterator[tuple[str, dict[str, Any]]]:
        folders, labels = objectnet()["folders"], set(self._labels())
        wanted = {folder: label for folder, label in folders.items() if label in labels}
        pictures = [name.removeprefix("images/") for name in reader.names() if name.endswith(".png")]
        found = {name.partition("/")[0] for name in pictures}
        if strange := sorted(found - set(folders)):
            raise InputError(f"{reader.where}: images/{strange[0]} is no folder of ObjectNet 1.0")
        if missing := sorted(set(wanted) - found):
            raise InputError(f"{reader.where}: images/{missing[0]} has no pictures; download or unpack it again")
        pictures = [name for name in pictures if name.partition("/")[0] in wanted]
        # Pillow lets other threads run while it decodes and encodes.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for start in range(0, len(pictures), 64):
                names = pictures[start : start + 64]
                for name, image in zip(
                    names, pool.map(lambda n: without_border(reader, f"images/{n}"), names), strict=True
                ):
                    yield name, {"image": image, "label": wanted[name.partition("/")[0]], "file_name": name}


def without_border(reader: Reader, name: str) -> bytes:
    """The picture without its border of 2 pixels on each side, as PNG: the other pixels are as they were.

    Raises:
        InputError: It cannot be decoded, or is nothing but border.
    """
    encoded, out = reader.read(name), io.BytesIO()
    try:
        image = decode(encoded)
        cropped = image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))
        cropped.save(out, "PNG", compress_level=1)
    except (OSError, ValueError, SystemError) as error:
        raise InputError(f"{reader.where}: {name} cannot be decoded: {reason(error)}") from error
    return out.getvalue()
