"""Data sets that are known by name: class subsets, ObjectNet and Broden from made-up files, what is prepared."""

import hashlib
import io
import itertools
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_datasets import (
    CATEGORIES,
    broden_files,
    objectnet_files,
    shared_json,
    write_folder,
    write_zip,
)
from PIL import Image

from jaxclip.config import Preprocess
from jaxclip.datasets import class_subset, concepts, label_map, named, open_source, prepare, print_table, table
from jaxclip.datasets.subsets import is_shift, objectnet, plain_name
from jaxclip.errors import InputError
from jaxclip.loader import batches


@pytest.fixture(scope="session")
def wnids() -> list[str]:
    import tensorflow_datasets as tfds

    return (Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt").read_text().split()


def fails(match: str, call, *args, **kwargs) -> str:
    with pytest.raises(InputError, match=re.escape(match)) as error:
        call(*args, **kwargs)
    return str(error.value)


def broken_png() -> bytes:
    """For which Pillow raises a SyntaxError: the length of a chunk is wrong, and so the next chunk's name."""
    file = io.BytesIO()
    Image.effect_noise((200, 200), 99).convert("RGB").save(file, "PNG")
    content = bytearray(file.getvalue())
    at = content.index(b"IDAT") - 1
    content[at] ^= 8
    return bytes(content)


# --- class subsets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_class_subsets_are_the_testbeds(name, wnids):
    """Counts, order and the WNID of each class, against tfds's label file and the ImageNet testbed's indices."""
    indices = class_subset(name)
    assert len(indices) == len(set(indices.tolist())) == 200
    assert (np.diff(indices) > 0).all()
    assert indices.tolist() == shared_json("robustness/imagenet_class_subsets.json")[name]
    shipped = json.loads((Path(named.__file__).parent.parent / "data" / "class_subsets.json").read_text())[name]
    assert [wnids[i] for i in indices] == shipped, "the WNIDs that ship are not tfds's at these indices"


def test_the_authors_own_names_have_their_classes():
    """As the archives are called, and unpack: else such a folder is classified among 1,000 classes, without a word."""
    for name in ("imagenet-a", "imagenet-a.tar", "imagenet-a.tgz", "imagenet_a.tar", "imagenet_a:test"):
        np.testing.assert_array_equal(class_subset(name), class_subset("imagenet_a"))
    np.testing.assert_array_equal(class_subset("imagenet-r.tar.gz"), class_subset("imagenet_r"))
    assert class_subset("imagenet-sketch.tar") is None and class_subset("imagenet_val") is None
    for name, known in (("imagenetv2-matched-frequency-format-val", "imagenet_v2"), ("sketch", "imagenet_sketch")):
        assert plain_name(name) == known and is_shift(name), "it would be taken for ImageNet itself"


def test_class_subsets_are_their_authors():
    """Hendrycks's own evaluation scripts, which are independent of the testbed's file.

    ImageNet-R: the digest of the index list in github.com/hendrycks/imagenet-r, eval.py; ImageNet-A: places of
    classes among the 200 in ``thousand_k_to_200`` of github.com/hendrycks/natural-adv-examples, eval.py.
    """
    r = " ".join(map(str, class_subset("imagenet_r")))
    assert hashlib.sha256(r.encode()).hexdigest() == "becd1bb8e8059908b3c1d6d4d480159e759cf818e604dc089ca612949589a465"
    place = {6: 0, 13: 2, 37: 9, 76: 17, 99: 24, 150: 36, 207: 38, 295: 46, 327: 63, 401: 76, 470: 94, 579: 117,
             677: 131, 763: 143, 820: 159, 900: 176, 932: 180, 957: 190, 972: 193, 988: 199}  # fmt: skip
    a = class_subset("imagenet_a")
    assert {index: int(np.flatnonzero(a == index)[0]) for index in place} == place


def test_other_data_sets_have_all_classes():
    assert class_subset("imagenet_v2") is class_subset("imagenet_sketch") is class_subset("cifar10") is None
    assert class_subset("objectnet:test").tolist() == class_subset("objectnet").tolist()


def test_objectnets_labels_are_the_right_imagenet_classes(wnids):
    """113 labels in the testbed's order, each with the ImageNet classes whose names the testbed's map gives it."""
    labels = label_map("objectnet")
    names = shared_json("objectnet/imagenet_to_labels.json")
    published = shared_json("objectnet/objectnet_to_imagenet_1k.json")
    assert len(labels) == 113 and list(labels) == list(published)
    for label, indices in labels.items():
        assert "; ".join(names[str(i)] for i in indices) == published[label], f"{label} is mapped to other classes"
        assert [wnids[i] for i in indices] == objectnet()["imagenet"][label]
    every = np.concatenate(list(labels.values()))
    assert len(every) == len(set(every.tolist())) == 125, "two labels share an ImageNet class"
    assert class_subset("objectnet").tolist() == sorted(every.tolist())
    assert objectnet()["folders"] == shared_json("objectnet/folder_to_objectnet_label.json")
    assert len(set(objectnet()["folders"].values())) == 313 and set(labels) < set(objectnet()["folders"].values())


# --- ObjectNet -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objectnet_made() -> dict[str, bytes]:
    return objectnet_files(list(objectnet()["folders"]))


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_objectnet_is_prepared_and_read(objectnet_made, form, tmp_path):
    """From the zip or the folder: the 113 overlapping labels, pixels within the border unchanged."""
    write = write_zip if form == "zip" else write_folder
    published = write(tmp_path / "objectnet-1.0.zip" if form == "zip" else tmp_path / "mine", objectnet_made)
    overlapping = {f: label for f, label in objectnet()["folders"].items() if label in label_map("objectnet")}
    first = next(iter(objectnet()["folders"])) in overlapping
    assert prepare("objectnet", published, tmp_path / "data") == {"test": 113 + first}
    source = open_source("objectnet", data_dir=tmp_path / "data")
    assert len(source) == 113 + first and source.name == "objectnet"
    assert source.classes == tuple(label_map("objectnet")), "labels index the labels of label_map, in its order"
    for i in range(len(source)):
        example = source[i]
        folder = example.id.split("/")[0]
        assert source.classes[example.label] == overlapping.pop(folder, None) or first
        with (
            Image.open(io.BytesIO(example.image_bytes)) as cropped,
            Image.open(io.BytesIO(objectnet_made[f"objectnet-1.0/images/{example.id}"])) as original,
        ):
            assert cropped.format == "PNG"
            assert np.array_equal(cropped, np.asarray(original)[2:-2, 2:-2]), "not the picture without its border"
            assert not (np.asarray(cropped) == (255, 0, 0)).all(-1).any(), "some of the border is left"
    assert not overlapping, "some classes have no picture"


def test_all_of_objectnet(objectnet_made, tmp_path):
    published = write_zip(tmp_path / "objectnet-1.0.zip", objectnet_made)
    assert prepare("objectnet/all", published, tmp_path) == {"test": 314}
    source = open_source("objectnet/all", data_dir=tmp_path)
    assert len(source.classes) == len({source[i].label for i in range(314)}) == 313
    labels, overlapping = label_map(source.name), label_map("objectnet")
    assert tuple(labels) == source.classes
    assert {k: v.tolist() for k, v in labels.items() if v.size} == {k: v.tolist() for k, v in overlapping.items()}


def test_a_bad_objectnet(objectnet_made, tmp_path):
    def bad(name: str, message: str, **changes: bytes | None) -> None:
        files = {k: v for k, v in (objectnet_made | changes).items() if v is not None}
        fails(message, prepare, "objectnet", write_zip(tmp_path / name, files), tmp_path / "data")

    tv = {name: None for name in objectnet_made if "/tv/" in name}
    bad("a.zip", "images/tv has no pictures", **tv)
    bad("b.zip", "images/unicorn is no folder of ObjectNet", **{"objectnet-1.0/images/unicorn/1.png": b"x"})
    bad("c.zip", "cannot be decoded", **dict.fromkeys(tv, b"no picture"))
    bad("g.zip", "cannot be decoded", **dict.fromkeys(tv, broken_png()))
    fails("has no images", prepare, "objectnet", write_zip(tmp_path / "d.zip", {"readme": b"x"}), tmp_path / "data")
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "e.zip").write_bytes(whole[: len(whole) // 2])
    fails("e.zip is not a whole zip", prepare, "objectnet", tmp_path / "e.zip", tmp_path / "data")
    fails("does not exist", prepare, "objectnet", tmp_path / "f.zip", tmp_path / "data")
    fails("give objectnet-1.0.zip", prepare, "objectnet", None, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.array_record*")), "a preparation that failed left files behind"
    fails("not prepared", open_source, "objectnet", data_dir=tmp_path / "data")


def test_an_encrypted_objectnet_says_what_to_do(objectnet_made, tmp_path):
    """The published zip has a password, and Python would take days to decrypt it."""
    path = write_zip(tmp_path / "objectnet-1.0.zip", objectnet_made)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            content[info.header_offset + 6] |= 1
    at = 0
    while (at := content.find(b"PK\1\2", at)) >= 0:  # the same bit in the central directory
        content[at + 8] |= 1
        at += 4
    path.write_bytes(content)
    assert "unzip -P" in fails("is encrypted", prepare, "objectnet", path, tmp_path / "data")


# --- Broden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "form"), [(224, "zip"), (227, "folder")])
def test_broden_is_prepared_and_read(size, form, tmp_path):
    """Every picture's concepts, from any pixel of any mask and from image-level labels, and their categories."""
    made, truth = broden_files(size)
    write = write_zip if form == "zip" else write_folder
    spec = "broden" if size == 224 else f"broden/{size}"
    assert prepare(spec, write(tmp_path / "made", made), tmp_path / "data") == {"train": 3, "val": 1}
    source = open_source(spec, data_dir=tmp_path / "data")
    found = concepts(source)
    assert found.matrix.shape == (4, 300) and found.matrix.dtype == bool and len(found.names) == 300
    assert {
        source[i].id: {found.names[c] for c in found.matrix[[i]].nonzero()[1]} for i in range(4)
    } == {image: set(labels) for image, labels in truth.items()}  # fmt: skip
    for i in range(4):
        record = source.records[i]
        pairs = list(zip(record["concepts"], record["categories"], strict=True))
        assert pairs == sorted(pairs)
        assert {(found.names[c], CATEGORIES[k]) for c, k in pairs} == {
            (name, category) for name, where in truth[source[i].id].items() for category in where
        }
        assert source[i].image_bytes == made[f"broden1_{size}/images/{source[i].id}"]
        assert source[i].label == -1
    assert dict(zip(found.names, found.categories, strict=True))["red-c"] == "color"
    assert found.categories[255] == "scene" and found.categories[256] == "part" and found.categories[299] == "texture"
    val = open_source(spec, split="val", data_dir=tmp_path / "data")
    assert [val[0].id, len(val)] == ["ade20k/ADE_train_1.jpg", 1]
    assert concepts(val).matrix.sum() == len(truth["ade20k/ADE_train_1.jpg"])


def test_a_concept_is_of_the_category_with_most_pictures():
    """By number, not by text, in which 9 comes after 10; names of categories are as label.csv has them."""
    from jaxclip.datasets.broden import main_category

    assert main_category("object(9);material(10)") == "material"
    assert main_category("part(1002);object(998)") == "part" and main_category("color(7)") == "color"


def test_a_bad_broden(tmp_path):
    made, _ = broden_files()

    def bad(message: str, spec: str = "broden", **changes: bytes | None) -> None:
        files = {k: v for k, v in (made | changes).items() if v is not None}
        fails(message, prepare, spec, write_zip(tmp_path / "made.zip", files), tmp_path / "data")

    bad("is of 224 pixels: prepare broden/224", spec="broden/384")
    bad("has no images/dtd/g_0106.jpg", **{"broden1_224/images/dtd/g_0106.jpg": None})
    bad("has no images/ade20k/ADE_train_1_part_2.png", **{"broden1_224/images/ade20k/ADE_train_1_part_2.png": None})
    bad("cannot be decoded", **{"broden1_224/images/dtd/g_0106_color.png": b"x"})
    bad("cannot be decoded", **{"broden1_224/images/dtd/g_0106_color.png": broken_png()})
    bad("has no label.csv", **{"broden1_224/label.csv": None})
    bad("has no index.csv", **{"broden1_224/index.csv": None})
    label = made["broden1_224/label.csv"]
    bad("the texture 300, not in label.csv", **{"broden1_224/label.csv": label[: label.index(b"\n300,") + 1]})
    bad("no column number", **{"broden1_224/label.csv": label.replace(b"number", b"no", 1)})
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_only_broden_has_concepts(imagenet_samples):
    fails("has no concepts", concepts, open_source(imagenet_samples[0].parent))


# --- known data sets -------------------------------------------------------------------------------------------------


def test_what_is_not_prepared_says_how_to_get_it(tmp_path):
    for known in named.KNOWN.values():
        message = fails("not prepared", open_source, known.name, data_dir=tmp_path)
        assert f"jaxclip datasets prepare {known.name}" in message
        assert bool(known.manual) == ("--from FILE" in message) == (known.url in message)
    fails("did you mean broden?", prepare, "brodden", None, tmp_path)
    fails("leave --from out", prepare, "cifar10", tmp_path, tmp_path)


def test_the_table_tells_what_is_prepared(objectnet_made, tmp_path, capsys):
    assert {row.prepared for row in table(tmp_path)} == {""}
    prepare("objectnet", write_zip(tmp_path / "o.zip", objectnet_made), tmp_path)
    rows = {row.name: row for row in table(tmp_path)}
    assert list(rows) == list(named.KNOWN)
    n = len(open_source("objectnet", data_dir=tmp_path))
    assert rows["objectnet"].prepared == f"overlapping: test {n}" and not rows["broden"].prepared
    capsys.readouterr()
    print_table(tmp_path)
    out = capsys.readouterr().out
    assert f"overlapping: test {n}" in out and "jaxclip datasets prepare broden --from FILE" in out


def test_prepared_sources_pickle_and_have_fingerprints(objectnet_made, tmp_path):
    """A worker process reads the same; other content, another split or configuration is another fingerprint."""
    other = objectnet_files(list(objectnet()["folders"]), seed=1)
    for name, made in (("a", objectnet_made), ("b", objectnet_made), ("other", other)):
        prepare("objectnet", write_zip(tmp_path / f"{name}.zip", made), tmp_path / name)
    prepare("objectnet/all", tmp_path / "a.zip", tmp_path / "a")
    prepare("broden", write_zip(tmp_path / "broden.zip", broden_files()[0]), tmp_path / "a")
    a, b = (open_source("objectnet", data_dir=tmp_path / name) for name in ("a", "b"))
    assert a.fingerprint() == b.fingerprint(), "the same data, prepared twice, differ"
    copy = pickle.loads(pickle.dumps(a))
    assert copy[5] == a[5] and copy.fingerprint() == a.fingerprint() and copy.classes == a.classes
    different = [
        a,
        open_source("objectnet", data_dir=tmp_path / "other"),
        open_source("objectnet/all", data_dir=tmp_path / "a"),
        open_source("broden", data_dir=tmp_path / "a"),
        open_source("broden", split="train", data_dir=tmp_path / "a"),
    ]
    for one, two in itertools.combinations(different, 2):
        assert one.fingerprint() != two.fingerprint(), f"{one} and {two} have one fingerprint"
    fails("did you mean train?", open_source, "broden", split="trian", data_dir=tmp_path / "a")


def test_reading_needs_no_tensorflow(tmp_path):
    """Even where it is installed it is not imported: that takes seconds, and its threads."""
    prepare("broden", write_zip(tmp_path / "broden.zip", broden_files()[0]), tmp_path)
    program = (
        "import sys; from jaxclip.datasets import open_source, concepts\n"
        f"s = open_source('broden', data_dir={str(tmp_path)!r}); s[0]; concepts(s)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Where Broden is."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare("broden", write_zip(folder / "broden.zip", broden_files()[0]), folder)
    return folder


def damaged(prepared: Path, name: str, content: bytes | None, tmp_path: Path) -> Path:
    """A copy with one file other than it was."""
    shutil.copytree(prepared, tmp_path / "data")
    (file,) = (tmp_path / "data" / "broden" / "224" / "1.0.0").glob(name)
    file.unlink() if content is None else file.write_bytes(content)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", b""),
        ("dataset_info.json", b"{}"),
        ("dataset_info.json", None),
        ("features.json", b""),
        ("features.json", b"{}"),
    ],
)
def test_damaged_metadata(name, content, prepared, tmp_path):
    """The folder and what to do with it; the table, of all the other sets too, goes on."""
    data = damaged(prepared, name, content, tmp_path)
    for call in (open_source, prepare):
        args = {"source": prepared} if call is prepare else {}
        message = fails(f"{data / 'broden' / '224'} is damaged", call, "broden", data_dir=data, **args)
        assert "remove it" in message and "jaxclip datasets prepare broden/224 --from FILE" in message
    assert [row.prepared for row in table(data) if row.prepared] == ["224: damaged"]


@pytest.mark.parametrize("content", [None, b"", bytes(100_000)], ids=["gone", "empty", "zeros"])
def test_damaged_records(content, prepared, tmp_path):
    """ArrayRecord raises RuntimeError, of which no one learns the set, and with which ``skip_bad`` does not help."""
    source = open_source("broden", data_dir=damaged(prepared, "broden-train*", content, tmp_path))
    said = fails("broden: record 0 cannot be read", source.__getitem__, 0)
    assert f"remove {source.builder.data_path}" in said and source[3].image_bytes
    fails("broden: record 0 cannot be read", concepts, source)
    (batch,) = batches(source, Preprocess(8), 4, workers=0, skip_bad=True)
    assert [bad.index for bad in batch.bad] == [0, 1, 2] and batch.mask.tolist() == [False, False, False, True]
    if content is None:
        fails("broden: broden-train.array_record-00000-of-00001 cannot be read", source.fingerprint)


@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["gone", "empty", "{}"])
def test_damaged_categories(content, prepared, tmp_path):
    source = open_source("broden", data_dir=damaged(prepared, "metadata.json", content, tmp_path))
    fails("broden: metadata.json cannot be read", concepts, source)


@pytest.mark.parametrize(
    ("error", "comes_out"),
    [
        (RuntimeError("write() failed: No space left on device"), InputError),
        (InputError("one line"), InputError),
        (OSError(28, "No space left on device"), OSError),
    ],
)
def test_a_preparation_that_fails_is_one_error(error, comes_out, tmp_path, monkeypatch):
    """With a full disk ArrayRecord raises RuntimeError, for our own builders as for tfds's."""
    import tensorflow_datasets as tfds

    def download_and_prepare(self, **_):
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    with pytest.raises(comes_out, match=re.escape(str(error))) as caught:
        prepare("broden", write_zip(tmp_path / "broden.zip", broden_files()[0]), tmp_path / "data")
    assert caught.value is error or str(caught.value).startswith("tfds could not prepare broden/224: ")
