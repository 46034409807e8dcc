"""Data sets that are known by name: read through ``tfds.data_source`` (ArrayRecord), without TensorFlow."""

import dataclasses
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxclip.datasets.source import Example, digest, unknown
from jaxclip.errors import InputError, reason
from jaxclip.progress import progress

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclasses.dataclass(frozen=True)
class Known:
    """A data set that tfds, or a builder of ours, can prepare.

    Attributes:
        name: tfds's.
        what: In a few words.
        split: The one that is opened when none is named.
        sizes: The number of pictures of each split that was published, of the usual configuration.
        url: Where what the user downloads is, or what tfds downloads.
        licence: What its authors say.
        config: The configuration that is meant when none is named.
        manual: The file that the user downloads; "" where tfds downloads it.
        builder: The module of our builder, None where tfds has one.
    """

    name: str
    what: str
    split: str
    sizes: dict[str, int]
    url: str
    licence: str
    config: str = ""
    manual: str = ""
    builder: str | None = None


_END = 1 << 16  # bytes
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

KNOWN = {
    known.name: known
    for known in (
        Known(
            "imagenet2012",
            "ImageNet (Russakovsky et al. 2015)",
            "validation",
            {"validation": 50_000, "train": 1_281_167},
            "https://image-net.org/download-images (after registration)",
            "non-commercial research only",
            manual="the folder with ILSVRC2012_img_val.tar (and _train.tar)",
        ),
        Known(
            "imagenet_v2",
            "a new test set by ImageNet's protocol (Recht et al. 2019)",
            "test",
            {"test": 10_000},
            "https://huggingface.co/datasets/vaishaal/ImageNetV2",
            "MIT",
            config="matched-frequency",
        ),
        Known(
            "imagenet_r",
            "renditions of 200 classes (Hendrycks et al. 2021)",
            "test",
            {"test": 30_000},
            "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
            "MIT",
        ),
        Known(
            "imagenet_sketch",
            "sketches of all classes (Wang et al. 2019)",
            "test",
            {"test": 50_889},
            "https://github.com/HaohanWang/ImageNet-Sketch",
            "MIT",
        ),
        Known(
            "imagenet_a",
            "hard pictures of 200 classes (Hendrycks et al. 2021)",
            "test",
            {"test": 7_500},
            "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
            "MIT",
        ),
        Known(
            "objectnet",
            "objects in unusual places, 113 overlapping classes (Barbu et al. 2019)",
            "test",
            {"test": 18_574},
            "https://objectnet.dev (the password of the zip is there)",
            "CC BY 4.0, for tests only: no parameter may be tuned on it",
            config="overlapping",
            manual="objectnet-1.0.zip, or the folder that it unpacks to",
            builder="jaxclip.datasets.objectnet",
        ),
        Known(
            "broden",
            "pictures with 1,200 concepts (Bau et al. 2017)",
            "all",
            {"all": 63_305},
            "http://netdissect.csail.mit.edu/data/broden1_224.zip (or _227, _384)",
            "those of its sources: ADE20K, OpenSurfaces, PASCAL, DTD",
            config="224",
            manual="broden1_224.zip, or the folder that it unpacks to",
            builder="jaxclip.datasets.broden",
        ),
        Known(
            "cifar10",
            "small pictures of 10 classes (Krizhevsky 2009)",
            "test",
            {"test": 10_000, "train": 50_000},
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "none stated",
        ),
        Known(
            "cifar10_1",
            "a new test set for CIFAR-10 (Recht et al. 2018)",
            "test",
            {"test": 2_000},
            "https://github.com/modestyachts/CIFAR-10.1",
            "MIT",
            config="v6",
        ),
        Known(
            "cifar10_corrupted",
            "CIFAR-10's test set with 19 corruptions at 5 severities, e.g. cifar10_corrupted/fog_3 (Hendrycks 2019)",
            "test",
            {"test": 10_000},
            "https://zenodo.org/records/2535967",
            "CC BY 4.0",
            config="brightness_1",
        ),
    )
}


@dataclasses.dataclass(frozen=True, repr=False)
class TfdsSource:
    """A prepared tfds data set.

    Attributes:
        name: As in :class:`~jaxclip.datasets.source.Source`.
        classes: What the labels index; nothing where there are no labels.
        records: tfds's data source, whose examples have ``image`` (encoded) and perhaps ``label``, ``file_name``, …
        builder: tfds's reader of the prepared files.
        split: The split.
    """

    name: str
    classes: tuple[str, ...]
    records: Sequence[dict[str, Any]]
    builder: Any
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.record(index)
        name = record.get("file_name", record.get("id"))
        return Example(
            id=f"{index:08}" if name is None else name.decode(),
            image_bytes=record["image"],
            label=int(record.get("label", -1)),
        )

    def __repr__(self) -> str:
        return f"TfdsSource({self.name!r}, {len(self)} pictures)"

    def record(self, index: int) -> dict[str, Any]:
        """All that the data set has of a picture.

        Raises:
            InputError: Its file is missing or damaged.
        """
        try:
            return self.records[index]
        except Exception as error:  # ArrayRecord and tfds have errors of many kinds for a damaged file
            raise self.damaged(f"record {index}", error) from error

    def damaged(self, what: str, error: Exception) -> InputError:
        """The error for a part of the prepared files that cannot be read."""
        return InputError(
            f"{self.name}: {what} cannot be read ({reason(error)}): remove {self.builder.data_path} and prepare it "
            "again with `jaxclip datasets prepare`"
        )

    def fingerprint(self) -> str:
        """A digest of version, split and classes, and of each file's part in the split, size, first and last 64 KiB.

        The pictures are not all read for it: a prepared data set is written once, and its files end with their index.
        """
        shards = []
        for shard in self.builder.info.splits[self.split].file_instructions:
            path = Path(shard.filename)
            try:
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - _END))
                    last = file.read()
                    file.seek(0)
                    shards.append((path.name, shard.skip, shard.take, size, file.read(_END), last))
            except FileNotFoundError as error:
                raise self.damaged(path.name, error) from error
        return digest([self.builder.info.full_name, self.split, self.classes, *shards])


def open_known(spec: str, split: str | None = None, data_dir: str | os.PathLike | None = None) -> TfdsSource:
    """Opens a prepared data set.

    Args:
        spec: ``name`` or ``name/config``, the name being one of :data:`KNOWN`.
        split: tfds's name of the split; ``all`` is all of them.
        data_dir: Where tfds keeps its data sets; its own default (``~/tensorflow_datasets``) where None.

    Raises:
        InputError: It is not prepared (the message has the command), or damaged, or not as ArrayRecord; it has no such
            split.
    """
    import tensorflow_datasets as tfds

    known, full_name = _resolve(spec)
    builder = _prepared(full_name, data_dir)
    if builder is None:
        file = f", where FILE is {known.manual}, from {known.url}" if known.manual else ""
        raise InputError(f"{full_name} is not prepared in {_data_dir(data_dir)}: run `{_command(known, spec)}`{file}")
    if builder.info.file_format.value != "array_record":
        raise InputError(
            f"{builder.data_path} is in the format {builder.info.file_format.value}, which cannot be read at random: "
            f"remove it and run `{_command(known, spec)}`"
        )
    opened = split or known.split
    if opened != "all" and opened not in builder.info.splits:
        raise unknown(f"{full_name} has no split {opened!r}", opened, builder.info.splits)
    features = builder.info.features
    classes: tuple[str, ...] = tuple(features["label"].names) if "label" in features else ()
    if known.name.startswith("cifar10"):
        classes = _CIFAR_CLASSES  # tfds knows no names of cifar10_1 and cifar10_corrupted
    records = builder.as_data_source(opened, decoders={"image": tfds.decode.SkipDecoding()})
    return TfdsSource(spec if split is None else f"{spec}:{split}", classes, records, builder, opened)


class Concepts(NamedTuple):
    """Which of c concepts each of n pictures exhibits: a sparse boolean matrix [n, c], and for each concept its name
    and its category (that in which most pictures have it).
    """  # noqa: D205

    matrix: "csr_array"
    names: tuple[str, ...]
    categories: tuple[str, ...]


def concepts(source: TfdsSource) -> Concepts:
    """The concepts of Broden's pictures, in the source's order; no picture is decoded.

    Raises:
        InputError: The source has no concepts, or is damaged.
    """
    from scipy.sparse import csr_array

    if not isinstance(source, TfdsSource) or "concepts" not in source.builder.info.features:
        raise InputError(f"{source.name} has no concepts: open broden")
    names = tuple(source.builder.info.features["concepts"].feature.names)
    try:
        categories = tuple(source.builder.info.metadata["concept_categories"])
    except (LookupError, TypeError, ValueError) as error:
        raise source.damaged("metadata.json", error) from error
    present = []
    with progress("concepts", len(source)) as advance:
        for i in range(len(source)):
            present.append(np.unique(source.record(i)["concepts"]))
            advance(1)
    ends = np.cumsum([0, *map(len, present)])
    columns = np.concatenate(present) if present else np.zeros(0, int)
    matrix = csr_array((np.ones(len(columns), bool), columns, ends), shape=(len(source), len(names)))
    return Concepts(matrix, names, categories)


def prepare(
    spec: str, source: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None
) -> dict[str, int]:
    """Prepares a data set as ArrayRecord files that :func:`open_known` reads; one that is prepared is left alone.

    ObjectNet and Broden need no TensorFlow; for the others, tfds does.

    Args:
        spec: As in :func:`open_known`.
        source: The user's own download, see :attr:`Known.manual`; None where tfds downloads it.
        data_dir: As in :func:`open_known`.

    Returns:
        The number of pictures in each split.

    Raises:
        InputError: The name is unknown, the source is missing, damaged or not what it should be; TensorFlow is needed
            and not installed; what is prepared is damaged.
        OSError: The system refuses something.
    """
    known, full_name = _resolve(spec)
    if known.manual and source is None:
        raise InputError(f"{known.name} must be downloaded by you: give {known.manual}, from {known.url}, with --from")
    if source is not None and not known.manual:
        raise InputError(f"{known.name} is downloaded by tfds: leave --from out")
    if source is not None and not Path(source).exists():
        raise InputError(f"{source} does not exist: give {known.manual}, from {known.url}")
    if known.builder is None and importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"tfds needs TensorFlow to prepare {known.name} (reading needs none): pip install 'jaxclip[prepare]'"
        )
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if known.builder is not None:
        importlib.import_module(known.builder)
    _prepared(full_name, data_dir)  # tfds's own error for a damaged one says nothing of that
    try:
        builder = tfds.builder(full_name, data_dir=data_dir)
    except ValueError as error:  # tfds lists the configurations
        raise InputError(f"{full_name} is no data set of tfds: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        manual = Path(folder)
        if source is not None and Path(source).is_dir() and known.builder is None:
            manual = Path(source)
        elif source is not None:
            name = "source" if Path(source).is_dir() else Path(source).name
            (manual / name).symlink_to(Path(source).resolve())
        config = tfds.download.DownloadConfig(manual_dir=manual, compute_stats="skip")
        try:
            builder.download_and_prepare(download_config=config, file_format="array_record")
        except (InputError, OSError):
            raise
        except Exception as error:  # tfds has errors of many kinds for what is missing or damaged, or a full disk
            raise InputError(f"tfds could not prepare {full_name}: {error}") from error
    return {name: split.num_examples for name, split in builder.info.splits.items()}


class Row(NamedTuple):
    """A known data set: its published pictures, what is prepared here ("" for nothing, or that it is damaged), and how
    to get it.
    """  # noqa: D205

    name: str
    what: str
    pictures: str
    prepared: str
    command: str
    source: str
    licence: str


def table(data_dir: str | os.PathLike | None = None) -> list[Row]:
    """Every known data set: which configurations and splits are prepared, with their number of pictures."""
    rows = []
    for known in KNOWN.values():
        folder = _data_dir(data_dir) / known.name
        configs = sorted(path.name for path in folder.glob("*") if path.is_dir()) if known.config else [""]
        prepared = []
        for config in configs:
            try:
                builder = _prepared(f"{known.name}/{config}".rstrip("/"), data_dir)
            except InputError:
                prepared.append(f"{config}: damaged" if config else "damaged")
                continue
            if builder is not None:
                splits = _sizes({name: split.num_examples for name, split in builder.info.splits.items()})
                prepared.append(f"{config}: {splits}" if config else splits)
        source = f"FILE: {known.manual}, from {known.url}" if known.manual else f"downloads {known.url}"
        rows.append(
            Row(
                name=known.name,
                what=known.what,
                pictures=_sizes(known.sizes),
                prepared="; ".join(prepared),
                command=_command(known, known.name),
                source=source,
                licence=known.licence,
            )
        )
    return rows


def print_table(data_dir: str | os.PathLike | None = None) -> None:
    """Prints :func:`table`, in lines that can be copied whole."""
    print(f"Data sets that are known by name; prepared ones are in {_data_dir(data_dir)}\n")
    for row in table(data_dir):
        print(f"{row.name}: {row.what}")
        print(f"    pictures  {row.pictures}")
        print(f"    prepared  {row.prepared or 'no'}")
        print(f"    get it    {row.command}")
        print(f"              {row.source}")
        print(f"    licence   {row.licence}")
    print(
        "\nWithout preparation: a folder of class folders (named by WNID or otherwise), or of files WNID_name.JPEG;\n"
        "a .tar or .tar.gz of such (ILSVRC2012_img_val.tar too); WebDataset shards, as 'shards/{000..099}.tar'."
    )


def _sizes(splits: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in splits.items())


def _resolve(spec: str) -> tuple[Known, str]:
    """The entry, and tfds's name with the configuration."""
    name, _, config = spec.partition("/")
    if name not in KNOWN:
        raise unknown(f"{name!r} is no known data set", name, KNOWN)
    known = KNOWN[name]
    return known, f"{name}/{config or known.config}".rstrip("/")


def _command(known: Known, spec: str) -> str:
    return f"jaxclip datasets prepare {spec}" + (" --from FILE" if known.manual else "")


def _prepared(full_name: str, data_dir: str | os.PathLike | None) -> Any | None:
    """The reader, tfds's, of what is prepared, or None where nothing is.

    Raises:
        InputError: What is prepared is damaged.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.core.read_only_builder.builder_from_files(full_name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        return None
    except Exception as error:  # errors of many kinds for each of the files of metadata
        raise InputError(
            f"{_data_dir(data_dir) / full_name} is damaged ({reason(error)}): remove it and prepare it again with "
            f"`{_command(_resolve(full_name)[0], full_name)}`"
        ) from error


def _data_dir(data_dir: str | os.PathLike | None) -> Path:
    import tensorflow_datasets as tfds

    return Path(tfds.core.constants.DATA_DIR if data_dir is None else data_dir).expanduser()
