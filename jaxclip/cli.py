"""The ``jaxclip`` command: one function for each subcommand, whose docstring is its help; heavy imports are inside."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxclip.errors import InputError


def models() -> None:
    """List the checkpoints that jaxclip knows: architecture, training set, where the weights are, licence."""
    from jaxclip import registry

    registry.print_table()


def datasets(
    action: Annotated[Literal["list", "prepare"], tyro.conf.Positional] = "list",
    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME]")] = None,
    /,
    *,
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    data_dir: Path | None = None,
) -> None:
    """List the data sets that jaxclip knows, which are prepared here and how to get the others; or prepare one.

    Args:
        action: What to do.
        name: The data set to prepare.
        source: What you downloaded, where the data set must be fetched by hand (ObjectNet's and Broden's archives).
        data_dir: Where tfds keeps prepared data sets. Left out: its own default.
    """
    from jaxclip import datasets

    if action == "list":
        datasets.print_table(data_dir)
        return
    if name is None:
        raise InputError(
            "name the data set to prepare: `jaxclip datasets prepare NAME` (`jaxclip datasets` lists them)"
        )
    for split, n in datasets.prepare(name, source, data_dir).items():
        print(f"{name}: {split}: {n:,} pictures")


def convert(
    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[SOURCE]")] = None,
    /,
    *,
    out: Path,
    model: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
) -> None:
    """Convert weights of OpenAI, open_clip, Hugging Face, timm or torchvision into a checkpoint folder.

    Args:
        source: A file (.safetensors, .pt, .bin), a Hugging Face folder, a hub id or a URL. Left out: where --model's
            published weights are.
        out: The folder to write.
        model: A name that `jaxclip models` lists, or an open_clip config JSON. Left out: what the files beside the
            weights say.
        verify: Afterwards run source and result on the same images, and print how far apart they are.
        overwrite: Replace the folder if it exists.
    """
    from checkpoints_conversion.convert import convert as run
    from checkpoints_conversion.verify import verify as compare

    config = run(source, model, out, overwrite=overwrite)
    print(f"{config.name}: converted to {out}")
    if verify:
        rows = compare(config.source["file"], out)
        _print_table(
            f"{config.name}: converted and source, on the same inputs",
            ("output", "max |difference|", "mean |difference|", "max relative", "min cosine"),
            [(r.what, f"{r.largest:.2e}", f"{r.mean:.2e}", f"{r.relative:.2e}", f"{r.cosine:.8f}") for r in rows],
        )


def evaluate(
    *,
    model: Path,
    data: str,
    split: str | None = None,
    data_dir: Path | None = None,
    classes: Path | None = None,
    templates: Path | None = None,
    subset: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    skip_bad: bool = False,
    out: Path | None = None,
) -> None:
    """Measure top-1 and top-5 accuracy: zero-shot for a CLIP, by its own head for a classifier.

    Args:
        model: A checkpoint folder, from `jaxclip convert`.
        data: A folder of pictures in class folders or named WNID_name.JPEG, a tar, or a name that `jaxclip datasets`
            lists.
        split: Which split of the data. Left out: the usual one.
        data_dir: Where tfds keeps prepared data sets. Left out: its own default.
        classes: The classes to choose between: a text file with one name a line, or a JSON object from the data's own
            class to its name in prompts. Left out: ImageNet's, or the data's own.
        templates: A text file with one sentence a line, {} where the class name goes. Left out: ImageNet's 80.
        subset: Choose only between the ImageNet classes of imagenet_a, imagenet_r or objectnet. Left out: as the data's
            name says.
        batch_size: Pictures that go through the model at once.
        workers: Processes that decode pictures; 0 decodes in threads. Left out: by the number of cores.
        dtype: Type of the computation.
        skip_bad: Go on after a picture that cannot be decoded, and report it.
        out: A folder to write evaluation.json and per_class.csv to.
    """
    from jaxclip import evaluation
    from jaxclip.datasets import open_source
    from jaxclip.model import load_model

    source = open_source(data, split, data_dir)
    result = evaluation.evaluate(
        load_model(model, dtype=dtype),
        source,
        classes=None if classes is None else _read_classes(classes),
        templates=None if templates is None else _read_lines(templates),
        subset=subset,
        batch_size=batch_size,
        workers=workers,
        skip_bad=skip_bad,
        out=out,
    )
    _print_table(
        f"{result.model['name']} on {source.name}: {result.head['kind']} head, {result.head['classes']} classes",
        ("", "accuracy", "95 % interval", "right", "of"),
        [
            (name, f"{100 * a.value:.2f} %", f"{100 * a.low:.2f} – {100 * a.high:.2f} %", str(a.right), str(a.total))
            for name, a in (("top-1", result.top1), ("top-5", result.top5))
        ],
    )
    if result.bad_images:
        n = len(result.bad_images)
        print(f"{n} {'picture' if n == 1 else 'pictures'} could not be decoded; no number above counts them:")
        for bad in result.bad_images:
            print(f"  {bad.id}: {bad.reason}")
    if out is not None:
        print(f"written: {out / evaluation.JSON}, {out / evaluation.CSV}")


def quickstart(*, out: Path = Path("quickstart"), seed: int = 0) -> None:
    """Train a toy CLIP and a toy classifier on handwritten digits, evaluate both, write a report: no download.

    Args:
        out: The folder to write.
        seed: Of the initialisation, the training order and the shifts.
    """
    from jaxclip.quickstart import quickstart as run

    run(out, seed)


COMMANDS: dict[str, Callable[..., None]] = {
    "models": models,
    "datasets": datasets,
    "convert": convert,
    "evaluate": evaluate,
    "quickstart": quickstart,
}


def main(args: list[str] | None = None) -> int:
    """Runs the command line; the value is the exit code: 2 for bad input, 130 when interrupted."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxclip",
            description="What separates robust CLIPs from less robust models, in pure JAX.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _USERS_TO_MEND:
            raise
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    except KeyboardInterrupt:
        return 130
    return 0


_USERS_TO_MEND = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def _fail(message: str) -> int:
    print(f"jaxclip: error: {message}", file=sys.stderr)
    return 2


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise InputError(f"{path} is not a text file") from None
    return [line.strip() for line in lines if line.strip()]


def _read_classes(path: Path) -> list[str] | dict[str, str]:
    """A list of names, one a line, or a JSON object from class to name."""
    lines = _read_lines(path)
    if path.suffix != ".json":
        return lines
    try:
        found = json.loads("\n".join(lines))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise InputError(f"{path} is not a JSON object from the data's classes to names")
    return found


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
