"""The ImageNet classes that a shift set covers, as checked data."""

import functools
import re
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxclip.data import SHIFTS, imagenet_wnids, read_json

_ARCHIVES = {"imagenetv2_matched_frequency": "imagenet_v2", "imagenetv2_matched_frequency_format_val": "imagenet_v2",
             "sketch": "imagenet_sketch"}  # fmt: skip
"""Authors' archives, and the folders that they unpack to, which have another name than tfds's."""


def class_subset(name: str) -> Int[np.ndarray, " m"] | None:
    """The ImageNet indices, ascending, between which a model chooses on a data set, or None where it is all 1,000.

    ImageNet-A and -R cover 200 classes each. ObjectNet's 113 labels are 125 ImageNet classes, see :func:`label_map`:
    choosing between all of these and taking any right one is choosing between the 113 by the largest logit of each.

    Args:
        name: As :attr:`jaxclip.datasets.Source.name` has it; a configuration or split after it is ignored, and the
            authors' own names are known too (``imagenet-a.tar`` and the folder ``imagenet-a`` that it unpacks to).
    """
    name = _plain(name)[0]
    if name == "objectnet":
        return np.sort(np.concatenate(list(label_map(name).values())))
    wnids = read_json("class_subsets.json").get(name)
    return None if wnids is None else np.array([_index()[wnid] for wnid in wnids], np.int32)


def label_map(name: str) -> dict[str, Int[np.ndarray, " k"]]:
    """For each class of a data set whose classes are not ImageNet's, in order, the ImageNet indices that are right.

    Only ObjectNet is such: its 113 overlapping labels have one to three each; of all its 313 labels
    (``objectnet/all``), the other 200 have none.

    Args:
        name: As in :func:`class_subset`.
    """
    base, *rest = _plain(name)
    if base != "objectnet":
        return {}
    maps = objectnet()
    labels = maps["folders"].values() if "all" in rest else maps["imagenet"]
    return {label: np.array([_index()[w] for w in maps["imagenet"].get(label, [])], np.int32) for label in labels}


def objectnet() -> dict[str, dict[str, Any]]:
    """ObjectNet's maps: ``folders``, folder → label (313), and ``imagenet``, label → WNIDs (113)."""
    return read_json("objectnet.json")


def plain_name(name: str) -> str:
    """The name of a shift set whose folder or archive has its authors' own name; any other name as it is."""
    base, *rest = _plain(name)
    return base if not rest and base in SHIFTS else name


def is_shift(name: str) -> bool:
    """Whether a data set is one of ``SHIFTS``, in whatever configuration and split."""
    return _plain(name)[0] in SHIFTS


def _plain(name: str) -> list[str]:
    """The data set's name, then configuration and split."""
    base, *rest = re.split("[/:]", name)
    base = re.sub(r"\.(tar|tar\.gz|tgz)$", "", base).replace("-", "_")
    return [_ARCHIVES.get(base, base), *rest]


@functools.cache
def _index() -> dict[str, int]:
    return {wnid: i for i, wnid in enumerate(imagenet_wnids())}
