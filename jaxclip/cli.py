"""The ``jaxclip`` command: one function for each subcommand, whose docstring is its help; heavy imports are inside."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxclip.errors import InputError, to_mend
from jaxclip.files import cache_folder

if TYPE_CHECKING:
    from jaxclip.datasets import Source
    from jaxclip.loader import BadImage
    from jaxclip.training.recipe import Recipe


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
    name: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
) -> None:
    """Convert weights of OpenAI, open_clip, Hugging Face, timm or torchvision into a checkpoint folder.

    Args:
        source: A file (.safetensors, .pt, .bin), a Hugging Face folder, a hub id (org/name, org/name@revision) or a
            URL. Left out: where --model's published weights are.
        out: The folder to write.
        model: A name that `jaxclip models` lists, or an open_clip config JSON. Left out: what the files beside the
            weights say.
        name: What tables, stores and studies call the checkpoint. Left out: --model's name, or the file's or hub's.
        verify: Afterwards run source and result on the same images, and print how far apart they are.
        overwrite: Replace the folder if it exists.
    """
    from checkpoints_conversion.convert import convert as run
    from checkpoints_conversion.verify import check_libraries
    from checkpoints_conversion.verify import verify as compare

    if verify:
        check_libraries()
    config = run(source, model, out, name=name, overwrite=overwrite)
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
    store: Path | None = None,
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
        subset: Choose only between the ImageNet classes of imagenet_a, imagenet_r or objectnet, and leave out pictures
            of others. Left out: as the data's name says.
        batch_size: Pictures that go through the model at once.
        workers: Processes that decode pictures; 0 decodes in threads. Left out: by the number of cores.
        dtype: Type of the computation.
        skip_bad: Go on after a picture that cannot be decoded, and report it.
        store: A store of `jaxclip embed`: where the representations are in it, they are read, not computed.
        out: A folder to write evaluation.json and per_class.csv to.
    """
    _start()
    from jaxclip import evaluation
    from jaxclip.datasets import open_source
    from jaxclip.mesh import local_mesh, parameter_sharding
    from jaxclip.model import load_model

    source = open_source(data, split, data_dir)
    result = evaluation.evaluate(
        load_model(model, dtype=dtype, sharding=parameter_sharding(local_mesh())),
        source,
        classes=None if classes is None else _read_classes(classes),
        templates=None if templates is None else _read_templates(templates),
        subset=subset,
        batch_size=batch_size,
        workers=workers,
        skip_bad=skip_bad,
        store=store,
        out=out,
    )
    _print_table(
        f"{result.model['name']} on {source.name}: {result.head['kind']} head, {result.head['classes']} classes",
        ("", "accuracy", "95 % interval", "right", "of"),
        [
            (name, f"{100 * a.value:.2f} %", f"{100 * a.low:.2f} – {100 * a.high:.2f} %", str(a.right), str(a.total))
            for name, a in (("top-1", result.top1), ("top-5", result.top5))
            if name == "top-1" or result.head["classes"] > 5
        ],
    )
    _print_bad(result.bad_images, "no number above counts them")
    if store is not None:
        print(f"representations: {result.stored or f'computed, as {store} has none of this model on this data'}")
    if out is not None:
        print(f"written: {out / evaluation.JSON}, {out / evaluation.CSV}")


def embed(
    *,
    model: Path,
    data: str,
    out: Path,
    split: str | None = None,
    data_dir: Path | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    store_dtype: Literal["float32", "float16"] = "float32",
    skip_bad: bool = False,
    fsdp: bool = False,
    distributed: bool = False,
) -> None:
    """Store a model's representations of a data set, once: what is there is found again, what is missing is computed.

    Args:
        model: A checkpoint folder, from `jaxclip convert`.
        data: A folder, a tar or a data set's name, as for `jaxclip evaluate`.
        out: The store: a folder that may hold the representations of many models on many data sets.
        split: Which split of the data. Left out: the usual one.
        data_dir: Where tfds keeps prepared data sets. Left out: its own default.
        batch_size: Pictures that go through the model at once, over all devices of a process.
        workers: Processes that decode pictures; 0 decodes in threads. Left out: by the number of cores.
        dtype: Type of the computation.
        store_dtype: Type of the stored numbers.
        skip_bad: Go on after a picture that cannot be decoded, and list it in the manifest.
        fsdp: Shard the parameters over the devices of each process, for models that do not fit on one.
        distributed: This is one of several processes, started by srun or on every TPU VM.
    """
    _start(distributed)
    import jax

    from jaxclip import embedding, mesh
    from jaxclip.checkpoint import read_config
    from jaxclip.datasets import open_source
    from jaxclip.model import load_model

    sharding = mesh.parameter_sharding(mesh.local_mesh(), read_config(model) if fsdp else None)
    stored = embedding.embed(
        load_model(model, dtype=dtype, sharding=sharding),
        open_source(data, split, data_dir),
        out,
        store_dtype=store_dtype,
        batch_size=batch_size,
        workers=workers,
        skip_bad=skip_bad,
    )
    if jax.process_index() > 0:
        return
    n, d = stored.shape
    rounding = (
        f" (rounded by up to {stored.manifest['rounding']:.1e} of a row's length)"
        if stored.manifest["rounding"]
        else ""
    )
    print(f"{n:,} x {d} {stored.dtype}{rounding}: {stored.folder}")
    _print_bad(stored.bad_images, "they have no row")


def analyze(
    *,
    model: Path,
    data: tuple[Path, ...],
    out: Path = Path("analysis"),
    data_dir: Path | None = None,
    importance: Literal["cosine", "projection"] = "cosine",
    directions: Literal["head", "coordinates"] = "head",
    negatives: Literal["balanced", "all"] = "balanced",
    x: Literal["full", "subset"] = "full",
    outlier_threshold: float = 6.0,
    concept_threshold: float = 0.9,
    min_images: int = 20,
    seed: int = 0,
) -> None:
    """Analyse one model from its stored representations: accuracy, outlier features, directions, pruning, concepts.

    Args:
        model: A checkpoint folder, from `jaxclip convert`.
        data: Stores of `jaxclip embed`, or folders of single keys in them: all that they have of the model is used.
        out: The folder to write index.html, analysis.json, tables/ and figures/ to.
        data_dir: Where tfds keeps prepared data sets, for Broden's concepts. Left out: its own default.
        importance: How a direction of the head is weighted.
        directions: Where concepts are looked for: the head's singular directions, or the unit coordinates.
        negatives: What a concept's images are told from: as many others, or all others.
        x: What predicts accuracy under shift: ImageNet accuracy on all classes, or on the classes of each shift.
        outlier_threshold: How far above the rest an outlier feature is, in standard deviations of an image's
            activations.
        concept_threshold: The least average precision at which a direction encodes a concept.
        min_images: A concept in fewer pictures is not looked for.
        seed: Of the samples and the bootstrap intervals.
    """
    _start()
    from jaxclip.analyze import Options, analyze_stored, save_json
    from jaxclip.files import check_folder
    from jaxclip.model import load_model
    from jaxclip.sections import of_one, write

    options = Options(
        importance=importance,
        outlier_threshold=outlier_threshold,
        x=x,
        directions=directions,
        concept_threshold=concept_threshold,
        negatives=negatives,
        min_images=min_images,
        seed=seed,
    )
    check_folder(out)
    result = analyze_stored(load_model(model), data, options, data_dir)
    sections = of_one(result)
    for section in sections:
        section.print()
    for what in result.missing:
        print(f"not there: {what}")
    save_json(out / "analysis.json", result)
    print(f"written: {write(out, f'{result.model}: every analysis', '', sections)}, {out / 'analysis.json'}")


def robustness(
    *,
    accuracies: Path | None = None,
    out: Path = Path("robustness"),
    x: Literal["full", "subset"] = "full",
    seed: int = 0,
) -> None:
    """Effective robustness of your own models, from their accuracies; or of the checkpoints with published ones.

    Args:
        accuracies: A CSV of your models: model, imagenet, imagenet_v2, imagenet_r, imagenet_sketch, objectnet,
            imagenet_a; accuracies from 0 to 1.
        out: The folder to write index.html, tables/ and figures/ to.
        x: ImageNet accuracy on all classes, or on the classes of each shift: columns imagenet_on_imagenet_r,
            imagenet_on_objectnet and imagenet_on_imagenet_a, by `jaxclip evaluate --subset` of ImageNet.
        seed: Of the bootstrap intervals.
    """
    from experiments.effective_robustness import run
    from jaxclip.files import check_folder
    from jaxclip.sections import write

    check_folder(out)
    section = run(accuracies, x, seed)
    section.print()
    print(f"written: {write(out, section.title, '', [section])}, tables and figures beside it")


@dataclasses.dataclass(frozen=True)
class _TrainingOptions:
    """What `finetune` and `train` have in common."""

    epochs: float | None = None
    """Passes over the data. Left out: the recipe's."""
    batch_size: int | None = None
    """Pictures of a step. Left out: the recipe's."""
    learning_rate: float | None = None
    """The peak learning rate. Left out: the recipe's."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation; parameters are float32. Left out: the recipe's."""
    name: str | None = None
    """What tables, stores and studies call the checkpoint. Left out: the configuration's MODEL, or the fine-tuned one's
    with -finetuned."""
    seed: int | None = None
    """Of the initialisation, the order, the augmentation and the rest. Left out: the recipe's."""
    split: str | None = None
    """Which split of labelled data. Left out: train, where the data is a known data set."""
    data_dir: Path | None = None
    """Where tfds keeps prepared data sets. Left out: its own default."""
    validation: str | None = None
    """Labelled data to choose the best checkpoint by: for `train clip`, by zero-shot accuracy."""
    workers: int | None = None
    """Processes that decode pictures; 0 decodes in threads. Left out: by the number of cores."""
    tensorboard: bool = False
    """Write TensorBoard's events too."""
    distributed: bool = False
    """This is one of several processes, started by srun or on every TPU VM."""

    def override(self, recipe: "Recipe") -> "Recipe":
        """The recipe with what is given in the place of its own."""
        given: dict[str, Any] = {name: getattr(self, name) for name in ("epochs", "batch_size", "dtype", "seed")}
        if self.learning_rate is not None:
            given["optimizer"] = dataclasses.replace(recipe.optimizer, learning_rate=self.learning_rate)
        return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})

    def source(self, data: str) -> "Source":
        """The training data: of a known data set the train split, where none is named."""
        from jaxclip.datasets import is_known, open_source

        split = "train" if self.split is None and is_known(data) else self.split
        return open_source(data, split, self.data_dir)

    def scored_by(self) -> "Source | None":
        """The validation data."""
        from jaxclip.datasets import open_source

        return None if self.validation is None else open_source(self.validation, None, self.data_dir)


_Run = Annotated[_TrainingOptions, tyro.conf.OmitArgPrefixes]


def finetune(
    *,
    model: Path,
    data: str,
    out: Path,
    mode: Literal["full", "lp-ft", "head"] = "full",
    config: str = "finetune",
    probe_epochs: float | None = None,
    classes: Path | None = None,
    templates: Path | None = None,
    run: _Run = _TrainingOptions(),
) -> None:
    """Fine-tune a CLIP's image encoder on labelled pictures, from its zero-shot head; killed runs go on.

    Args:
        model: A CLIP's checkpoint folder.
        data: Training data: a folder, a tar or a data set's name, as for `jaxclip evaluate`.
        out: The folder to write: `last` and, with --validation, `best` are checkpoints, and so is `zero_shot`, what it
            began as. The same command again goes on with a run that was killed.
        mode: full: end to end; lp-ft: the head alone, then end to end; head: the head alone.
        config: The recipe: a name in experiments/configs or a .py file.
        probe_epochs: Passes over the data for the linear probe of lp-ft. Left out: one.
        classes: As for `jaxclip evaluate`.
        templates: As for `jaxclip evaluate`.
        run: What every kind of training has.
    """
    _start(run.distributed)
    from jaxclip.training import recipe, runs

    written = runs.finetune(
        model,
        run.source(data),
        out,
        run.override(recipe.read(config)[0]),
        mode=mode,
        probe_epochs=probe_epochs,
        name=run.name,
        classes=None if classes is None else _read_classes(classes),
        templates=None if templates is None else _read_templates(templates),
        validation=run.scored_by(),
        workers=run.workers,
        tensorboard=run.tensorboard,
    )
    print(f"written: {written}")


def train(
    what: Annotated[Literal["supervised", "clip"], tyro.conf.Positional],
    /,
    *,
    config: str,
    data: str,
    out: Path,
    images: Path | None = None,
    start: Path | None = None,
    run: _Run = _TrainingOptions(),
) -> None:
    """Train a classifier from labels (supervised), or a CLIP from captions (clip); killed runs go on.

    Args:
        what: What to train.
        config: The recipe and the model: a name in experiments/configs or a .py file.
        data: For supervised, a folder, a tar or a data set's name, as for `jaxclip evaluate`. For clip, a .csv with
            columns path and caption, .tar shards with KEY.jpg and KEY.txt, or ImageNet-Captions' .json.
        out: The folder to write: `last` and, with --validation, `best` are checkpoints. The same command again goes on
            with a run that was killed.
        images: For clip, the folder that the captions' paths start from. Left out: that of the file.
        start: For clip, a checkpoint to begin with. Left out: a fresh model.
        run: What every kind of training has.
    """
    _start(run.distributed)
    from jaxclip.training import recipe, runs
    from jaxclip.training.data import open_captions

    chosen, architecture = recipe.read(config)
    if architecture is None:
        raise InputError(f"configuration {config} has no MODEL to train")
    chosen = run.override(chosen)
    if run.name is not None:
        architecture = dataclasses.replace(architecture, name=run.name)
    common: dict[str, Any] = {
        "validation": run.scored_by(), "workers": run.workers, "tensorboard": run.tensorboard,
    }  # fmt: skip
    if what == "clip":
        if run.split is not None:
            raise InputError("--split is for `jaxclip train supervised`: captions have no splits")
        if run.data_dir is not None and run.validation is None:
            raise InputError("--data-dir is for labelled data: captions are files, and there is no --validation")
        written = runs.from_captions(architecture, open_captions(data, images), out, chosen, start=start, **common)
    else:
        if start is not None or images is not None:
            raise InputError("--start and --images are for `jaxclip train clip`")
        written = runs.supervised(architecture, run.source(data), out, chosen, **common)
    print(f"written: {written}")


def interpolate(
    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")],
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")],
    /,
    *,
    out: Path,
    alpha: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    overwrite: bool = False,
) -> None:
    """Write checkpoints on the line between two: (1 - alpha) A + alpha B (WiSE-FT).

    Args:
        a: The checkpoint at alpha 0: the zero_shot folder that `jaxclip finetune` wrote.
        b: The checkpoint at alpha 1: its last or best.
        out: The folder for alpha_0.50 and so on.
        alpha: The weights of B.
        overwrite: Replace folders that exist.
    """
    from jaxclip.interpolate import interpolate_checkpoints

    for folder in interpolate_checkpoints(a, b, alpha, out, overwrite=overwrite).values():
        print(f"written: {folder}")


def quickstart(*, out: Path = Path("quickstart"), seed: int = 0) -> None:
    """Train a toy CLIP and a toy classifier on handwritten digits, evaluate both, write a report: no download.

    Args:
        out: The folder to write.
        seed: Of the initialisation, the training order and the shifts.
    """
    _start()
    from jaxclip.quickstart import quickstart as run

    run(out, seed)


COMMANDS: dict[str, Callable[..., None]] = {
    "models": models,
    "datasets": datasets,
    "convert": convert,
    "evaluate": evaluate,
    "embed": embed,
    "finetune": finetune,
    "train": train,
    "interpolate": interpolate,
    "analyze": analyze,
    "robustness": robustness,
    "quickstart": quickstart,
}


def _start(distributed: bool = False) -> None:
    """Before anything is computed."""
    from jaxclip.machine import keep_memory

    keep_memory()
    if distributed:
        from jaxclip.mesh import start_processes

        start_processes()


def main(args: list[str] | None = None) -> int:
    """Runs the command line; the value is the exit code: 2 for bad input, 130 when interrupted."""
    _keep_compiled()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there, nor needed
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxclip",
            description="What separates robust CLIPs from less robust models, in pure JAX.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, OSError) as error:
        if (said := to_mend(error)) is None:
            raise
        return _fail(said)
    except KeyboardInterrupt:
        return 130
    return 0


def _keep_compiled() -> None:
    """Has JAX, not imported yet, keep its compiled programs in the user's cache folder.

    Those of a fifth of a second and more, not of one: a ViT-B/32 takes 0.9 s, of each command.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("compiled")))


def _fail(message: str) -> int:
    print(f"jaxclip: error: {message}", file=sys.stderr)
    return 2


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, of which there must be one."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows's editors begin with a byte order mark
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise InputError(f"{path} is not a text file") from None
    if not (filled := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"{path} is empty")
    return filled


def _read_templates(path: Path) -> list[str]:
    """Sentences, one a line."""
    if path.suffix == ".json":
        raise InputError(f"{path} is JSON: give a text file with one sentence a line")
    return _read_lines(path)


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


def _print_bad(bad_images: "tuple[BadImage, ...]", consequence: str) -> None:
    if n := len(bad_images):
        print(f"{n} {'picture' if n == 1 else 'pictures'} could not be decoded; {consequence}:")
    for bad in bad_images:
        print(f"  {bad.id}: {bad.reason}")


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    from jaxclip.progress import console

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console().print(table)
