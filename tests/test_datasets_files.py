"""Folders and tar archives as sources."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclip.datasets import open_source
from jaxclip.datasets.files import expand_braces, open_tars
from jaxclip.errors import InputError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def wnids() -> list[str]:
    """ImageNet's classes in order, from tfds's own label file."""
    import tensorflow_datasets as tfds

    return (Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt").read_text().split()


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def tar(path: Path, members: dict[str, bytes], **kwargs) -> Path:
    with tarfile.open(path, "w", **kwargs) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def fails(match: str, *args, **kwargs) -> str:
    with pytest.raises(InputError, match=re.escape(match)) as error:
        open_source(*args, **kwargs)
    return str(error.value)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_the_imagenet_samples_have_the_class_that_their_file_names_begin_with(imagenet_samples, wnids):
    source = open_source(imagenet_samples[0].parent)
    assert len(source) == 1000 and list(source.classes) == wnids
    for path, i in zip(imagenet_samples, range(1000), strict=True):
        example = source[i]
        assert example.id == path.name, "the order is that of the paths"
        assert wnids[example.label] == path.name[:9], f"{path.name} has the label of another class"
    assert source[7].image_bytes == imagenet_samples[7].read_bytes()


def test_wnid_folders_are_labelled_as_imagenet_does(tmp_path, wnids):
    """Not 0, 1, 2 by the folders that happen to be there, as torchvision's ImageFolder would."""
    source = open_source(fill(tmp_path, "n04133789/x.png", "n01443537/b.JPEG", "n01443537/a.jpg"))
    assert [source[i].id for i in range(3)] == ["n01443537/a.jpg", "n01443537/b.JPEG", "n04133789/x.png"]
    assert [source[i].label for i in range(3)] == [wnids.index(w) for w in ("n01443537", "n01443537", "n04133789")]
    assert len(source.classes) == 1000


def test_numbered_folders_are_labelled_by_their_number(tmp_path, wnids):
    """ImageNet-V2 has folders 0..999: in the order of strings, "10" would be class 2."""
    few = open_source(fill(tmp_path / "few", "10/a.jpg", "2/a.jpg"))
    assert few.labels.tolist() == [10, 2] and few.classes[10] == "10"
    dates = open_source(fill(tmp_path / "dates", "20240131/a.jpg", "20240201/a.jpg"))
    assert dates.classes == ("20240131", "20240201"), "a date is not a label"
    v2 = open_source(fill(tmp_path / "v2", *(f"{i}/a.jpg" for i in range(1000))))
    assert {example.id.split("/")[0]: example.label for example in map(v2.__getitem__, range(1000))} == {
        str(i): i for i in range(1000)
    }
    assert list(v2.classes) == wnids, "1,000 numbered folders are ImageNet's classes"


def test_other_folders_are_numbered_in_sorted_order_or_as_the_user_says(tmp_path):
    fill(tmp_path, "zebra/1.jpg", "ant/1.jpg", "bee/1.jpg", "bee/notes.md", "bee/.hidden.jpg", ".git/x.jpg")
    source = open_source(tmp_path)
    assert source.classes == ("ant", "bee", "zebra") and source.labels.tolist() == [0, 1, 2]
    given = open_source(tmp_path, classes=["zebra", "cow", "bee", "ant"])
    assert given.labels.tolist() == [3, 2, 0], "labels index the given classes, in their order"
    assert given.classes == ("zebra", "cow", "bee", "ant")
    assert "did you mean zebras?" in fails("'zebra' is none of", tmp_path, classes=["zebras", "ant", "bee"])


def test_folder_names_that_are_no_class(tmp_path):
    assert "did you mean n01443537?" in fails("'n01443538'", fill(tmp_path / "a", "n01443538/a.jpg"))
    assert "'dog' is none" in fails("WNIDs", fill(tmp_path / "b", "n01443537/a.jpg", "dog/a.jpg"))
    fails("stray.jpg is in no class folder", fill(tmp_path / "c", "dog/a.jpg", "stray.jpg"))


def test_splits(tmp_path):
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg")
    assert "train, val" in fails("name one", tmp_path)
    val = open_source(tmp_path, split="val")
    assert [val[i][::2] for i in range(len(val))] == [("val/a/2.jpg", 0)]
    assert len(open_source(tmp_path, split="train")) == 2
    assert "did you mean train?" in fails("no split 'trian'", tmp_path, split="trian")
    alone = fill(tmp_path / "deep", "imagenet/test/a/1.jpg", "imagenet/test/b/1.jpg")
    assert open_source(alone).classes == ("a", "b"), "folders that all pictures share are not classes"
    assert len(open_source(alone, split="test")) == 2
    fails("no split 'val'", fill(tmp_path / "none", "a/1.jpg", "b/1.jpg"), split="val")


def test_splits_by_other_names(tmp_path):
    """As Kaggle and Roboflow write them: not classes called train, valid and test."""
    fill(tmp_path / "a", "Train/tulip/1.jpg", "Valid/tulip/2.jpg", "Test/tulip/3.jpg")
    assert "Test, Train, Valid" in fails("name one", tmp_path / "a")
    valid = open_source(tmp_path / "a", split="valid")
    assert valid.ids == ("Valid/tulip/2.jpg",) and valid.classes == ("tulip",)
    strange = fill(tmp_path / "b", "train/a/1.jpg", "test/a/1.jpg", "extra/a/1.jpg")
    fails("the folder extra is beside splits", strange)
    classes = open_source(fill(tmp_path / "c", "test/1.jpg", "exam/1.jpg"))
    assert classes.classes == ("exam", "test"), "a class may be called test"


def test_a_wnid_is_a_class_whatever_is_below_it(tmp_path, wnids):
    source = open_source(fill(tmp_path, "n01440764/a/1.JPEG", "n01440764/b/2.JPEG"))
    assert list(source.classes) == wnids and source.labels.tolist() == [0, 0]


def test_pictures_without_a_class_have_no_label(tmp_path):
    source = open_source(fill(tmp_path, "holiday.jpg", "cat.png"))
    assert source.labels.tolist() == [-1, -1] and source.classes == ()


def test_imagenets_validation_pictures_have_the_published_classes(tmp_path, wnids):
    """Facts: the first three of ILSVRC2012's validation set are a sea snake, an alp and a Shetland sheepdog."""
    source = open_source(fill(tmp_path, *(f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3))))
    assert source.labels.tolist() == [65, 970, 230] and list(source.classes) == wnids


def test_what_is_no_data_set(tmp_path):
    fails("has no pictures", tmp_path)
    fails("did you mean imagenet_sketch?", "imagenet-sketch")
    fails("there are imagenet2012", "qqqq")
    (tmp_path / "x.jpg").write_bytes(b"")
    fails("neither a folder nor a tar", tmp_path / "x.jpg")
    fails("does not exist", tmp_path / "x.tar")


def test_a_folder_called_as_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, "cifar10/train/a.jpg"))
    assert open_source("./cifar10").name == "cifar10" and len(open_source("cifar10/train")) == 1
    with pytest.raises(InputError, match="not prepared"):
        open_source("cifar10", data_dir=tmp_path / "nothing")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Left out, its class would be none, and the labels of those after it others. (Root reads whatever it likes.)"""
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg")
    scandir = os.scandir

    def refuses(path):
        if os.fspath(path).endswith("ant"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    fails(f"{tmp_path / 'ant'} cannot be read (Permission denied)", tmp_path)


def test_links(tmp_path, monkeypatch):
    """Folders may be linked to; round in a circle each picture would come some forty times."""
    fill(tmp_path, "elsewhere/1.jpg", "x/cat/1.jpg")
    for name, to in (("x/cat/up", ".."), ("x/cat/above", tmp_path), ("x/dog", "../elsewhere"), ("elsewhere/x", "../x")):
        (tmp_path / name).symlink_to(to)
    assert open_source(tmp_path / "x").ids == ("cat/1.jpg", "dog/1.jpg")
    monkeypatch.chdir(tmp_path / "x")
    assert open_source(".").ids == ("cat/1.jpg", "dog/1.jpg")
    (tmp_path / "x/cat/2.jpg").symlink_to("gone.jpg")
    fails(f"{tmp_path / 'x/cat/2.jpg'} is a link that leads nowhere", tmp_path / "x")


@pytest.mark.parametrize("target", ["gone", "cow"])
def test_a_class_folder_that_leads_nowhere_is_named(tmp_path, target):
    """Left out, as where a disk is not mounted, it would change classes and accuracy without a word."""
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg")
    (tmp_path / "cow").symlink_to(tmp_path / target)
    fails("cow is a link that leads nowhere", tmp_path)


def test_a_link_has_its_own_name(tmp_path, monkeypatch):
    """What a folder is called says which classes may be chosen: not what it leads to."""
    fill(tmp_path / "store_of_data", "ant/1.jpg", "bee/1.jpg")
    (tmp_path / "imagenet-a").symlink_to("store_of_data")
    assert open_source(tmp_path / "imagenet-a").name == "imagenet-a"
    monkeypatch.chdir(tmp_path / "store_of_data" / "ant")
    assert open_source(".").name == "ant"


def test_what_is_called_a_picture_and_is_no_file(tmp_path):
    fill(tmp_path, "ant/1.jpg")
    os.mkfifo(tmp_path / "ant" / "2.jpg")
    fails("2.jpg is called a picture and is no file", tmp_path)  # reading it would wait for ever


@pytest.mark.parametrize("name", ["cat/\udcff.jpg", "\udcff/1.jpg"])
def test_names_that_are_not_utf8_are_refused(name, tmp_path):
    """A store or a table of results could not have them: hours later, when these are written."""
    fill(tmp_path / "x", "dog/1.jpg", name)
    for path in (tmp_path / "x", tar(tmp_path / "a.tar", {name: b"x"})):
        fails(f"{path}: the name {name!a} is not in UTF-8", path)


# --- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_an_archive_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    """A compressed one would be looked for in the cache first."""
    with pytest.raises(InputError, match=f"{name} is missing"):
        open_tars([tmp_path / name])


@pytest.mark.parametrize(("split", "n"), [("train", 50_000), ("test", 10_000)])
def test_cifar10_from_its_tar_gz(split, n, cache):
    path = SHARED / "cifar10" / f"{split}.tar.gz"
    if not path.exists():
        pytest.skip(f"real data are missing: {path}")
    source = open_source(path)
    assert len(source) == n
    assert source.classes == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    )  # fmt: skip
    assert np.bincount(source.labels).tolist() == [n // 10] * 10
    wanted = set(np.random.default_rng(0).choice(n, 50, replace=False).tolist())
    number = {source.ids[i]: i for i in wanted}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name in number:
                example = source[number.pop(member.name)]
                assert example.image_bytes == archive.extractfile(member).read(), f"{example.id} has other bytes"
                assert source.classes[example.label] == member.name.split("/")[1]
    assert not number, "some ids are no member of the archive"


def test_a_source_goes_through_grain(tmp_path):
    """Grain pickles it into worker processes; here threads read it at once, and a pickled copy is the same."""
    members = {f"{c}/{i}.jpg": f"{c}{i}".encode() * (i + 1) for c in ("cat", "dog") for i in range(100)}
    source = pickle.loads(pickle.dumps(open_source(tar(tmp_path / "a.tar", members))))
    read = list(grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=8)))
    assert {example.id: example.image_bytes for example in read} == members
    assert [example.id for example in read] == list(members), "the order is the archive's"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    """Long names take extra headers in each of tar's formats, which shift where the contents are."""
    members = {f"./{'k' * 80}/ü{'x' * 60}{i}.png": bytes([i]) * 700 for i in range(3)}
    source = open_source(tar(tmp_path / "a.tar", members, format=form))
    assert {"./" + source[i].id: source[i].image_bytes for i in range(3)} == members


def test_archives_in_an_archive_are_read_in_place(tmp_path, wnids):
    """ILSVRC2012_img_train.tar has one archive for each class."""
    classes = ("n01440764", "n04133789")
    contents = {w: {f"{w}_{i}.JPEG": f"{w}{i}".encode() * 99 for i in range(4)} for w in classes}
    inner = {f"{w}.tar": tar(tmp_path / f"{w}.tar", contents[w]).read_bytes() for w in classes}
    source = open_source(tar(tmp_path / "train.tar", inner))
    assert {e.id: (e.image_bytes, e.label) for e in map(source.__getitem__, range(len(source)))} == {
        f"{w}/{name}": (content, wnids.index(w)) for w in classes for name, content in contents[w].items()
    }
    cut = dict(inner, **{"n04133789.tar": inner["n04133789.tar"][:2000]})
    assert "n04133789.tar in it" in fails("not a whole tar", tar(tmp_path / "cut.tar", cut))


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024, 2048, 2500, 3072, 3500, 4096])
def test_a_tar_that_is_cut_short_is_an_error_wherever_it_is_cut(tmp_path, cut):
    """Python's tarfile takes some of these for a shorter archive: a data set would lose pictures in silence."""
    whole = tar(tmp_path / "a.tar", {f"cat/{i}.jpg": b"x" * 600 for i in range(3)})
    whole.write_bytes(whole.read_bytes()[: 3 * (512 + 1024) + 512])  # the archive proper and half its end mark
    assert len(open_source(whole)) == 3
    whole.write_bytes(whole.read_bytes()[:cut])
    assert "a.tar" in fails("not a whole tar archive", whole)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_a_damaged_header_is_an_error(tmp_path, member):
    path = tar(tmp_path / "a.tar", {f"cat/{i}.jpg": b"x" * 600 for i in range(3)})
    damaged = bytearray(path.read_bytes())
    damaged[member * (512 + 1024) + 150] ^= 0xFF  # in the checksum
    path.write_bytes(damaged)
    fails("not a whole tar archive", path)


def test_what_is_no_archive(tmp_path, cache):
    page = tmp_path / "page.tar"
    page.write_text("<html>404</html>" * 100)
    fails("not a whole tar", page)
    fails("has no pictures", tar(tmp_path / "empty.tar", {"README": b"x"}))
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(page.read_bytes() * 1000)[:-20])
    fails("not a whole gzip", packed)
    page.rename(tmp_path / "b.tar.gz")
    fails("not a whole gzip", tmp_path / "b.tar.gz")
    assert not [p for p in cache.rglob("*") if p.is_file()], "an expansion that failed left a file behind"


def test_a_tar_gz_is_expanded_once_and_again_when_it_has_changed(tmp_path, cache):
    path = tmp_path / "a.tgz"
    for content in (b"one", b"twotwo"):
        path.write_bytes(gzip.compress(tar(tmp_path / "a.tar", {"cat/1.jpg": content}).read_bytes()))
        assert open_source(path)[0].image_bytes == content
        times = {expanded: expanded.stat().st_mtime_ns for expanded in cache.rglob("*.tar")}
        assert open_source(path)[0].image_bytes == content
        assert {expanded: expanded.stat().st_mtime_ns for expanded in cache.rglob("*.tar")} == times


def test_webdataset_labels(tmp_path, wnids):
    """Labels in .cls (a number or a name), .json and .txt; a caption in .txt is no label."""
    numbers = tar(tmp_path / "n.tar", {"000.cls": b"7\n", "000.jpg": b"a", "b/001.jpg": b"b", "b/001.cls": b"0"})
    source = open_source(numbers)
    assert [source[i] for i in range(2)] == [("000.jpg", b"a", 7), ("b/001.jpg", b"b", 0)]
    assert open_source(numbers, classes=list("abcdefgh")).labels.tolist() == [7, 0]
    fails("'7' is none of the 3 given classes", numbers, classes=["x", "y", "z"])
    names = {"0.jpg": b"", "0.json": b'{"label": "dog"}', "1.jpg": b"", "1.cls": b"cat", "2.jpg": b"", "2.json": b"{}"}
    named = open_source(tar(tmp_path / "j.tar", names))
    assert named.classes == ("cat", "dog") and named.labels.tolist() == [1, 0, -1]
    text = tar(tmp_path / "t.tar", {"0.png": b"", "0.txt": b"n04133789", "1.png": b"", "1.txt": b"a photo of a cat"})
    assert open_source(text).labels.tolist() == [wnids.index("n04133789"), -1]
    fails("0.json is not a JSON object", tar(tmp_path / "bad.tar", {"0.jpg": b"", "0.json": b"{"}))
    fails("no splits", numbers, split="train")


def test_webdataset_shards_by_braces_and_stars(tmp_path):
    for shard in range(11):
        tar(tmp_path / f"s-{shard:03}.tar", {"0.jpg": b"%d" % shard, "0.json": json.dumps({"cls": shard}).encode()})
    source = open_source(str(tmp_path / "s-{000..010}.tar"))
    assert source.labels.tolist() == list(range(11)) and source[10].image_bytes == b"10"
    assert source.ids[3] == "s-003.tar/0.jpg", "shards repeat their keys, so the shard is a part of the id"
    assert open_source(str(tmp_path / "s-*.tar")).fingerprint() == source.fingerprint()
    fails("s-011.tar does not exist", str(tmp_path / "s-{009..011}.tar"))


def test_two_members_of_one_name_are_an_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("cat/1.jpg"))
    fails("two pictures are called cat/1.jpg", tmp_path / "a.tar")


@given(
    st.sampled_from(["{0..3}", "{08..11}", "{000..002}", "{3..1}", "{010..008}", "{a,b}", "{train,}", ""]),
    st.sampled_from(["{1..2}", "{x,yy,z}", "plain"]),
)
def test_braces_expand_as_in_bash(first, second):
    pattern = f"d/{first}-{second}.tar"
    bash = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert expand_braces(pattern) == bash.stdout.split()


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_pictures_not_of_the_place(tmp_path):
    names = ("a/1.jpg", "a/2.jpg", "b/1.jpg")
    first = open_source(fill(tmp_path / "x", *names)).fingerprint()
    assert open_source(fill(tmp_path / "y", *names)).fingerprint() == first
    changes = {
        "one more": fill(tmp_path / "more", *names, "b/2.jpg"),
        "other name": fill(tmp_path / "name", "a/1.jpg", "a/3.jpg", "b/1.jpg"),
        "other label": fill(tmp_path / "label", *names),
        "other size": fill(tmp_path / "size", *names),
        "other pixels": fill(tmp_path / "pixels", *names),
    }
    (changes["other pixels"] / "a/1.jpg").write_bytes((tmp_path / "x/a/1.jpg").read_bytes()[::-1])
    (changes["other size"] / "a/1.jpg").write_bytes(b"longer than before")
    for what, folder in changes.items():
        classes = ["b", "a"] if what == "other label" else None
        assert open_source(folder, classes=classes).fingerprint() != first, f"{what}: the fingerprint is the same"


@pytest.mark.parametrize("size", [1, 1500, 5000])
def test_the_fingerprint_of_an_archive_is_of_its_pictures(tmp_path, size):
    """Of one size and name: generated sets such as corruptions differ in nothing else."""
    rng, found = np.random.default_rng(0), []
    for k in range(2):
        with tarfile.open(tmp_path / f"{k}.tar", "w") as archive:
            for name in ("a/1.bmp", "b/2.bmp"):
                info = tarfile.TarInfo(name)
                info.size = size
                content = rng.bytes(size) if name == "b/2.bmp" else bytes(size)
                archive.addfile(info, io.BytesIO(content))
        found.append(open_source(tmp_path / f"{k}.tar").fingerprint())
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "0.tar", tmp_path / "again" / "0.tar")
    assert found[0] != found[1] and open_source(tmp_path / "again" / "0.tar").fingerprint() == found[0]


def test_hard_links_in_an_archive_are_not_left_out(tmp_path):
    fill(tmp_path, "x/a/1.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x/a/1.jpg", "a/1.jpg")
        link = tarfile.TarInfo("a/2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a/1.jpg"
        archive.addfile(link)
    with pytest.raises(InputError, match=r"a/2\.jpg is a hard link"):
        open_source(tmp_path / "x.tar")


@pytest.mark.parametrize(("name", "kind"), [("a/2.jpg", "a link"), ("b", "a link"), (".x/2.jpg", None)])
def test_links_in_an_archive_are_not_left_out(tmp_path, name, kind):
    """A folder of the same would have the picture."""
    path = tar(tmp_path / "x.tar", {"a/1.jpg": b"1"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, "1.jpg"
        archive.addfile(link)
    if kind is None:
        assert len(open_tars([path])) == 1
    else:
        fails(f"{name} is {kind}: pack the pictures anew with --dereference", path)


def test_sparse_files_in_an_archive_are_refused(tmp_path):
    """Their bytes do not lie in one piece."""
    picture = tmp_path / "a" / "1.ppm"
    picture.parent.mkdir()
    picture.write_bytes(b"P6 100 100 255\n" + bytes(30000))
    with picture.open("r+b") as file:
        file.truncate(100)
        file.truncate(30015)
    made = subprocess.run(["tar", "-S", "-cf", tmp_path / "x.tar", "-C", tmp_path, "a"], capture_output=True)
    with tarfile.open(tmp_path / "x.tar") as archive:
        if made.returncode or not any(member.issparse() for member in archive):
            pytest.skip("no sparse file is made here")
    fails("a/1.ppm is stored as a sparse file", tmp_path / "x.tar")


def test_hidden_folders_of_an_archive_are_no_classes(tmp_path):
    source = open_tars([tar(tmp_path / "x.tar", {"./a/1.jpg": b"1", "./.thumbs/1.jpg": b"1", "b/1.jpg": b"1"})])
    assert source.classes == ("a", "b")


def test_packed_archives_in_an_archive_are_refused(tmp_path):
    fails("b.tar.gz is an archive of a kind", tar(tmp_path / "x.tar", {"a/1.jpg": b"1", "b.tar.gz": b"1"}))


def test_a_text_beside_a_picture_does_not_take_the_folders_labels(tmp_path):
    """A caption, or boxes: only what names a class makes a WebDataset of class folders."""
    members = {"cat/1.jpg": b"1", "dog/2.jpg": b"1", "dog/2.txt": b"a good dog"}
    source = open_tars([tar(tmp_path / "x.tar", members)])
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 1]


def test_two_folders_of_one_number(tmp_path):
    with pytest.raises(InputError, match="'01' is the number of another"):
        open_source(fill(tmp_path, "1/a.jpg", "01/b.jpg", "2/c.jpg"))


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path):
    source = open_source(fill(tmp_path, "a/1.jpg"))
    (tmp_path / "a/1.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="cut short"):
        source[0]
