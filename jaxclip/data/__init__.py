"""Small facts that ship with the package; README.md beside this file says where each comes from."""

import functools
import importlib.resources
import json
from typing import Any

SHIFTS = ("imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet", "imagenet_a")
"""ImageNet's five shifts, by name."""


def read_bytes(name: str) -> bytes:
    """A file of this folder."""
    return importlib.resources.files(__name__).joinpath(name).read_bytes()


@functools.cache
def read_json(name: str) -> Any:
    """A JSON file of this folder, parsed once: treat it as read-only."""
    return json.loads(read_bytes(name))


def imagenet_wnids() -> list[str]:
    """The 1,000 WordNet ids, in class order (which is alphabetical)."""
    return [entry["wnid"] for entry in read_json("imagenet_classes.json")]


def imagenet_classnames() -> list[str]:
    """The 1,000 names that OpenAI's and open_clip's prompts use, in class order ("missile" and "sunglasses" twice)."""
    return [entry["name"] for entry in read_json("imagenet_classes.json")]


def imagenet_templates() -> list[str]:
    """OpenAI's 80 prompt templates for ImageNet, with ``{}`` where the class name goes."""
    return list(read_json("templates.json"))
