"""Batches: every picture once an epoch, another order each time, the same after a restart; and the caption formats."""

import csv
import functools
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny import class_folders

from jaxclip.config import Preprocess
from jaxclip.datasets import Example, open_source
from jaxclip.errors import InputError
from jaxclip.tokenizer import load_tokenizer
from jaxclip.training.augment import Augment
from jaxclip.training.data import caption_batches, class_batches, open_captions

PIXELS = Preprocess(32)


@pytest.fixture(scope="module")
def source(imagenet_samples: list[Path], tmp_path_factory):
    """Three birds and three of the fish."""
    root = class_folders(imagenet_samples, tmp_path_factory.mktemp("pictures"))
    sorted((root / "fish").iterdir())[0].unlink()
    return open_source(root)


def test_epochs_are_permutations_that_differ(source) -> None:
    data = class_batches(source, PIXELS, Augment(), 2, seed=1, workers=0)
    taken = [next(data) for _ in range(9)]
    ids = np.concatenate([b["ids"] for b in taken]).reshape(3, 6)
    assert all(sorted(epoch) == sorted(source.ids) for epoch in ids.tolist()), "a picture is missing from an epoch"
    assert len({tuple(epoch) for epoch in ids.tolist()}) > 1, "every epoch has the same order"
    for batch in taken:
        assert batch["images"].shape == (2, 32, 32, 3) and batch["images"].dtype == np.uint8
        assert [source.classes[i] for i in batch["labels"]] == [str(name).split("/")[0] for name in batch["ids"]]
    pictures = {str(name): [] for name in source.ids}
    for batch in taken:
        for name, image in zip(batch["ids"], batch["images"], strict=True):
            pictures[str(name)].append(image)
    assert any(not np.array_equal(crops[0], crops[1]) for crops in pictures.values()), "augmentation never changes"


def test_a_position_is_taken_up_again(source) -> None:
    """From get_state, through JSON, into a new iterator: the same pictures with the same augmentation."""
    first = class_batches(source, PIXELS, Augment(randaugment=(2, 9)), 4, seed=1, workers=0)
    for _ in range(3):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = class_batches(source, PIXELS, Augment(randaugment=(2, 9)), 4, seed=1, workers=0)
    second.set_state(state)
    for _ in range(3):
        a, b = next(first), next(second)
        assert a["ids"].tolist() == b["ids"].tolist() and np.array_equal(a["images"], b["images"])
    other = next(class_batches(source, PIXELS, Augment(), 4, seed=2, workers=0))
    same = next(class_batches(source, PIXELS, Augment(), 4, seed=1, workers=0))
    assert not np.array_equal(other["images"], same["images"]), "the seed changes nothing"


def test_a_position_is_of_any_number_of_workers(source) -> None:
    """A run that moves to a machine of more cores would fail, or go on with other batches."""
    make = functools.partial(class_batches, source, PIXELS, Augment(), 4, seed=1)
    expected = make(workers=0)
    state = expected.get_state()
    for workers in (0, 2, 1, 0):
        data = make(workers=workers)
        data.set_state(json.loads(json.dumps(state)))
        for _ in range(3):
            a, b = next(expected), next(data)
            assert a["ids"].tolist() == b["ids"].tolist() and np.array_equal(a["images"], b["images"]), workers
        state = data.get_state()
        data.close()


UNGUARDED = """
import sys
from jaxclip.config import Preprocess
from jaxclip.datasets import open_source
from jaxclip.training.augment import Augment
from jaxclip.training.data import class_batches

print("run", flush=True)
data = class_batches(open_source(sys.argv[1]), Preprocess(32), Augment(), 2, seed=1, workers=1)
next(data)
data.set_state(data.get_state())
print(len(next(data)["ids"]), flush=True)
"""


@pytest.mark.slow
def test_workers_do_not_run_an_unguarded_script_again(imagenet_samples: list[Path], tmp_path: Path) -> None:
    """Spawned processes import the main script again, which would start a training run of its own."""
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    root = class_folders(imagenet_samples, tmp_path / "pictures")
    done = subprocess.run([sys.executable, script, root], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.split()) == (0, ["run", "2"]), done.stderr


FRESH = """
import sys
from jaxclip.config import Preprocess
from jaxclip.training.augment import Augment
from jaxclip.training.data import caption_batches, open_captions

captions = open_captions(*sys.argv[1:])
data = caption_batches(captions, Preprocess(32), Augment(), 1, context_length=77, seed=1, workers=0)
for _ in range(4):
    next(data)
"""


def test_a_fresh_process_reads_captions_in_threads(imagenet_samples: list[Path], tmp_path: Path) -> None:
    """Threads that all begin with transformers' lazy imports get an ImportError: any run of a few cores would fail."""
    rows = "".join(f"{path.name},a picture\n" for path in imagenet_samples[:8])
    (tmp_path / "a.csv").write_text(f"path,caption\n{rows}")
    command = [sys.executable, "-c", FRESH, tmp_path / "a.csv", imagenet_samples[0].parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_bad_pictures_and_sizes_are_named(source, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="6 pictures, fewer than a batch of 7"):
        class_batches(source, PIXELS, Augment(), 7, seed=0, workers=0)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"no picture")
    broken = class_batches(open_source(tmp_path), PIXELS, Augment(), 1, seed=0, workers=0)
    with pytest.raises(Exception, match=r"cat/broken\.jpg cannot be trained on"):
        next(broken)


TEXTS = ["a tench, in hand", "ein Goldfisch &amp; Wasser", "shark"]


def layouts(samples: list[Path], root: Path) -> dict[str, tuple[str, Path | None]]:
    """The same three pictures and captions in each format."""
    (root / "pictures").mkdir()
    for path in samples[:3]:
        (root / "pictures" / path.name).write_bytes(path.read_bytes())
    for name, columns, delimiter in (("a.csv", ("path", "caption"), ","), ("b.tsv", ("filepath", "title"), "\t")):
        with (root / name).open("w", newline="") as file:
            table = csv.writer(file, delimiter=delimiter)
            table.writerow(columns)
            table.writerows((f"pictures/{p.name}", t) for p, t in zip(samples, TEXTS, strict=False))
    for shard, rows in (("0", [0, 1]), ("1", [2])):
        with tarfile.open(root / f"shard{shard}.tar", "w") as tar:
            for i in rows:
                for suffix, content in (("jpg", samples[i].read_bytes()), ("txt", TEXTS[i].encode())):
                    info = tarfile.TarInfo(f"{i:05}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    entries = []
    for path, text in zip(samples[:3], TEXTS, strict=True):
        wnid = path.name.split("_")[0]
        (root / "train" / wnid).mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(path.read_bytes())
        entries.append({"filename": f"{wnid}_1.JPEG", "wnid": wnid, "title": text, "tags": ["x", "y"]})
        entries[-1]["description"] = "seen"
    (root / "captions.json").write_text(json.dumps(entries))
    return {
        "csv": (str(root / "a.csv"), None),
        "open_clip tsv": (str(root / "b.tsv"), None),
        "webdataset": (str(root / "shard{0..1}.tar"), None),
        "imagenet-captions": (str(root / "captions.json"), root / "train"),
    }


def test_every_caption_format_gives_the_same_pairs(imagenet_samples: list[Path], tmp_path: Path) -> None:
    tokenize = load_tokenizer(12)
    for kind, (spec, images) in layouts(imagenet_samples, tmp_path).items():
        captions = open_captions(spec, images)
        suffix = " seen x y" if kind == "imagenet-captions" else ""
        assert [captions.source[i].image_bytes for i in range(3)] == [p.read_bytes() for p in imagenet_samples[:3]]
        assert list(captions.texts) == [text + suffix for text in TEXTS], kind
        cfg = Augment(crop_scale=None, flip=False)
        batch = next(caption_batches(captions, PIXELS, cfg, 3, context_length=12, seed=0, workers=0))
        for name, tokens in zip(batch["ids"], batch["tokens"], strict=True):
            place = captions.source.ids.index(str(name))
            assert np.array_equal(tokens, tokenize(TEXTS[place] + suffix)[0]), f"{kind}: {name} has another's caption"


def test_bad_captions_are_named(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.csv", "image,text\nx,y\n", "has columns image, text"),
        ("a.csv", "path,caption\nnowhere.jpg,y\n", "there is no picture .*nowhere.jpg"),
        ("a.csv", "", "names no columns in its first line: it needs path and caption"),
        ("a.json", '{"a": 1}', "is not ImageNet-Captions"),
        ("a.txt", "", "is no image-caption data"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=said):
            open_captions(tmp_path / name)
    with pytest.raises(InputError, match=r"shard0\.tar does not exist"):
        open_captions(tmp_path / "shard{0..1}.tar")
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for name in ("1.jpg", "1.txt", "1.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(InputError, match=r"twice\.tar: two pictures are called 1\.jpg"):
        open_captions(tmp_path / "twice.tar")


class Deadly:
    """A source whose pictures kill the process that reads them."""

    name, classes = "deadly", ("a",)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Example:
        os._exit(3)

    def fingerprint(self) -> str:
        return "deadly"


def test_a_worker_that_dies_is_reported() -> None:
    """As in the loader: where memory is short, fewer workers, and no traceback."""
    data = class_batches(Deadly(), PIXELS, Augment(), 2, seed=0, workers=1)
    with pytest.raises(InputError, match="worker process of deadly died"):
        next(data)


def test_a_picture_that_vanished_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"x")
    data = class_batches(open_source(tmp_path), PIXELS, Augment(), 1, seed=0, workers=0)
    (tmp_path / "cat" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"cannot be trained on: .*cat/a\.jpg"):
        next(data)
