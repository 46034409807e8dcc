"""Data sets as random-access sources of encoded pictures: by name, or from folders and tar archives."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxclip.datasets.files import TARS, FileSource, matching, open_folder, open_tars
from jaxclip.datasets.named import KNOWN, Concepts, TfdsSource, concepts, open_known, prepare, print_table, table
from jaxclip.datasets.source import Example, Source, unknown
from jaxclip.datasets.subsets import class_subset, label_map
from jaxclip.errors import InputError

__all__ = [
    "Concepts",
    "Example",
    "FileSource",
    "Source",
    "TfdsSource",
    "class_subset",
    "concepts",
    "is_known",
    "label_map",
    "open_source",
    "prepare",
    "print_table",
    "table",
]


def is_known(spec: str) -> bool:
    """Whether :func:`open_source` takes it for the name of a known data set, whatever file or folder is called so."""
    inside = spec.partition("/")[0] in KNOWN and not spec.endswith(("/", *TARS)) and not Path(spec).exists()
    return spec in KNOWN or inside


def open_source(
    spec: str | os.PathLike,
    split: str | None = None,
    data_dir: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
) -> FileSource | TfdsSource:
    """Opens a data set.

    Args:
        spec: A name that ``jaxclip datasets`` lists, perhaps with a configuration (``cifar10_corrupted/fog_3``); a
            folder (``./cifar10`` for one that is called as a data set is); a ``.tar`` or ``.tar.gz``; or several tars,
            as ``shards/*.tar`` or ``shards/{000..099}.tar``.
        split: Which split; None is the usual one of a known data set, or the only one of files.
        data_dir: Where tfds keeps prepared data sets; None is its own default.
        classes: For files, the names that their class folders may have, in the order of the labels.

    Raises:
        InputError: There is nothing of that name (with the nearest), it is not prepared (with the command), it has no
            pictures or no such split, an archive is damaged, or a folder's name is no class (with the nearest).
    """
    spec = os.fspath(spec)
    if is_known(spec):
        return open_known(spec, split, data_dir)
    if Path(spec).is_dir():
        return open_folder(Path(spec), split, classes)
    if not spec.endswith(TARS):
        if Path(spec).exists():
            raise InputError(f"{spec} is neither a folder nor a tar archive ({', '.join(TARS)})")
        raise unknown(f"{spec!r} is no file, no folder and no known data set", spec, KNOWN)
    return open_tars(matching(spec), split, classes)
