"""ObjectNet and Broden in their published layouts, but tiny and made up: for tests of the builders."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def objectnet_files(folders: list[str], seed: int = 0) -> dict[str, bytes]:
    """``objectnet-1.0/…``: one 12 x 9 picture a folder, two in the first, with a border of two red pixels."""
    rng = np.random.default_rng(seed)
    files = {"objectnet-1.0/README.md": b"made up", "objectnet-1.0/mappings/folder_to_objectnet_label.json": b"{}"}
    for folder in [*folders, folders[0]]:
        picture = np.full((9, 12, 3), (255, 0, 0), np.uint8)
        picture[2:-2, 2:-2] = rng.integers(0, 256, (5, 8, 3))
        files[f"objectnet-1.0/images/{folder}/{rng.integers(1 << 40):011x}.png"] = png(picture)
    return files


COLORS = ("black-c", "blue-c", "red-c")
CATEGORIES = ("color", "object", "part", "material", "scene", "texture")


def broden_files(size: int = 224, seed: int = 0) -> tuple[dict[str, bytes], dict[str, dict[str, set[str]]]]:
    """``broden1_SIZE/…`` with 300 labels (numbers above 255 need green), and the truth: picture → label → categories.

    Four pictures: a texture with two image-level labels; a scene with masks of objects and of two layers of parts;
    materials of which one is in a single pixel, and is an object elsewhere; and one with colours alone, all unlabelled.
    """
    rng = np.random.default_rng(seed)
    names = [*COLORS, *(f"thing {i}" for i in range(4, 301))]
    top, half = f"broden1_{size}", size // 2
    empty = np.zeros((half, half), np.int32)

    def paint(*numbers: int) -> np.ndarray:
        mask = empty.copy()
        for band, number in enumerate(numbers):
            mask[band * 8 : band * 8 + 8] = number
        return mask

    single = paint(40)
    single[-1, -1] = 299
    pictures = {
        "dtd/g_0106.jpg": ("train", {"color": [paint(1, 2)], "texture": [300, 194]}),
        "ade20k/ADE_train_1.jpg": (
            "val",
            {"color": [paint(3)], "object": [paint(20, 299)], "part": [paint(30, 31), paint(0, 257)], "scene": [256]},
        ),
        "opensurfaces/77.jpg": ("train", {"color": [paint(1)], "material": [single]}),
        "pascal/2008_1.jpg": ("train", {"color": [empty]}),
    }
    files, rows, truth = {}, [], {}
    for image, (split, labels) in pictures.items():
        files[f"{top}/images/{image}"] = jpeg(rng.integers(0, 256, (size, size, 3), np.uint8))
        row = {"image": image, "split": split, "ih": size, "iw": size, "sh": half, "sw": half}
        truth[image] = {}
        for category in CATEGORIES:
            cell = []
            for layer, label in enumerate(labels.get(category, []), 1):
                several = isinstance(label, np.ndarray) and len(labels[category]) > 1
                if isinstance(label, np.ndarray):
                    name = image.replace(".jpg", f"_{category}_{layer}.png" if several else f"_{category}.png")
                    code = np.stack([label % 256, label // 256, np.zeros_like(label)], -1).astype(np.uint8)
                    files[f"{top}/images/{name}"] = png(code)
                    cell.append(name)
                else:
                    cell.append(str(label))
                for number in set(np.ravel(label).tolist()) - {0}:
                    truth[image].setdefault(names[number - 1], set()).add(category)
            row[category] = ";".join(cell)
        rows.append(row)
    counts = {name: {c: sum(c in t.get(name, ()) for t in truth.values()) for c in CATEGORIES} for name in names}
    label_rows = [
        {
            "number": number,
            "name": name,
            "category": ";".join(f"{c}({n})" for c, n in sorted(counts[name].items(), key=lambda x: -x[1]) if n)
            or "object(0)",
            "frequency": sum(counts[name].values()),
            "coverage": "0.5",
            "syns": "",
        }
        for number, name in enumerate(names, 1)
    ]
    categories = [{"name": c, "first": 1, "last": 300, "count": 1, "frequency": 1} for c in CATEGORIES]
    for name, content in (("index", rows), ("label", label_rows), ("category", categories)):
        files[f"{top}/{name}.csv"] = _csv(content)
    for category in CATEGORIES:
        codes = [n for n in names if counts[n][category]]
        content = [
            {"code": i, "number": names.index(n) + 1, "name": n, "frequency": 1, "coverage": 1}
            for i, n in enumerate(codes, 1)
        ]
        files[f"{top}/c_{category}.csv"] = _csv(content)
    return files, truth


def _csv(rows: list[dict]) -> bytes:
    out = io.StringIO()
    table = csv.DictWriter(out, rows[0])
    table.writeheader()
    table.writerows(rows)
    return out.getvalue().encode()


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def shared_json(name: str) -> dict:
    import pytest

    if not (SHARED / name).exists():
        pytest.skip(f"shared data are missing: {SHARED / name}")
    return json.loads((SHARED / name).read_text())
