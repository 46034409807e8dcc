"""Files that are whole or absent: everything is written under a temporary name, then renamed."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxclip.errors import InputError


def cache_folder(*names: str) -> Path:
    """``~/.cache/jaxclip/…``, or in the folder that ``XDG_CACHE_HOME`` names: what can be made or fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("jaxclip", *names)


@contextlib.contextmanager
def new_directory(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that becomes ``path`` when the block ends well, and is removed when not.

    Raises:
        InputError: ``path`` is a file, or exists (and is not an empty folder) and ``overwrite`` is false.
    """
    final = Path(path).absolute()
    if final.is_file():
        raise InputError(f"{final} is a file: name a folder")
    if not overwrite and occupied(final):
        raise InputError(f"{final} exists already: remove it, or name another output folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if final.exists():
            old = final.with_name(f".{final.name}.{os.getpid()}.old")
            final.rename(old)
            temporary.rename(final)
            shutil.rmtree(old)
        else:
            temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_folder(path: str | os.PathLike) -> None:
    """Raises the OSError that writing into a folder would end in, before there is anything to write; makes nothing."""
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def occupied(path: str | os.PathLike) -> bool:
    """Whether there is anything but an empty folder, which a new folder would replace."""
    path = Path(path)
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def new_file(path: str | os.PathLike, mode: str = "w", **kwargs: Any) -> Iterator[IO]:
    """Opens a temporary file beside ``path``; it replaces ``path`` when the block ends well, and is removed when not.

    Args:
        path: The final name; its folder is made when missing.
        mode: As in :func:`open`.
        **kwargs: For :func:`open` too, such as ``encoding`` and ``newline``.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
    try:
        with os.fdopen(handle, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(final)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a failed write does not say where
            error.filename = os.fspath(final)
        raise


def replace_section(path: str | os.PathLike, name: str, text: str) -> None:
    """Puts ``text`` between the lines ``<!-- name -->`` and ``<!-- /name -->`` of a Markdown file.

    Raises:
        InputError: The file has no such lines.
    """
    page = Path(path).read_text(encoding="utf-8")
    before, start, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not start or not end:
        raise InputError(f"{path} has no lines <!-- {name} --> and <!-- /{name} -->: add them where the text goes")
    with new_file(path, encoding="utf-8") as file:
        file.write(f"{before}{start}{text}\n{end}{after}")


def read_object(path: str | os.PathLike, advice: str) -> dict[str, Any]:
    """The JSON object that a file is.

    Raises:
        InputError: The file cannot be read or is no JSON object; ``advice`` ends the message.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: {advice}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): {advice}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object: {advice}")
    return found


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
