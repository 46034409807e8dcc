"""What a data set is to the rest of the program: a random-access source of encoded pictures."""

import difflib
import hashlib
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from jaxclip.errors import InputError


class Example(NamedTuple):
    """One picture, not decoded.

    Attributes:
        id: Stable and unique within its source: a path, or the data set's own name for the picture.
        image_bytes: The encoded picture (JPEG, PNG, …).
        label: An index into the source's ``classes``, or -1 where the picture has no label.
    """

    id: str
    image_bytes: bytes
    label: int


class Source(Protocol):
    """Pictures in a fixed order, read one at a time from any thread or process: it can be pickled, and Grain reads it.

    Attributes:
        name: For messages and manifests; a known data set's is what was asked for (``broden``, ``broden/224``), with
            ``:split`` where one was named.
        classes: What the labels index: ImageNet's 1,000 WNIDs in their order where the labels are ImageNet's, names
            otherwise, and nothing where there are no labels.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def fingerprint(self) -> str:
        """A digest that differs when the pictures' ids, order, sizes in bytes or labels do."""
        ...


def digest(items: Iterable[object]) -> str:
    """SHA-256, in hexadecimal, of the items' ``repr``, in order."""
    state = hashlib.sha256()
    for item in items:
        state.update(repr(item).encode())
        state.update(b"\n")
    return state.hexdigest()


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is none of the known ones: says which comes nearest, or what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    few = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return InputError(f"{what}: {f'did you mean {near[0]}?' if near else f'there are {few}'}")
