"""The store: what is written is what the encoder gave, once, whole, and found again; whatever happens meanwhile."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import changed, tiny_classifier, tiny_clip

import jaxclip
from jaxclip import checkpoint, cli, config, embedding, store
from jaxclip.datasets import Example, open_source
from jaxclip.datasets.files import open_folder
from jaxclip.embedding import embed
from jaxclip.errors import InputError
from jaxclip.evaluation import evaluate, representations
from jaxclip.files import new_directory, new_file
from jaxclip.model import load_model
from jaxclip.preprocess import preprocess
from jaxclip.store import MANIFEST, Representations, find, identity, key_of, model_digest, open_store

ROWS = 4
SMALL: dict[str, Any] = {"batch_size": 3, "workers": 0}  # a shard's second batch has one picture of three


@pytest.fixture(autouse=True, scope="module")
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_ROWS", ROWS)
        yield


@dataclasses.dataclass
class Watched:
    """A source that counts what is read of it, may break, and may wait."""

    inner: Any
    bad: tuple[int, ...] = ()
    gate: threading.Event | None = None
    read: list[int] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.inner.classes

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Example:
        if self.gate is not None:
            self.gate.wait()
        self.read.append(i)
        example = self.inner[i]
        return example._replace(image_bytes=example.image_bytes[:100]) if i in self.bad else example

    def fingerprint(self) -> str:
        return self.inner.fingerprint() + "".join(map(str, self.bad))


@pytest.fixture
def source(folder: Path) -> Watched:
    return Watched(open_source(str(folder)))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Representations:
    """A store that nothing happened to."""
    return embed(tiny_clip(), open_source(str(folder)), tmp_path_factory.mktemp("whole"), **SMALL)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_the_store_is_what_the_encoder_gives(whole: Representations, folder: Path) -> None:
    """Every picture's row is its own, whatever shard and batch it came in; plain Parquet readers find the same."""
    h = np.concatenate([np.asarray(h)[b.mask] for h, b in representations(tiny_clip(), open_source(str(folder)))])
    assert whole.shape == h.shape == (21, 32)
    np.testing.assert_allclose(whole[:], h, rtol=2e-5, atol=2e-5)
    rows = np.random.default_rng(0).permutation(21)[:9]
    np.testing.assert_array_equal(whole[rows], whole[:][rows])
    assert [Path(name).name for name in whole.ids] == sorted(path.name for path in folder.iterdir())
    assert whole.labels.tolist() == list(range(0, 1000, 48))
    assert whole.indices.tolist() == list(range(21))
    assert [shard["rows"] for shard in whole.manifest["shards"]] == [4, 4, 4, 4, 4, 1]
    table = pq.read_table([str(path) for path in sorted(whole.folder.glob("*.parquet"))])
    np.testing.assert_array_equal(np.stack(table["representation"].to_numpy()), whole[:])
    assert table["id"].to_pylist() == list(whole.ids)
    assert table["label"].to_pylist() == whole.labels.tolist()


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 30), start=st.integers(-25, 25), stop=st.integers(-25, 25), step=st.sampled_from([1, 3, -2]))
def test_any_reading_is_the_same_matrix(whole: Representations, size: int, start: int, stop: int, step: int) -> None:
    """Batches that cross shards, slices and steps are those of the matrix in memory."""
    matrix = np.asarray(whole)
    found = list(whole.batches(size))
    assert [len(h) for _, h in found[:-1]] == [size] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate([h for _, h in found]), matrix)
    for rows, h in found:
        np.testing.assert_array_equal(h, matrix[rows])
    np.testing.assert_array_equal(whole[start:stop:step], matrix[start:stop:step])
    np.testing.assert_array_equal(whole[cast(Any, (slice(start, stop, step), ...))], matrix[start:stop:step, ...])


def test_the_same_request_is_found_and_reads_no_picture(whole: Representations, source: Watched) -> None:
    before = files(whole.folder)
    again = embed(tiny_clip(), source, whole.folder.parent, **SMALL)
    assert again.folder == whole.folder
    assert not source.read, "pictures were read though their representations are stored"
    assert files(whole.folder) == before
    # The same weights under another name, converted from elsewhere, are the same model.
    renamed = dataclasses.replace(tiny_clip().config, name="other", source={"file": "elsewhere"})
    assert key_of(identity(changed(tiny_clip(), renamed), source)) == whole.folder.name


def test_scikit_learn_splits_a_store_as_an_array(whole: Representations) -> None:
    """It writes ``x[rows, ...]``, so that no probe could be cross-validated on a store."""
    from sklearn.model_selection import train_test_split

    for found, wanted in zip(
        train_test_split(whole, random_state=0), train_test_split(whole[:], random_state=0), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_a_folder_is_embedded_by_its_name(folder: Path, whole: Representations) -> None:
    """As ``evaluate`` takes it: a string had no fingerprint, and the error was Python's."""
    assert embed(tiny_clip(), folder, whole.folder.parent, **SMALL).folder == whole.folder
    assert embed(tiny_clip(), str(folder), whole.folder.parent, **SMALL).folder == whole.folder


def test_a_batch_has_a_picture(tmp_path: Path, source: Watched, whole: Representations) -> None:
    for size in (0, -1):
        with pytest.raises(InputError, match=f"batch size is {size}"):
            embed(tiny_clip(), source, tmp_path, batch_size=size)
        with pytest.raises(InputError, match=f"batch size is {size}"):
            next(whole.batches(size))  # which gave empty ones without end
    assert not list(tmp_path.iterdir()), "what is refused leaves a folder or a lock"


def test_a_strangers_file_in_a_store_is_left_alone(tmp_path: Path, source: Watched, whole: Representations) -> None:
    """A desktop's .DS_Store would have the finished manifest taken away under its readers."""
    shutil.copytree(whole.folder, tmp_path / whole.folder.name)
    (tmp_path / whole.folder.name / ".DS_Store").write_bytes(b"x")
    before = files(tmp_path / whole.folder.name)
    stamp = (tmp_path / whole.folder.name / MANIFEST).stat().st_mtime_ns
    embed(tiny_clip(), source, tmp_path, **SMALL)
    assert files(tmp_path / whole.folder.name) == before and not source.read
    assert (tmp_path / whole.folder.name / MANIFEST).stat().st_mtime_ns == stamp


def test_whatever_changes_the_numbers_changes_the_key(
    source: Watched, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a store would answer for another model, for other pictures, or for what another version computed."""
    model, cfg = tiny_clip(), tiny_clip().config
    assert isinstance(cfg.vision, config.ViT)
    vision = dataclasses.replace(cfg.vision, activation="quick_gelu")
    name = next(name for name in checkpoint.named(model.params) if name.startswith("vision"))
    bf16 = changed(model)
    bf16.dtype = np.dtype("bfloat16")
    fewer = open_folder(folder)
    rows = {"labels": fewer.labels[:-1], "starts": fewer.starts[:-1], "sizes": fewer.sizes[:-1]}
    fewer = dataclasses.replace(fewer, ids=fewer.ids[:-1], **rows)
    requests = [
        identity(model, source),
        identity(changed(model, name=name), source),
        identity(changed(model, dataclasses.replace(cfg, vision=vision)), source),
        identity(changed(model, dataclasses.replace(cfg, preprocess=config.Preprocess(32, resize="squash"))), source),
        identity(changed(model, dataclasses.replace(cfg, preprocess=config.Preprocess(32, mean=(0.5,) * 3))), source),
        identity(bf16, source),
        identity(model, source, "float16"),
        identity(model, fewer),
        identity(tiny_classifier(2), source),
    ]
    for module, name, value in ((store, "SHARD_ROWS", ROWS + 1), (jaxclip, "__version__", "0")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            requests.append(identity(model, source))
    assert len({key_of(request) for request in requests}) == len(requests)


def test_a_saved_checkpoint_has_the_digest_of_the_model(tmp_path: Path) -> None:
    """Orbax's files differ each time they are written: the digest must not."""
    model = tiny_clip()
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, model.config, checkpoint.named(model.params))
        assert model_digest(load_model(tmp_path / name)) == model_digest(model)


def embed_and_die(ckpt: Path, pictures: Path, into: Path, key: str, shards: int, delay: float | None) -> None:
    """Embeds, and kills itself ``delay`` seconds after so many more shards are there; or lives, where that is None."""
    store.SHARD_ROWS = ROWS
    model, source, folder = load_model(ckpt), open_source(str(pictures)), into / key
    model.encode_image(np.zeros((3, 32, 32, 3), np.uint8))  # compiled: what follows is reading and writing
    before = len(list(folder.glob("*.parquet")))

    def watch() -> None:
        while len(list(folder.glob("*.parquet"))) < before + shards:
            time.sleep(1e-4)
        if delay is not None:
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    embed(model, source, into, **SMALL)


def run_killed(tmp_path: Path, pictures: Path, whole: Representations, kills: int) -> None:
    """Kills a run ``kills`` times at random, lets it end, and compares every byte with the run that was not killed."""
    ckpt, store, key = tmp_path / "ckpt", tmp_path / "store", whole.folder.name
    checkpoint.save(ckpt, tiny_clip().config, checkpoint.named(tiny_clip().params))
    context = multiprocessing.get_context("forkserver")  # what is imported, but not started, is shared: quick to begin
    context.set_forkserver_preload(["jaxclip.embedding", "pytest"])

    def run(shards: int, delay: float | None) -> bool:
        """Whether it was killed."""
        child = context.Process(target=embed_and_die, args=(ckpt, pictures, store, key, shards, delay))
        child.start()
        child.join(timeout=200)
        assert child.exitcode in ((0,) if delay is None else (0, -signal.SIGKILL))
        return child.exitcode != 0

    rng, killed, left = random.Random(0), 0, set()
    while killed < kills:
        if run(rng.randrange(4), rng.uniform(0, 0.03)):
            killed += 1
            left.add(len(files(store / key)))
            for path in (store / key).glob("*.parquet"):
                assert path.read_bytes() == (whole.folder / path.name).read_bytes(), f"{path.name} is not whole"
        else:  # it ended first: begin again
            shutil.rmtree(store)
    run(0, None)
    assert files(store / key) == files(whole.folder)
    assert kills < 10 or len(left) > 3, "the kills all came at the same point, and tell little"


def test_a_killed_run_goes_on(tmp_path: Path, folder: Path, whole: Representations) -> None:
    """Three kills; the slow test has twenty."""
    run_killed(tmp_path, folder, whole, 3)


@pytest.mark.slow
def test_a_run_killed_at_twenty_points_goes_on(tmp_path: Path, folder: Path, whole: Representations) -> None:
    run_killed(tmp_path, folder, whole, 20)


@pytest.mark.filterwarnings("ignore:.*00002.parquet is corrupt")
@pytest.mark.parametrize("corrupt", [False, True])
@pytest.mark.parametrize("point", range(0, 40, 3))
def test_an_end_at_any_write_leaves_what_the_next_run_needs(
    point: int, corrupt: bool, tmp_path: Path, source: Watched, whole: Representations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill, but at each file system call that changes the store: before a rename, a removal, a sync."""

    class Killed(BaseException):
        pass

    if corrupt:  # then it is a repair that ends
        shutil.copytree(whole.folder, tmp_path / whole.folder.name)
        (tmp_path / whole.folder.name / "00002.parquet").write_bytes(b"rubbish")
    calls = 0

    def mortal(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == point + 1:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", mortal(Path.replace))
        patch.setattr(Path, "unlink", mortal(Path.unlink))
        patch.setattr(os, "fsync", mortal(os.fsync))
        try:
            embed(tiny_clip(), source, tmp_path, **SMALL)
        except Killed:
            pass
        else:
            assert calls <= point
    stored = embed(tiny_clip(), source, tmp_path, **SMALL)
    assert files(stored.folder) == files(whole.folder)
    assert len(source.read) < 2 * 21, "all was computed again"


def test_of_two_writers_one_wins_and_the_other_says_so(tmp_path: Path, source: Watched, whole: Representations) -> None:
    gate = threading.Event()
    first = threading.Thread(
        target=embed, args=(tiny_clip(), dataclasses.replace(source, gate=gate), tmp_path), kwargs=SMALL
    )
    first.start()
    key = whole.folder.name
    until = time.monotonic() + 60
    while not (tmp_path / key).exists() and time.monotonic() < until:
        time.sleep(0.01)
    try:
        with pytest.raises(InputError, match=f"another process is writing .*{key}"):
            embed(tiny_clip(), source, tmp_path, **SMALL)
        with pytest.raises(InputError, match="not finished"):
            open_store(tmp_path)
        other = embed(tiny_classifier(2), source, tmp_path, **SMALL)
        assert len(other) == 21, "another request must not wait"
    finally:
        gate.set()
        first.join()
    assert files(tmp_path / key) == files(whole.folder)


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_corrupt_shard_is_named_and_alone_computed_again(
    harm: str, finished: bool, tmp_path: Path, source: Watched, whole: Representations
) -> None:
    store = tmp_path / whole.folder.name
    shutil.copytree(whole.folder, store)
    if not finished:
        (store / MANIFEST).unlink()
        for k, shard in enumerate(whole.manifest["shards"][:-1]):
            (store / f"{k:05}.json").write_text(json.dumps(shard))
        (store / "00005.parquet").unlink()
    shard = store / "00002.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.unlink()
    if harm != "remove":
        shard.write_bytes(data if harm == "flip" else data[:-7])
    if finished:
        stored = open_store(tmp_path)
        np.testing.assert_array_equal(stored[:8], whole[:8])
        with pytest.raises(InputError, match=r"00002\.parquet.*jaxclip embed"):
            stored[:]
    with pytest.warns(UserWarning, match=r"00002\.parquet is corrupt"):
        stored = embed(tiny_clip(), source, tmp_path, **SMALL)
    assert sorted(source.read) == [8, 9, 10, 11] + ([] if finished else [20])
    assert files(store) == files(whole.folder)


def test_a_full_disk_leaves_a_store_that_goes_on(tmp_path: Path, source: Watched, whole: Representations) -> None:
    """On a real file system of 40 KB, which then grows."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this test mounts a small file system, which needs root: {mounted.stderr}")
    try:
        with pytest.raises(OSError, match="No space left") as full:
            embed(tiny_clip(), source, disk, **SMALL)
        assert full.value.errno == errno.ENOSPC
        left = disk / whole.folder.name
        shards = sorted(left.glob("*.parquet"))
        assert 1 <= len(shards) < 6, "the disk was full too early or too late for this test to tell anything"
        for path in shards:
            assert path.read_bytes() == (whole.folder / path.name).read_bytes()
        assert not list(left.glob(".*")), "half a file is left"
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        source.read.clear()
        stored = embed(tiny_clip(), source, disk, **SMALL)
        assert files(stored.folder) == files(whole.folder)
        assert len(source.read) <= 21 - 4 * (len(shards) - 1), "whole shards were computed again"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_bad_pictures_are_an_error_or_a_list(tmp_path: Path, source: Watched, whole: Representations) -> None:
    """As `evaluate` does; a later request that does not allow for them is not served either."""
    broken = dataclasses.replace(source, bad=(5, 20))
    with pytest.raises(InputError, match="cannot be read"):
        embed(tiny_clip(), broken, tmp_path, **SMALL)
    stored = embed(tiny_clip(), broken, tmp_path, skip_bad=True, **SMALL)
    good = np.delete(np.arange(21), [5, 20])
    assert stored.shape == (19, 32)
    assert stored.indices.tolist() == good.tolist()
    np.testing.assert_allclose(stored[:], whole[:][good], rtol=2e-5, atol=2e-5)
    assert [(bad.index, bad.id) for bad in stored.bad_images] == [(i, source.inner.ids[i]) for i in (5, 20)]
    assert all(bad.reason for bad in stored.bad_images)
    np.testing.assert_array_equal(stored[[18, 3, 5]], stored[:][[18, 3, 5]])
    with pytest.raises(InputError, match="lacks 2 pictures"):
        embed(tiny_clip(), broken, tmp_path, **SMALL)


def test_float16_states_its_error(tmp_path: Path, source: Watched, whole: Representations) -> None:
    stored = embed(tiny_clip(), source, tmp_path, store_dtype="float16", **SMALL)
    assert stored[:].dtype == np.float16
    np.testing.assert_array_equal(stored[:], whole[:].astype(np.float16))
    exact = np.float64(whole[:])
    error = np.linalg.norm(stored[:] - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert stored.manifest["rounding"] == pytest.approx(error.max())
    assert 0 < error.max() < 2**-10, "more than float16's half unit in the last place"
    assert whole.manifest["rounding"] == 0
    found = find(tmp_path, tiny_clip(), source)
    assert found is not None and found.dtype == np.float16
    shutil.copytree(whole.folder, tmp_path / whole.folder.name)
    found = find(tmp_path, tiny_clip(), source)
    assert found is not None and found.dtype == np.float32, "rounded, though the exact ones are there"


def test_what_is_written_can_be_read_by_others(tmp_path: Path) -> None:
    """As the user's umask allows: a temporary file is the owner's alone, and so would a group's store be. What a new
    folder replaces is not left beside it.
    """
    before = os.umask(0o027)
    try:
        with new_file(tmp_path / "file") as file:
            file.write("x")
        for _ in range(2):
            with new_directory(tmp_path / "folder", overwrite=True) as made:
                (made / "x").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"file": 0o640, "folder": 0o750}


def test_what_a_type_cannot_hold_is_refused() -> None:
    """An infinity in a store would turn up as NaN in an analysis, far from its cause."""
    h = np.array([[1, 2], [3, 1e5]], np.float32)
    embedding._rounded(h, "float32", ["a", "b"])
    with pytest.raises(InputError, match=r"b has a feature of 1e\+05"):
        embedding._rounded(h, "float16", ["a", "b"])
    with pytest.raises(InputError, match="a has a feature of nan"):
        embedding._rounded(h * np.nan, "float32", ["a", "b"])


def test_evaluate_reads_the_store(tmp_path: Path, source: Watched) -> None:
    """The same result as from the pictures, none of which is read; another model's is not taken for it."""
    W = np.asarray(representations_of(source)).repeat(48, axis=0)[:1000]
    model = tiny_clip()
    with pytest.raises(InputError, match=r"there is no store .*none: make it with `jaxclip embed`"):
        evaluate(model, source, head=W, workers=0, store=tmp_path / "none")
    computed = evaluate(model, source, head=W, workers=0, store=tmp_path)
    assert computed.stored is None
    embed(model, source, tmp_path, workers=0)
    source.read.clear()
    stored = evaluate(model, source, head=W, batch_size=4, store=tmp_path)
    assert not source.read
    assert stored.stored is not None
    assert dataclasses.replace(stored, stored=None) == computed
    assert 0 < computed.top1.value < 1 or computed.top5.value > 0, "nothing is right: the comparison tells nothing"
    with_other = changed(model, name=next(n for n in checkpoint.named(model.params) if n.startswith("vision")))
    assert evaluate(with_other, source, head=W, workers=0, store=tmp_path).stored is None


def representations_of(source: Watched) -> np.ndarray:
    return np.concatenate([np.asarray(h)[b.mask] for h, b in representations(tiny_clip(), source, workers=0)])


def test_evaluate_counts_bad_pictures_from_the_store(tmp_path: Path, source: Watched) -> None:
    broken = dataclasses.replace(source, bad=(5,))
    W = np.random.default_rng(0).standard_normal((1000, 32), np.float32)
    computed = evaluate(tiny_clip(), broken, head=W, workers=0, skip_bad=True)
    embed(tiny_clip(), broken, tmp_path, workers=0, skip_bad=True)
    stored = evaluate(tiny_clip(), broken, head=W, skip_bad=True, store=tmp_path)
    assert dataclasses.replace(stored, stored=None) == computed
    with pytest.raises(InputError, match="lacks 1 pictures"):
        evaluate(tiny_clip(), broken, head=W, store=tmp_path)


def test_opening_says_what_is_wrong(tmp_path: Path, whole: Representations, source: Watched) -> None:
    with pytest.raises(InputError, match="jaxclip embed"):
        open_store(tmp_path / "nothing")
    store = tmp_path / "store"
    shutil.copytree(whole.folder, store / whole.folder.name)
    assert open_store(store).shape == open_store(store, whole.folder.name[:6]).shape == (21, 32)
    opened = open_store(store / whole.folder.name)
    assert opened.shape == (21, 32)
    np.testing.assert_array_equal(opened[3], opened[:][3])
    np.testing.assert_array_equal(opened[-1], opened[20:][0])
    for rows in ((slice(3, 5), slice(2)), None, [[1, 2], [3, 4]]):
        with pytest.raises(InputError, match="indexed by rows"):
            opened[cast(Any, rows)]
    embed(tiny_classifier(2), source, store, **SMALL)
    with pytest.raises(InputError, match=rf"several.*{whole.folder.name[:12]} \(tiny-clip on"):
        open_store(store)
    manifest = json.loads((whole.folder / MANIFEST).read_text())
    shards = [{k: v for k, v in shard.items() if k != "rows"} for shard in manifest["shards"]]
    altered = [manifest | {"n": 20}, manifest | {"shards": shards}, manifest | {"shards": manifest["shards"][1:]}]
    for content in ("{", "{}", "3", *map(json.dumps, altered)):
        (store / whole.folder.name / MANIFEST).write_text(content)
        with pytest.raises(InputError, match=r"manifest\.json is corrupt"):
            open_store(store, whole.folder.name)


def test_a_store_has_the_names_of_today(tmp_path: Path, folder: Path) -> None:
    """Studies know a set and a model by their names: what is renamed is found again, and known by the new one."""
    shutil.copytree(folder, tmp_path / "unnamed")
    first = embed(tiny_clip(), open_source(tmp_path / "unnamed"), tmp_path / "store", **SMALL)
    (tmp_path / "unnamed").rename(tmp_path / "imagenet-a")
    again = embed(tiny_clip(), open_source(tmp_path / "imagenet-a"), tmp_path / "store", **SMALL)
    assert again.folder == first.folder and again.name == "imagenet-a"
    np.testing.assert_array_equal(again[:], first[:])
    renamed = changed(tiny_clip(), dataclasses.replace(tiny_clip().config, name="mine"))
    again = embed(renamed, open_source(tmp_path / "imagenet-a"), tmp_path / "store", **SMALL)
    assert again.folder == first.folder and again.manifest["model"]["name"] == "mine"


def test_the_command(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """`embed`, twice, then `evaluate` from its store."""
    model = tiny_classifier(1000)
    checkpoint.save(tmp_path / "ckpt", model.config, checkpoint.named(model.params))
    common = ["--model", str(tmp_path / "ckpt"), "--data", str(folder)]
    write = ["embed", *common, "--out", str(tmp_path / "store"), "--store-dtype", "float16"]
    assert cli.main(write) == 0
    said = capsys.readouterr().out
    assert "21 x 32 float16 (rounded by up to" in said
    assert str(open_store(tmp_path / "store").folder) in said
    assert cli.main(write) == 0
    assert cli.main(["evaluate", *common, "--store", str(tmp_path / "store")]) == 0
    assert f"representations: {tmp_path / 'store'}" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert cli.main(["evaluate", *common, "--store", str(tmp_path / "empty")]) == 0
    assert "representations: computed" in capsys.readouterr().out


MEMORY = """
import resource, sys
import numpy as np
from jaxclip.store import open_store

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
stored = open_store(sys.argv[1])
most = before = peak()
total = 0.0
for rows, h in stored.batches(1000):
    total += float(h[:, 0].sum(dtype=np.float64))
    most = max(most, peak())
print(len(stored), most - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_reading_takes_memory_for_a_shard_not_for_n(tmp_path: Path, whole: Representations) -> None:
    """A made-up store of 32 shards, each of 4 MB (linked to one file): 134 MB that are never in memory together."""
    h = np.random.default_rng(0).standard_normal((2048, 512), np.float32)
    store = tmp_path / "synthetic"
    digest = embedding.write_shard(store / "00000.parquet", h, np.zeros(2048, int), np.arange(2048), ["x"] * 2048)
    for k in range(1, 32):
        (store / f"{k:05}.parquet").hardlink_to(store / "00000.parquet")
    shards = [{"sha256": digest, "rows": 2048, "bad_images": []}] * 32
    manifest = whole.manifest | {"n": 32 * 2048, "d": 512, "shards": shards}
    (store / MANIFEST).write_text(json.dumps(manifest))
    done = subprocess.run([sys.executable, "-c", MEMORY, store], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n, kilobytes, total = done.stdout.split()
    assert int(n) == 32 * 2048
    assert int(kilobytes) < 100_000, "memory grows with n"  # 38,000 to 68,000, as threads happen to allocate
    assert float(total) == pytest.approx(32 * h[:, 0].sum(dtype=np.float64))


def test_analyses_take_a_store_as_they_take_an_array(whole: Representations) -> None:
    from jaxclip.analysis import activation_kurtosis

    in_memory, streamed = activation_kurtosis(whole[:]), activation_kurtosis(whole)
    np.testing.assert_array_equal(np.asarray(streamed), np.asarray(in_memory))


def test_pictures_are_preprocessed_by_the_models_own(whole: Representations, folder: Path) -> None:
    """One row, computed without the pipeline."""
    from PIL import Image

    path = sorted(folder.iterdir())[9]
    image = preprocess(Image.open(path), tiny_clip().config.preprocess)
    np.testing.assert_allclose(whole[[9]], tiny_clip().encode_image(image[None]), rtol=2e-5, atol=2e-5)
