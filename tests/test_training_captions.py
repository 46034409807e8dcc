"""Caption files as people have them: absolute paths, a byte order mark, other encodings, a quotation mark left open."""

from pathlib import Path

import pytest
from PIL import Image

from jaxclip.errors import InputError
from jaxclip.training.data import open_captions


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_absolute_paths_need_no_folder(picture: Path, tmp_path: Path) -> None:
    """A picture that exists must not be said to be missing."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text(f"path,caption\n{picture},a dot\n")
    captions = open_captions(tmp_path / "lists" / "a.csv")
    assert captions.source[0].image_bytes == picture.read_bytes()


def test_a_byte_order_mark_is_no_part_of_the_first_column(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,caption\na.png,ein Fünkchen\n", encoding="utf-8-sig")
    assert open_captions(tmp_path / "a.csv").texts == ("ein Fünkchen",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,caption\na.png,café\n".encode("latin-1"), "is not in UTF-8"),
        (b'path,caption\na.png,"' + b"x" * 200_000, r"a\.csv, line 2: .*quotation mark"),
    ],
    ids=["latin-1", "too long"],
)
def test_what_is_no_table_is_named(content: bytes, says: str, picture: Path, tmp_path: Path) -> None:
    """The file and what to do, not a traceback."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=says):
        open_captions(tmp_path / "a.csv")


@pytest.mark.parametrize("row", [b",x", b"a\0.png,x", b".,x"], ids=["empty", "NUL", "folder"])
def test_a_path_that_is_no_file_is_named_at_once(row: bytes, picture: Path, tmp_path: Path) -> None:
    """Not by training, hours later, where an empty cell is the folder."""
    (tmp_path / "a.csv").write_bytes(b"path,caption\na.png,y\n" + row + b"\n")
    with pytest.raises(InputError, match=r"a\.csv, caption 2: there is no picture "):
        open_captions(tmp_path / "a.csv")


def test_a_line_without_its_path_is_named(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption,path\na dot\n")
    with pytest.raises(InputError, match="a line has fewer columns"):
        open_captions(tmp_path / "a.csv")
