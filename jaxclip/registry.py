"""What every known checkpoint is: read from data/checkpoints.json and data/architectures.json, nothing computed."""

import dataclasses
import difflib
import functools
import itertools
import os
from pathlib import Path
from typing import Any, Literal

from jaxclip.config import ModelConfig, Preprocess, from_open_clip
from jaxclip.data import read_json
from jaxclip.errors import InputError
from jaxclip.files import read_object
from jaxclip.progress import console

Group = Literal["zero-shot", "less-robust", "fine-tuned", "supervised"]
QUICK_GELU = "-quickgelu"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint.

    Attributes:
        name: ``architecture/tag``; for a CLIP the tag is open_clip's.
        group: The paper's group of models.
        paper: Whether the paper's comparison names it; the others are extra.
        backbone: The paper's name of the vision encoder, the same for a CLIP and its supervised counterpart.
        architecture: The name in architectures.json, with ``-quickgelu`` where the weights were trained so.
        training_set: What it was trained on.
        source: Where the weights are: a URL or ``hf-hub:org/repo[:file]`` (without a file, the repository has the same
            weights in several); None where nobody publishes them, and then ``note`` says how to make them.
        sha256: The digest of ``source``, None where its publisher gives none.
        mirror: Another place of the same weights; for OpenAI's, one that needs no PyTorch to read.
        pixels: The preprocessing that the checkpoint was published with.
        licence: SPDX name of the weights' licence, None where there are no published weights.
        results: The ``name`` and ``pretrained`` columns of its row in open_clip's table of results, or None.
        note: What else one should know.
    """

    name: str
    group: Group
    paper: bool
    backbone: str
    architecture: str
    training_set: str
    source: str | None
    sha256: str | None
    mirror: str | None
    pixels: Preprocess
    licence: str | None
    results: tuple[str, str] | None
    note: str | None

    @property
    def activation(self) -> str:
        """Of the transformers' MLPs; ``relu`` where there is no transformer."""
        config = model_config(self.name)
        return getattr(config.text or config.vision, "activation", "relu")


def names() -> list[str]:
    """Every checkpoint's name."""
    return list(_entries())


def table() -> list[Entry]:
    """Every checkpoint, in groups."""
    return list(_entries().values())


def lookup(name: str) -> Entry:
    """The checkpoint of that name.

    Raises:
        InputError: There is none; the message suggests the nearest.
    """
    if name not in _entries():
        raise InputError(f"unknown checkpoint {name!r}{_nearest(name, names())}; `jaxclip models` lists all")
    return _entries()[name]


def model_config(name: str | os.PathLike) -> ModelConfig:
    """The configuration of a model.

    Args:
        name: A checkpoint's name; an architecture's (``ViT-B-32``, ``ViT-B-32-quickgelu``, ``resnet50``), which then
            has the preprocessing that is usual for it; or the path of an open_clip config JSON.

    Raises:
        InputError: It is none of these, or the JSON is not an open_clip config that jaxclip has the towers for.
    """
    name = os.fspath(name)
    if name in _entries():
        entry = _entries()[name]
        config = dataclasses.replace(_architecture(entry.architecture), name=name, preprocess=entry.pixels)
        # A fine-tuned CLIP is its vision tower and a linear head.
        return dataclasses.replace(config, text=None, num_classes=1000) if entry.group == "fine-tuned" else config
    if name.removesuffix(QUICK_GELU) in read_json("architectures.json"):
        return _architecture(name)
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        data = read_object(path, "give an open_clip config, or a name of `jaxclip models`")
        return from_open_clip(data, path.stem, str(path))
    known = [*names(), *read_json("architectures.json")]
    raise InputError(
        f"unknown model {name!r}{_nearest(name, known)}; `jaxclip models` lists all, "
        "and any other open_clip model works by the path of its config JSON"
    )


def print_table() -> None:
    """Prints the registry, grouped, for ``jaxclip models``."""
    from rich.table import Table

    columns = ("name", "training set", "pixels", "activation", "licence", "where")
    grid = Table(*columns, title="* named by the paper", title_justify="left")
    for column in grid.columns:
        column.overflow = "fold"
        column.no_wrap = column.header in ("pixels", "activation", "licence")
    for group, entries in itertools.groupby(table(), lambda entry: entry.group):
        grid.add_section()
        grid.add_row(group, style="bold")
        for entry in entries:
            name = entry.name + (" *" if entry.paper else "")
            pixels = str(entry.pixels.size)
            grid.add_row(name, entry.training_set, pixels, entry.activation, entry.licence, _where(entry))
    console(width=160).print(grid)


def _where(entry: Entry) -> str:
    """The publisher, short enough for a table."""
    if entry.source is None:
        return "trained here"
    kind, _, rest = entry.source.partition(":")
    return rest.split(":")[0] if kind == "hf-hub" else rest.split("/")[2]


@functools.cache
def _entries() -> dict[str, Entry]:
    data = read_json("checkpoints.json")
    return {name: _entry(name, data["preprocess"], **fields) for name, fields in data["checkpoints"].items()}


def _entry(name: str, pixels: dict[str, Any], preprocess: str, results: list[str] | None, **fields: Any) -> Entry:
    architecture = _architecture(fields["architecture"])
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in pixels[preprocess].items()}
    return Entry(
        name=name,
        pixels=Preprocess(**{"size": architecture.vision.image_size, **values}),
        results=None if results is None else (results[0], results[1]),
        **{"note": None, **fields},
    )


def _architecture(name: str) -> ModelConfig:
    """``name`` may end in ``-quickgelu``, the one difference of open_clip's configs of that name."""
    where = f"architecture {name}"
    data = read_json("architectures.json")[name.removesuffix(QUICK_GELU)]
    if "vision" in data:
        if name.endswith(QUICK_GELU):
            raise InputError(f"{where}: only CLIPs have a {QUICK_GELU} form")
        return ModelConfig.from_json({"name": name, **data}, where)
    return from_open_clip({**data, "quick_gelu": name.endswith(QUICK_GELU)}, name, where)


def _nearest(name: str, known: list[str]) -> str:
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else ""
