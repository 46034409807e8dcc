"""The files of a data set as its authors publish it: in a zip, or in the folder that the zip unpacks to."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxclip.errors import InputError


class Reader(NamedTuple):
    """Files by name.

    Attributes:
        where: The zip or folder.
        files: From each file's name, below the folder that holds the one asked for, to its place in the zip or folder.
        zip: The open zip, or None for a folder.
    """

    where: Path
    files: Mapping[str, str]
    zip: zipfile.ZipFile | None

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            InputError: It is missing, damaged, or encrypted.
        """
        if name not in self.files:
            raise InputError(f"{self.where} has no {name}: download or unpack it again")
        if self.zip is None:
            return (self.where / self.files[name]).read_bytes()
        if self.zip.getinfo(self.files[name]).flag_bits & 1:
            raise InputError(
                f"{self.where} is encrypted: unpack it (`unzip -P PASSWORD`; the password is where you downloaded it), "
                "and give the folder"
            )
        try:
            return self.zip.read(self.files[name])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{self.where}: {name} is damaged: {error}; download it again") from error


def open_reader(manual_dir: Path, marker: str) -> Reader:
    """Opens the one zip or folder in ``manual_dir``, or that folder itself.

    Args:
        manual_dir: tfds's.
        marker: The file or folder that says where names begin: ``images``, say, for ``objectnet-1.0/images/…``.

    Raises:
        InputError: There is no such file or folder, or the zip is damaged.
    """
    inside = [path for path in manual_dir.iterdir() if not path.name.startswith(".")]
    where = inside[0] if len(inside) == 1 else manual_dir
    archive = None
    if where.is_file():
        try:
            archive = zipfile.ZipFile(where)
        except zipfile.BadZipFile as error:
            raise InputError(f"{where.resolve()} is not a whole zip file: {error}; download it again") from error
        paths = [info.filename for info in archive.infolist() if not info.is_dir()]
    else:
        paths = [path.relative_to(where).as_posix() for path in where.rglob("*") if path.is_file()]
    at = f"/{marker}/" if "." not in marker else f"/{marker}"
    roots = sorted({f"/{path}".split(at)[0] for path in paths if at in f"/{path}"}, key=len)
    if not roots:
        raise InputError(f"{where.resolve()} has no {marker}: this is not the published archive")
    root = f"{roots[0]}/".removeprefix("/")
    return Reader(
        where.resolve(), {p.removeprefix(root): p for p in paths if p.startswith(root) and "/." not in p}, archive
    )
