"""Pictures in a folder, or in tar archives that are read in place."""

import dataclasses
import functools
import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxclip.datasets.labels import class_names, to_labels
from jaxclip.datasets.source import Example, digest
from jaxclip.errors import InputError
from jaxclip.files import cache_folder, new_file
from jaxclip.progress import progress

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TARS = (".tar", ".tar.gz", ".tgz")
SAMPLE = 1024
_PACKED = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_SIDECARS = (".cls", ".json", ".txt")
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python has the bytes of a name that are none


@dataclasses.dataclass(frozen=True, repr=False)
class FileSource:
    """Pictures that are files of a folder or members of tar archives: each a range of bytes of some file.

    Attributes:
        name: The folder's or archive's.
        classes: What the labels index.
        ids: Each picture's path in the folder or archive, after the archive's name where there are several.
        labels: Indices into ``classes``, or -1.
        files: The folder's path alone, or the archives'.
        file: For each picture, an index into ``files``; None where it is a file of the folder.
        starts: The place of each picture's first byte in its file.
        sizes: Its number of bytes.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    files: tuple[Path, ...]
    file: Int[np.ndarray, " n"] | None
    starts: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        path, size = self._path(index), int(self.sizes[index])
        with path.open("rb", buffering=0) as file:
            file.seek(int(self.starts[index]))
            image_bytes = file.read(size)
        if len(image_bytes) < size:
            raise InputError(f"{path}: {self.ids[index]} is cut short; the file has changed since it was opened")
        return Example(self.ids[index], image_bytes, int(self.labels[index]))

    def __repr__(self) -> str:
        return f"FileSource({self.name!r}, {len(self)} pictures)"

    def _path(self, index: int) -> Path:
        return self.files[0] / self.ids[index] if self.file is None else self.files[self.file[index]]

    def fingerprint(self) -> str:
        """A digest of classes, ids, labels, sizes, and of each picture ``SAMPLE`` bytes at start, middle and end."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        rows = zip(self.ids, self.sizes.tolist(), self.labels.tolist(), self._samples(), strict=True)
        return digest(itertools.chain([self.classes], rows))

    def _samples(self) -> Iterator[str]:
        rows = zip(map(self._path, range(len(self))), self.starts.tolist(), self.sizes.tolist(), strict=True)
        for path, pictures in itertools.groupby(rows, key=lambda row: row[0]):
            with path.open("rb", buffering=0) as file:
                for _, start, size in pictures:
                    places = sorted({max(0, place) for place in (0, (size - SAMPLE) // 2, size - SAMPLE)})
                    sample = [os.pread(file.fileno(), min(SAMPLE, size), start + place) for place in places]
                    yield hashlib.sha256(b"".join(sample)).hexdigest()[:16]


def open_folder(path: Path, split: str | None = None, classes: Sequence[str] | None = None) -> FileSource:
    """The pictures below a folder, in the order of their paths.

    Args:
        path: Holds class folders (named by WNID, by number or otherwise), or files ``WNID_name.JPEG``, or, under
            folders train, val, validation or test, either of them.
        split: Which of these last.
        classes: What the folders' names are to be, in the order of the labels; see
            :func:`jaxclip.datasets.labels.to_labels` for the labels without it.

    Raises:
        InputError: There is no picture, or a folder's name is no class; a folder cannot be read, a link leads nowhere,
            or a name is not UTF-8.
    """
    sizes = {}
    for folder, inner, names in os.walk(path, onerror=_unreadable, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".") and not _leads_back(path, Path(folder, name))]
        below = os.path.relpath(folder, path).replace(os.sep, "/") + "/"
        for name in names:
            try:
                if is_picture(name):
                    state = os.stat(f"{folder}/{name}")  # noqa: PTH116 (many files)
                    if not stat.S_ISREG(state.st_mode):
                        raise InputError(f"{folder}/{name} is called a picture and is no file: remove it")
                    sizes[below.removeprefix("./") + name] = state.st_size
                elif not name.startswith(".") and Path(folder, name).is_symlink():
                    Path(folder, name).stat()  # a class folder's link would be among the folders, led it anywhere
            except OSError as error:
                _unreadable(error)
    if not sizes:
        raise InputError(f"{path} has no pictures ({', '.join(PICTURES)})")
    paths = sorted(sizes)
    keep, names_of_classes = class_names(paths, split, str(path))
    labels, classes = to_labels(names_of_classes, classes, str(path))
    ids = tuple(paths[i] for i in keep)
    name, starts = Path(os.path.abspath(path)).name, np.zeros(len(ids), np.int64)  # noqa: PTH100 (a link keeps its name)
    _check_names(str(path), (name, *ids, *classes))
    return FileSource(name, classes, ids, labels, (path,), None, starts, np.array([sizes[i] for i in ids], np.int64))


def _unreadable(error: OSError) -> None:
    link = Path(error.filename).is_symlink() and not Path(error.filename).exists()
    raise InputError(
        f"{error.filename} {'is a link that leads nowhere' if link else f'cannot be read ({error.strerror})'}: "
        f"{'mend or remove it' if link else 'change its permissions, or move it elsewhere'}"
    ) from error


def _leads_back(root: Path, folder: Path) -> bool:
    """Whether a folder is a link to one that it is in, on the way from the root or where that way really is."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    above = [root / parent for parent in folder.relative_to(root).parents]
    return any(parent.resolve().is_relative_to(target) for parent in above)


def _check_names(where: str, names: Iterable[str]) -> None:
    if (name := next(filter(_NOT_UTF8.search, names), None)) is not None:
        raise InputError(f"{where}: the name {name!a} is not in UTF-8, as what is written of it must be: rename it")


def open_tars(paths: Sequence[Path], split: str | None = None, classes: Sequence[str] | None = None) -> FileSource:
    """The pictures in tar archives, in the archives' order, read in place: opening reads the headers only.

    Labels come from class folders, as in :func:`open_folder`, or from WebDataset's files beside the pictures: ``.cls``
    (a number or name), ``.json`` (its ``label`` or ``cls``), or ``.txt`` where it holds a number, a WNID or one of
    ``classes`` rather than a caption. Archives within an archive (ImageNet's train set) are read in place too. A
    ``.tar.gz`` is first expanded into ``~/.cache/jaxclip``, once.

    Raises:
        InputError: An archive is missing, damaged or cut short, or has no pictures; or a name is no class, or not
            UTF-8.
    """
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is missing, or no file: name the archive")
    files = tuple(_expanded(path) if path.name.endswith((".gz", ".tgz")) else path for path in paths)
    pictures: list[Member] = []
    beside: list[dict[str, str]] = []
    with progress("indexing", None) as advance:
        for number, (file, path) in enumerate(zip(files, paths, strict=True)):
            with file.open("rb") as opened:
                found: list[Member] = []
                sidecars: dict[str, Member] = {}
                for member in members_of(opened, number, path):
                    if is_picture(member.name):
                        found.append(member)
                        advance(1)
                    elif member.name.endswith(_SIDECARS):
                        sidecars[member.name] = member
                pictures += found
                beside += [_texts(opened, sidecars, sample_key(picture.name)) for picture in found]
    if not pictures:
        raise InputError(f"{where} has no pictures ({', '.join(PICTURES)})")
    names = [
        _webdataset_name(texts, classes, f"{paths[p.file]}: {sample_key(p.name)}.json")
        for p, texts in zip(pictures, beside, strict=True)
    ]
    if all(name is None for name in names):
        keep, names = class_names([picture.name for picture in pictures], split, where)
        pictures = [pictures[i] for i in keep]
    elif split is not None:
        raise InputError(f"{where} is a WebDataset, which has no splits: name the shards of {split!r}")
    labels, classes = to_labels(names, classes, where)
    return dataclasses.replace(from_members(paths, pictures, labels, classes), files=files)


def from_members(
    paths: Sequence[Path], pictures: Sequence["Member"], labels: Int[np.ndarray, " n"], classes: tuple[str, ...] = ()
) -> FileSource:
    """Some pictures in archives, called after the archives' own names.

    Raises:
        InputError: Two pictures have one name, or a name is not UTF-8.
    """
    ends = [paths[0], *paths[1:][-1:]]
    name, where = " … ".join(path.name for path in ends), " … ".join(map(str, ends))
    ids = tuple(f"{paths[p.file].name}/{p.name}" if len(paths) > 1 else p.name for p in pictures)
    if len(set(ids)) < len(ids):
        twice = next(name for name, again in itertools.pairwise(sorted(ids)) if name == again)
        raise InputError(f"{where}: two pictures are called {twice}")
    _check_names(where, (name, *ids, *classes))
    file, starts, sizes = (np.array([getattr(p, x) for p in pictures], np.int64) for x in ("file", "start", "size"))
    return FileSource(name, classes, ids, labels, tuple(paths), file, starts, sizes)


def matching(spec: str) -> list[Path]:
    """The files that bash would take a pattern for: of wildcards those that are there, by name, and of braces all.

    Raises:
        InputError: There is none of a name, or none that a wildcard matches.
    """
    paths: list[Path] = []
    for pattern in expand_braces(spec):
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))  # noqa: PTH207 (absolute or not)
        if not found:
            raise InputError(f"{pattern} does not exist")
        paths += map(Path, found)
    return paths


def expand_braces(pattern: str) -> list[str]:
    """Bash's brace expansion of numbers and lists: ``a{00..11}.tar``, ``{train,val}.tar``."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    first, last, words = match.groups()
    if words:
        choices = words.split(",")
    else:
        step = 1 if int(first) <= int(last) else -1
        choices = [f"{i:0{len(first)}}" for i in range(int(first), int(last) + step, step)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [expanded for choice in choices for expanded in expand_braces(before + choice + after)]


class Member(NamedTuple):
    """A file in one of several archives: the archive's number, its name there, and its bytes."""

    file: int
    name: str
    start: int
    size: int


def members_of(
    opened: IO[bytes], number: int, where: Path, folder: str = "", end: int | None = None
) -> Iterator[Member]:
    """The files in the archive that starts at the file's position, and those in archives within it.

    The caller may move the file's position.
    """
    end = os.fstat(opened.fileno()).st_size if end is None else end
    try:
        with tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all that it has seen
                name = folder + member.name.removeprefix("./")
                if member.issparse() and (is_picture(name) or name.endswith(".tar")):
                    raise InputError(f"{where}: {name} is stored as a sparse file: pack the pictures anew without -S")
                stop = member.offset_data + member.size
                if stop > end:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isreg() and name.endswith(".tar"):
                    opened.seek(member.offset_data)
                    yield from members_of(opened, number, where, name.removesuffix(".tar") + "/", stop)
                elif member.isreg() and name.lower().endswith(_PACKED):
                    raise InputError(
                        f"{where}: {name} is an archive of a kind that is not read within another: unpack it"
                    )
                elif member.isreg():
                    yield Member(number, name, member.offset_data, member.size)
                elif member.islnk() and is_picture(name):
                    raise InputError(f"{where}: {name} is a hard link: pack the pictures anew with --hard-dereference")
                elif member.issym() and (is_picture(name) or "." not in name.rpartition("/")[2]):
                    raise InputError(f"{where}: {name} is a link: pack the pictures anew with --dereference")
            # tarfile takes a damaged header for the end; the end of a whole archive is blocks of zeros.
            opened.seek(tar.offset)
            block = opened.read(512)
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"no valid header at byte {tar.offset}")
            if not block or tar.offset >= end:
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        inner = f" ({folder.removesuffix('/')}.tar in it)" if folder else ""
        raise InputError(f"{where}{inner} is not a whole tar archive: {error}; copy or download it again") from error


def _expanded(path: Path) -> Path:
    """The uncompressed twin of a ``.tar.gz``, in the cache: made when missing, or when the archive has changed."""
    state = path.stat()
    key = digest([str(path.resolve()), state.st_size, state.st_mtime_ns])[:16]
    stem = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
    target = cache_folder("archives", key, f"{stem}.tar")
    if target.exists():
        return target
    try:
        with (
            gzip.open(path) as packed,
            new_file(target, "wb") as out,
            progress(f"expanding {path.name}", None, "MB") as advance,
        ):
            while block := packed.read(1 << 20):
                out.write(block)
                advance(1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}; copy or download it again") from error
    return target


def _texts(opened: IO[bytes], sidecars: dict[str, Member], key: str) -> dict[str, str]:
    """By their kind, the contents of the files beside a picture."""
    texts = {}
    for kind in _SIDECARS:
        if member := sidecars.get(key + kind):
            opened.seek(member.start)
            texts[kind] = opened.read(member.size).decode(errors="replace").strip()
    return texts


def _webdataset_name(texts: dict[str, str], classes: Sequence[str] | None, where: str) -> str | None:
    """The class that the files beside a picture name."""
    name = texts.get(".cls")
    if name is None and ".json" in texts:
        try:
            content = json.loads(texts[".json"])
            name = content.get("label", content.get("cls"))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{where} is not a JSON object: {error}") from error
    if name is None and (text := texts.get(".txt")) is not None:
        is_class = text in classes if classes is not None else re.fullmatch(r"\d+|n\d{8}", text)
        name = text if is_class else None
    return None if name is None else str(name)


def sample_key(name: str) -> str:
    """What the files of a WebDataset sample have in common: the name up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def is_picture(path: str) -> bool:
    """Whether the name is a picture's, and neither it nor a folder in it is hidden."""
    hidden = any(part.startswith(".") and part.strip(".") for part in path.split("/"))
    return path.lower().endswith(PICTURES) and not hidden
