"""Accuracies of models on ImageNet and its shift sets: those that ship with the package, and a user's table."""

import csv
import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxclip.analysis.robustness import COLUMNS, SHIFTS
from jaxclip.data import read_bytes
from jaxclip.errors import InputError

PERCENT = ": divide percent by 100"


@dataclasses.dataclass(frozen=True)
class Accuracies:
    """Top-1 accuracies of some models.

    Attributes:
        models: Their names.
        columns: ``imagenet``, the names in ``SHIFTS``, and ``imagenet_on_SHIFT`` for ImageNet accuracy on the classes
            of -R, ObjectNet and -A; each 0 to 1, NaN where missing [m].
    """

    models: tuple[str, ...]
    columns: Mapping[str, Float[np.ndarray, " m"]]


def standard_models() -> Accuracies:
    """The 87 *standard* models of the ImageNet testbed (trained on ImageNet alone, no robustness intervention).

    Source: Taori et al. 2020, github.com/modestyachts/imagenet-testbed (MIT); see jaxclip/data/README.md.
    """
    return _packaged("robustness_testbed.csv")


def published_accuracies() -> Accuracies:
    """Zero-shot accuracies that open_clip publishes of its checkpoints, as ``NAME/PRETRAINED``; no ``imagenet_on_…``.

    Source: github.com/mlfoundations/open_clip, docs/openclip_results.csv; see jaxclip/data/README.md.
    """
    return _packaged("robustness_open_clip.csv")


def read_accuracies(path: str | os.PathLike) -> Accuracies:
    """Reads a user's table: CSV with a header, one row for each model.

    The columns are ``model`` and ``imagenet``, any of ``SHIFTS``, and for ``x="subset"`` the three
    ``imagenet_on_SHIFT``. Accuracies are shares from 0 to 1; an empty cell is a missing one.

    Raises:
        InputError: The file cannot be read, or a column or a cell is not as said; the message names line and column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a CSV file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text: give a CSV file") from None
    return _parse(text, str(path))


def _packaged(name: str) -> Accuracies:
    return _parse(read_bytes(name).decode(), name)


def _parse(text: str, where: str) -> Accuracies:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    models: list[str] = []
    try:
        header = reader.fieldnames or []
        if unknown := [name for name in header if name not in ("model", *COLUMNS)]:
            raise InputError(f"{where}: unknown column {unknown[0]!r}; known are model, {', '.join(COLUMNS)}")
        for name in ("model", "imagenet"):
            if header.count(name) != 1:
                raise InputError(f"{where}: the header needs the column {name!r} once: model,{','.join(COLUMNS[:6])}")
        if not set(header) & set(SHIFTS) or len(set(header)) < len(header):
            raise InputError(f"{where}: give each column once, and at least one of {', '.join(SHIFTS)}")
        columns: dict[str, list[float]] = {name: [] for name in header if name != "model"}
        for row in reader:
            line = f"{where}, line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{line}: not {len(header)} cells, as the header has")
            if not (name := row["model"].strip()) or name in models:
                raise InputError(f"{line}: the model's name {name!r} is empty or stands twice")
            models.append(name)
            for column, values in columns.items():
                values.append(_cell(row[column], f"{line}, column {column}"))
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.reader.line_num}: not CSV ({error})") from None
    if not models:
        raise InputError(f"{where}: no model below the header")
    return Accuracies(tuple(models), {name: np.array(values) for name, values in columns.items()})


def _cell(text: str, where: str) -> float:
    if not text.strip():
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        hint = PERCENT if text.rstrip().endswith("%") else "; leave the cell empty where accuracy is missing"
        raise InputError(f"{where}: {text!r} is not a number{hint}") from None
    if not 0 <= value <= 1:
        hint = PERCENT if 1 < value <= 100 else ""
        raise InputError(f"{where}: {text} is not an accuracy from 0 to 1{hint}")
    return value
