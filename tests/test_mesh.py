"""Devices and hosts: however many compute, the representations are the same."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jobs import ROOT, run_job
from tiny import tiny_classifier, tiny_clip

from jaxclip import checkpoint, mesh, store
from jaxclip.datasets import open_source
from jaxclip.embedding import embed
from jaxclip.errors import InputError
from jaxclip.store import MANIFEST, Representations, open_store


@pytest.fixture(autouse=True, scope="module")
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_ROWS", 4)
        yield


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "clip"
    checkpoint.save(path, tiny_clip().config, checkpoint.named(tiny_clip().params))
    return path


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Representations:
    """The store that one process with one device writes."""
    into = tmp_path_factory.mktemp("single")
    return embed(tiny_clip(), open_source(str(folder)), into, batch_size=3, workers=0)


DEVICES = """
import math, re, sys
import jax, numpy as np
from jaxclip import checkpoint, mesh, store
from jaxclip.datasets import open_source
from jaxclip.embedding import embed
from jaxclip.evaluation import evaluate
from jaxclip.model import load_model

store.SHARD_ROWS = 4
ckpt, pictures, into = sys.argv[1:]
devices = mesh.local_mesh()
assert devices.size == 8, devices
config = checkpoint.read_config(ckpt)
source = open_source(pictures)
everywhere = mesh.parameter_sharding(devices)
sharded = mesh.parameter_sharding(devices, config, min_size=1024)
W = np.random.default_rng(0).standard_normal((1000, 32), np.float32)
for name, sharding in (("copies", everywhere), ("fsdp", sharded)):
    model = load_model(ckpt, sharding=sharding)
    arrays = checkpoint.named(model.params)
    held = sum(a.addressable_shards[3].data.nbytes for a in arrays.values())
    images = jax.device_put(np.zeros((16, 32, 32, 3), np.uint8), mesh.batch_sharding(model.params))
    h = model.encode_image(images)
    rows = [len(s.data) for s in images.addressable_shards]
    embed(model, source, f"{into}/{name}", batch_size=3, workers=0)
    found = evaluate(model, source, head=W, batch_size=5, workers=0)
    print(name, held / sum(a.nbytes for a in arrays.values()), rows, len(h.sharding.device_set), found.top1.total)
    program = jax.jit(model.representation).lower(model.params, images).compile().as_text()
    sizes = {a.size // (len(a) if ".blocks." in n else 1) for n, a in arrays.items()}
    collective = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    moved = re.findall(rf"\\[([\\d,]*)\\]\\S* ({collective})\\S*\\(", program)
    print(sorted({(kind, math.prod(map(int, shape.split(","))) in sizes) for shape, kind in moved}))
"""


def test_eight_devices_give_what_one_gives(ckpt: Path, folder: Path, tmp_path: Path, single: Representations) -> None:
    """Batches of 3 and 5 rows are padded to 8; parameters are copied, or an eighth of them is on each device, which
    gathers them and nothing else: XLA had rather gathered the whole batch's activations on each.
    """
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", DEVICES, *map(str, (ckpt, folder, tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    copies, of_copies, fsdp, of_fsdp = done.stdout.splitlines()
    assert (of_copies, of_fsdp) == ("[]", "[('all-gather', True)]"), "more than parameters moves between devices"
    copies, fsdp = (line.split(maxsplit=2) for line in (copies, fsdp))
    assert (copies[0], float(copies[1])) == ("copies", 1)
    assert fsdp[0] == "fsdp"
    assert float(fsdp[1]) < 0.14, "a device holds more than an eighth of the parameters and the small ones"
    for name, _, rest in (copies, fsdp):
        assert rest == "[2, 2, 2, 2, 2, 2, 2, 2] 8 21", f"{name}: the batch is not spread, or pictures are missing"
        stored = open_store(tmp_path / name)
        assert stored.folder.name == single.folder.name
        assert stored.ids == single.ids
        np.testing.assert_allclose(stored[:], single[:], rtol=3e-5, atol=3e-5)


PROCESS = """
import sys
import jax
from jaxclip import mesh, store
from jaxclip.datasets import open_source
from jaxclip.embedding import embed
from jaxclip.errors import InputError
from jaxclip.model import load_model

store.SHARD_ROWS = 4
ckpt, pictures, into = sys.argv[1:]
mesh.start_processes()
model = load_model(ckpt, sharding=mesh.parameter_sharding(mesh.local_mesh()))
try:
    stored = embed(model, open_source(pictures), into, batch_size=3, workers=0)
except InputError as error:
    print("error:", error)
else:
    print("rows:", len(stored), "of process", jax.process_index(), "of", jax.process_count())
"""


def check_job(count: int, ckpt: Path, folder: Path, store: Path, single: Representations) -> None:
    for process, done in enumerate(run_job(count, PROCESS, ckpt, folder, store)):
        assert done.returncode == 0, done.stderr
        assert f"rows: 21 of process {process} of {count}\n" in done.stdout
    together = open_store(store)
    assert together.ids == single.ids
    assert together.labels.tolist() == single.labels.tolist()
    np.testing.assert_allclose(together[:], single[:], rtol=2e-5, atol=2e-5)
    files = {path.name for path in together.folder.iterdir()}
    assert files == {path.name for path in single.folder.iterdir()}
    manifests = [json.loads((s.folder / MANIFEST).read_text()) for s in (together, single)]
    for manifest in manifests:
        for shard in manifest["shards"]:
            del shard["sha256"]
    assert manifests[0] == manifests[1]


def test_two_processes_write_one_store(ckpt: Path, folder: Path, tmp_path: Path, single: Representations) -> None:
    """Two real processes on loopback, of which each writes its own shards."""
    check_job(2, ckpt, folder, tmp_path, single)


@pytest.mark.slow
def test_four_processes_write_one_store(ckpt: Path, folder: Path, tmp_path: Path, single: Representations) -> None:
    check_job(4, ckpt, folder, tmp_path, single)


def test_what_fails_in_one_process_ends_all(ckpt: Path, folder: Path, tmp_path: Path, single: Representations) -> None:
    """A picture of process 1's shard is broken: process 0, which has written its own, must not wait for ever.

    The picture mended, another run goes on with the store.
    """
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted(folder.iterdir()):
        (pictures / path.name).write_bytes(path.read_bytes())
    broken = sorted(pictures.iterdir())[5]
    whole = broken.read_bytes()
    broken.write_bytes(bytes(len(whole)))
    zero, one = run_job(2, PROCESS, ckpt, pictures, tmp_path / "store")
    assert zero.returncode == one.returncode == 0, zero.stderr + one.stderr
    assert broken.name in one.stdout
    assert "error: process 1 of 2 failed to write the store: see its message" in zero.stdout
    with pytest.raises(InputError, match="not finished"):
        open_store(tmp_path / "store")
    broken.write_bytes(whole)
    stored = embed(tiny_clip(), open_source(str(pictures)), tmp_path / "store", batch_size=3, workers=0)
    np.testing.assert_allclose(stored[:], single[:], rtol=2e-5, atol=2e-5)


def test_the_command_as_srun_starts_it(ckpt: Path, folder: Path, tmp_path: Path, single: Representations) -> None:
    """`jaxclip embed --distributed`, twice at once; and one line where nothing has started it as a job."""
    args = ["embed", "--model", ckpt, "--data", folder, "--out", tmp_path, "--distributed"]
    zero, one = run_job(2, ["-m", "jaxclip"], *args)
    assert zero.returncode == one.returncode == 0, zero.stderr + one.stderr
    assert "21 x 32 float32" in zero.stdout
    assert "21 x 32" not in one.stdout, "every process of a job says the same"
    np.testing.assert_allclose(open_store(tmp_path)[:], single[:], rtol=2e-5, atol=2e-5)
    alone = subprocess.run([sys.executable, "-m", "jaxclip", *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    assert alone.returncode == 2
    assert "srun" in alone.stderr
    assert "Traceback" not in alone.stderr


def test_fsdp_splits_what_can_be_split() -> None:
    """The longest axis that divides; small or indivisible parameters are copied. On the mesh of this machine."""
    devices = jax.sharding.AbstractMesh((8,), (mesh.AXIS,))
    found = mesh.parameter_sharding(devices, tiny_classifier(3).config, min_size=1024)  # type: ignore[arg-type]
    shapes = {name: a.shape for name, a in checkpoint.named(tiny_classifier(3).params).items()}
    assert isinstance(found, dict)
    assert found.keys() == shapes.keys()
    split = {name: s.spec for name, s in found.items() if s.spec != PartitionSpec()}
    assert len(split) > 3
    for name, spec in split.items():
        axis = spec.index(mesh.AXIS)
        assert shapes[name][axis] % 8 == 0
        assert shapes[name][axis] == max(n for n in shapes[name] if n % 8 == 0), name
    assert all(np.prod(shapes[name]) >= 1024 for name in split)
    assert found["head.kernel"].spec == PartitionSpec(), "32 x 3 has fewer elements than are worth a split"


@pytest.mark.parametrize(("batch", "expected"), [(1, 8), (8, 8), (9, 16), (64, 64)])
def test_batches_are_rounded_up_to_the_devices(batch: int, expected: int) -> None:
    devices = jax.sharding.AbstractMesh((8,), (mesh.AXIS,))
    assert mesh.whole_batch(batch, jax.sharding.NamedSharding(devices, PartitionSpec(mesh.AXIS))) == expected
