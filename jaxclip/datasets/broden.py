"""tfds builder of Broden (Bau et al. 2017), from the zip that its authors publish, or the folder it unpacks to.

The layout is that of NetDissect's ``joinseg.py``: ``index.csv`` has a row for each picture, with a column for each
category of ``category.csv``; a cell holds, between semicolons, numbers of labels of the whole picture and files of
pixel masks, whose pixels hold numbers of labels as red + 256 · green; ``label.csv`` has the labels' names.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from jaxclip.datasets.archive import Reader, open_reader
from jaxclip.errors import InputError, reason
from jaxclip.preprocess import decode


class Broden(tfds.core.GeneratorBasedBuilder):
    """Broden: pictures, each with the set of concepts that it exhibits, in any number of pixels.

    ``concepts`` are indices of ``label.csv``'s rows, ascending, and ``categories`` beside them says in which category
    each was seen; a concept that was seen in two is there twice. The metadata's ``concept_categories`` are, for each
    concept, the category in which most pictures have it.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=size, description=f"broden1_{size}: pictures of {size} × {size} pixels.")
        for size in ("224", "227", "384")
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "broden1_224.zip (_227, _384) from http://netdissect.csail.mit.edu/data, or its folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "file_name": tfds.features.Text(),
                    "concepts": tfds.features.Sequence(tfds.features.ClassLabel()),
                    "categories": tfds.features.Sequence(tfds.features.ClassLabel()),
                }
            ),
            homepage="http://netdissect.csail.mit.edu",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        reader = open_reader(Path(dl_manager.manual_dir), "index.csv")
        rows = read_csv(reader, "index.csv", ("image", "split", "ih"))
        labels = read_csv(reader, "label.csv", ("number", "name", "category"))
        categories = [row["name"] for row in read_csv(reader, "category.csv", ("name",))]
        if int(rows[0]["ih"]) != int(self.builder_config.name):
            raise InputError(f"{reader.where} is of {rows[0]['ih']} pixels: prepare broden/{rows[0]['ih']} from it")
        if missing := [name for name in categories if name not in rows[0]]:
            raise InputError(f"{reader.where}: index.csv has no column {missing[0]}, a category of category.csv")
        labels.sort(key=lambda label: int(label["number"]))
        self.info.features["concepts"].feature.names = [label["name"] for label in labels]
        self.info.features["categories"].feature.names = categories
        self.info.metadata["concept_categories"] = [main_category(label["category"]) for label in labels]
        index = {int(label["number"]): i for i, label in enumerate(labels)}
        splits: dict[str, list] = {}
        for row in rows:
            splits.setdefault(row["split"], []).append(row)
        return {split: self._generate_examples(reader, part, categories, index) for split, part in splits.items()}

    def _generate_examples(
        self, reader: Reader, rows: Sequence[Mapping[str, str]], categories: Sequence[str], index: Mapping[int, int]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in rows:
            seen = []
            for place, category in enumerate(categories):
                for number in numbers(reader, row[category]):
                    if number not in index:
                        raise InputError(
                            f"{reader.where}: {row['image']} has the {category} {number}, not in label.csv"
                        )
                    seen.append((index[number], place))
            seen.sort()
            yield (
                row["image"],
                {
                    "image": reader.read(f"images/{row['image']}"),
                    "file_name": row["image"],
                    "concepts": [concept for concept, _ in seen],
                    "categories": [category for _, category in seen],
                },
            )


def numbers(reader: Reader, cell: str) -> list[int]:
    """The numbers of the labels in a cell of ``index.csv``, ascending, without 0, which is no label.

    Raises:
        InputError: A mask is missing or cannot be decoded.
    """
    found: set[int] = set()
    for item in filter(None, cell.split(";")):
        found.update([int(item)] if item.isdecimal() else np.unique(mask(reader, item)).tolist())
    return sorted(found - {0})


def mask(reader: Reader, name: str) -> Int[np.ndarray, "h w"]:
    """The number of the label of each pixel: red + 256 · green."""
    encoded = reader.read(f"images/{name}")
    try:
        pixels = np.asarray(decode(encoded).convert("RGB"), np.int32)
    except (OSError, ValueError) as error:
        raise InputError(f"{reader.where}: images/{name} cannot be decoded: {reason(error)}") from error
    return pixels[..., 0] + 256 * pixels[..., 1]


def main_category(text: str) -> str:
    """Of categories with their numbers of pictures, ``material(36);object(3)``, the one with most."""
    return max(re.findall(r"([^;()]+)\((\d+)\)", text), key=lambda found: int(found[1]))[0]


def read_csv(reader: Reader, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        InputError: The file is missing or empty, or has not these columns.
    """
    rows = list(csv.DictReader(io.StringIO(reader.read(name).decode())))
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise InputError(f"{reader.where}: {name} has no column {missing[0]}, or no rows")
    return rows
