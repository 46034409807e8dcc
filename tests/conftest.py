"""What several test files share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cpu") and jax.default_backend() != "cpu":
        pytest.skip("done on a CPU alone")


@pytest.fixture
def float32_products() -> Iterator[None]:
    """On every device: layers multiply as their caller asks (a GPU in TF32), which `jaxclip.model` and training do."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    """Each file begins without the programs of those before: thousands slow every later compilation."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def imagenet_samples() -> list[Path]:
    """The 1,000 real ImageNet pictures, in class order."""
    folder = SHARED / "imagenet_samples"
    if not folder.is_dir():
        pytest.skip(f"real pictures are missing: {folder}")
    return sorted(folder.glob("*.JPEG"))


@pytest.fixture(scope="module")
def folder(imagenet_samples: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one of the real pictures, in a folder of their own."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in imagenet_samples[::48]:
        (folder / path.name).symlink_to(path)
    return folder
