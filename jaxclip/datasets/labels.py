"""From the names of files and folders to labels."""

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxclip.data import imagenet_wnids
from jaxclip.datasets.source import unknown
from jaxclip.errors import InputError

_SPLITS = ("train", "val", "valid", "validation", "test")
_NUMBERS = 100_000  # folders with greater numbers for names are dates or the like
_WNID = re.compile(r"n\d{8}")
_WNID_FILE = re.compile(r"(n\d{8})[._-]")
_VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def class_names(paths: Sequence[str], split: str | None, where: str) -> tuple[list[int], list[str | None]]:
    """The name of each picture's class by its path, ``CLASS/…`` or ``SPLIT/CLASS/…`` below folders that all share.

    Pictures in no folder are of the class that their names begin with (``WNID_name.JPEG``) or, named as ImageNet's
    validation set (``ILSVRC2012_val_00000001.JPEG``), of the class that is known for that; others have none.

    Args:
        paths: Relative, with ``/``.
        split: The folder to keep, where the pictures are in folders train, val, valid, validation or test, in small
            letters or others.
        where: What to name in messages.

    Returns:
        The indices of the paths that are in the split, and the class name of each.

    Raises:
        InputError: The split is not there, or there are several and none is named; another folder is beside them; some
            pictures are in class folders and others are not.
    """
    parts = [tuple(path.split("/")) for path in paths]
    shared: list[str] = []
    while not _WNID.fullmatch(parts[0][0]) and all(len(p) > 2 and p[0] == parts[0][0] for p in parts):
        shared.append(parts[0][0])
        parts = [p[1:] for p in parts]
    keep = list(range(len(parts)))
    splits = sorted({p[0] for p in parts})
    others = [name for name in splits if name.casefold() not in _SPLITS]
    if all(len(p) > 1 for p in parts) and not others:
        if split is None and len(splits) == 1:
            split = splits[0]
        if split is None:
            raise InputError(f"{where} has the splits {', '.join(splits)}: name one")
        keep = [i for i, p in enumerate(parts) if p[0].casefold() == split.casefold()]
        parts = [parts[i][1:] for i in keep]
    elif len(others) < len(splits) and all(len(p) > 2 for p in parts):
        raise InputError(
            f"{where}: the folder {others[0]} is beside splits: move it elsewhere, or name a split's folder"
        )
    else:
        splits = [name for name in shared if name.casefold() in _SPLITS]
    if split is not None and split.casefold() not in map(str.casefold, splits):
        raise unknown(f"{where} has no split {split!r}", split, splits or ["no splits"])
    flat = [len(p) == 1 for p in parts]
    if any(flat) and not all(flat):
        stray = paths[keep[flat.index(True)]]
        raise InputError(f"{where}: {stray} is in no class folder, though other pictures are: move it into one")
    return keep, [_class_of_file(p[0]) if len(p) == 1 else p[0] for p in parts]


def _class_of_file(name: str) -> str | None:
    if match := _WNID_FILE.match(name):
        return match[1]
    if match := _VALIDATION_FILE.fullmatch(name):
        number, wnids = int(match[1]), _validation_wnids()
        return wnids[number - 1] if 1 <= number <= len(wnids) else None
    return None


@functools.cache
def _validation_wnids() -> list[str]:
    """The classes of ImageNet's 50,000 validation pictures, from the file that is a part of tensorflow_datasets."""
    tfds = importlib.util.find_spec("tensorflow_datasets")
    assert tfds is not None and tfds.origin is not None
    return (Path(tfds.origin).parent / "datasets" / "imagenet2012" / "validation_labels.txt").read_text().split()


def to_labels(
    names: Sequence[str | None], classes: Sequence[str] | None, where: str
) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Labels from names of classes, and what they index.

    With ``classes``, a label is a place in it. Otherwise WNIDs are labelled as ImageNet does, 0..999; numbers label
    themselves (they are ImageNet's indices where all of 0..999 occur, as in ImageNet-V2's folders); other names are
    numbered in their sorted order. A picture without a name is labelled -1.

    Raises:
        InputError: A name is none of ``classes``, or a WNID none of ImageNet's; or some names are WNIDs, others not.
    """
    found = sorted({name for name in names if name is not None})
    wnids = imagenet_wnids()
    numbers = {name: int(name) for name in found if name.isascii() and name.isdecimal()}
    if len(set(numbers.values())) < len(numbers):
        same = next(name for name in numbers if str(numbers[name]) != name)
        raise InputError(f"{where}: {same!r} is the number of another class folder too: rename one of them")
    if classes is not None:
        known = {name: i for i, name in enumerate(classes)}
        if len(numbers) == len(found) and not set(numbers) <= set(known):
            known = {name: i for name, i in numbers.items() if i < len(classes)}
        message = f"none of the {len(classes)} given classes"
    elif found and len(numbers) == len(found) and max(numbers.values()) < _NUMBERS:
        known = numbers
        classes = (
            wnids if set(numbers.values()) == set(range(1000)) else [str(i) for i in range(1 + max(known.values()))]
        )
    elif any(_WNID.fullmatch(name) for name in found):
        known = {name: i for i, name in enumerate(wnids)}
        message, classes = "none of ImageNet's 1,000 classes, though other names here are WNIDs", wnids
        if all(_WNID.fullmatch(name) for name in found):
            message = "none of ImageNet's 1,000 classes"
    else:
        known, classes = {name: i for i, name in enumerate(found)}, found
    for name in found:
        if name not in known:
            raise unknown(f"{where}: {name!r} is {message}", name, known or classes)
    labels = np.array([-1 if name is None else known[name] for name in names], np.int32)
    return labels, tuple(classes)
