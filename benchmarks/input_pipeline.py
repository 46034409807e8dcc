"""Speed of the input pipeline beside torchvision's, how busy it keeps a device, its memory; prints a Markdown table.

    python -m benchmarks.input_pipeline [--repeats 5] [--copies 40]

The pictures are the 50 full-size ImageNet ones of ``../shared/data/imagenet_full``, each ``copies`` times. jaxclip
reads, decodes, resizes, crops, makes batches of uint8 and puts them on the device, with its default workers (on up to 4
cores, threads). Torchvision's transforms do the same, and then normalise in float32 (which jaxclip leaves to the
device), in a ``DataLoader`` of 2 workers, and nothing is transferred. Each pass is a process of its own, which has
imported everything and read one batch before it is timed. The contestants take turns and medians count, since a busy
machine slows both; the processor's time for a picture, over all threads and processes, depends less on who else is
there.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import tyro

from jaxclip.config import ModelConfig, Preprocess, ViT
from jaxclip.datasets import Example, FileSource, Source, open_source

PICTURES = Path(__file__).parent.parent.parent / "shared" / "data" / "imagenet_full"
PIXELS = Preprocess(224)
BATCH = 64
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A source whose n pictures are those of another, again and again."""

    inner: FileSource
    n: int
    name: str = "imagenet_full, repeated"
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Example:
        return self.inner[index % len(self.inner)]._replace(id=str(index), label=-1)

    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint()} {self.n}"


class Speed(NamedTuple):
    """Of one pass: pictures per second, and milliseconds of processor time for a picture."""

    pictures: float
    milliseconds: float


def timed(read: Callable[[int], int], n: int) -> Speed:
    """Reads one batch, and then n pictures, which are timed."""

    def processor() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    read(BATCH)
    before, start = processor(), time.perf_counter()
    assert read(n) == n
    return Speed(n / (time.perf_counter() - start), 1000 * (processor() - before) / n)


def ours(n: int) -> Speed:
    """jaxclip's pipeline, onto the device."""
    import jax

    from jaxclip.loader import batches

    device, source = jax.devices()[0], cast(FileSource, open_source(PICTURES))

    def read(n: int) -> int:
        done = 0
        for batch in batches(Repeated(source, n), PIXELS, BATCH):
            jax.block_until_ready(jax.device_put(batch.images, device))
            done += int(batch.mask.sum())
        return done

    return timed(read, n)


class TorchPictures:
    """The same pictures as a torch data set."""

    def __init__(self, n: int):
        from torchvision import transforms

        self.n, self.paths = n, sorted(map(str, PICTURES.iterdir()))
        self.transform = transforms.Compose(
            [
                transforms.Resize(PIXELS.size, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(PIXELS.size),
                transforms.ToTensor(),
                transforms.Normalize(PIXELS.mean, PIXELS.std),
            ]
        )

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.paths[index % len(self.paths)]).convert("RGB"))


def torchvisions(n: int) -> Speed:
    """Torchvision's transforms in a DataLoader of 2 workers."""
    from torch.utils.data import DataLoader

    TorchPictures(1)[0]  # else each worker, once forked, loads the libraries anew

    def read(n: int) -> int:
        # In a process that was spawned, workers would be too, and import everything again.
        pictures = cast(Any, TorchPictures(n))
        return sum(map(len, DataLoader(pictures, BATCH, num_workers=2, multiprocessing_context="fork")))

    return timed(read, n)


class SlowEncoder:
    """A made-up device, which takes ``seconds`` for a batch, one after the other, and none of the processor's time."""

    def __init__(self, seconds: float):
        self.config = ModelConfig("made-up", ViT(224, 32, 64, 1, 1, 64), PIXELS, num_classes=1)
        self.params = np.zeros(1)
        self.seconds = seconds
        self.queue = concurrent.futures.ThreadPoolExecutor(1)
        self.ends: list[float] = []

    def encode_image(self, images: Any) -> concurrent.futures.Future:
        return self.queue.submit(self._work)

    def _work(self) -> None:
        time.sleep(self.seconds)
        self.ends.append(time.perf_counter())


def busy(n: int, seconds: float) -> float:
    """The share of the time, from the first batch's start to the last one's end, in which the device has work."""
    from jaxclip.evaluation import representations

    encoder = SlowEncoder(seconds)
    source = Repeated(open_source(PICTURES), n)  # type: ignore[arg-type]
    for h, _ in representations(cast(Any, encoder), cast(Source, source), batch_size=BATCH):
        cast(concurrent.futures.Future, h).result()
    return len(encoder.ends) * seconds / (encoder.ends[-1] - encoder.ends[0] + seconds)


def peak_memory(n: int) -> float:
    """The most memory, in MB, that a process takes which embeds n pictures with a small model of random weights."""
    import jax
    from flax import nnx

    from jaxclip import checkpoint
    from jaxclip.embedding import embed
    from jaxclip.model import Model
    from jaxclip.models import clip

    cfg = ModelConfig("random", ViT(224, 32, 64, 1, 1, 64), PIXELS, num_classes=1)
    graph, state = nnx.split(clip.abstract(cfg))
    arrays = {name: jax.numpy.full(leaf.shape, 0.1) for name, leaf in checkpoint.named(state).items()}
    model = Model(cfg, nnx.merge(graph, checkpoint.fill(state, arrays)))
    with tempfile.TemporaryDirectory() as store:
        stored = embed(model, cast(Source, Repeated(open_source(PICTURES), n)), store, batch_size=BATCH)  # type: ignore[arg-type]
        assert len(stored) == n
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def alone(function: Callable[[], T]) -> T:
    """What a function gives in a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function).result()


def main(repeats: int = 5, copies: int = 40) -> None:
    """Run all, and print the table.

    Args:
        repeats: How often each contestant runs.
        copies: How often each of the 50 pictures is read in a pass.
    """
    n = 50 * copies
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} at the start; {n} pictures a pass, medians of {repeats} passes\n")
    contestants = (ours, torchvisions)
    turns = [[alone(functools.partial(contestant, n)) for contestant in contestants] for _ in range(repeats)]
    (mine, cost), (theirs, their_cost) = (np.median(passes, axis=0) for passes in zip(*turns, strict=True))
    ratio = statistics.median(a.pictures / b.pictures for a, b in turns)
    seconds = 1.5 * BATCH / mine
    shares = [alone(functools.partial(busy, n, seconds)) for _ in range(repeats)]
    memory = {m: alone(functools.partial(peak_memory, m)) for m in (n, 2 * n, 4 * n)}
    print("| what | measured | target |")
    print("| --- | --- | --- |")
    print(f"| jaxclip, images/s (processor time of each) | {mine:.0f} ({cost:.1f} ms) | - |")
    print(f"| torchvision + DataLoader(2), the same | {theirs:.0f} ({their_cost:.1f} ms) | - |")
    print(f"| ratio of speeds in each turn, median | {ratio:.2f} | ≥ 1, aim 2 |")
    pace = f"{BATCH / seconds:.0f} images/s"
    print(f"| device busy, a made-up encoder of {pace} | {statistics.median(shares):.1%} | ≥ 95 % |")
    for m, megabytes in memory.items():
        print(f"| peak memory of embedding {m} pictures, MB | {megabytes:.0f} | the same for every n |")


if __name__ == "__main__":
    tyro.cli(main)
