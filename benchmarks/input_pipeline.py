"""The input pipeline beside torchvision's, how busy it keeps a device, and its memory.

The pictures are the 50 full-size ImageNet ones of ``../shared/data/imagenet_full``, again and again. jaxclip reads,
decodes, resizes, crops, makes batches of uint8 and puts them on the device, with its default workers (on up to 4 cores,
threads). Torchvision's transforms do the same, and then normalise in float32 (which jaxclip leaves to the device), in a
``DataLoader`` of 2 workers, and nothing is transferred. The processor's time for a picture, over all threads and
processes, depends less than the speed on who else is there.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.contest import Functions, alone, peak_memory, process, ratio, take_turns
from jaxclip.config import ModelConfig, Preprocess, ViT
from jaxclip.datasets import Example, FileSource, Source, open_source
from jaxclip.machine import keep_memory

TITLE = "Input pipeline, full-size ImageNet pictures"
CASES = ("files to batches on the device",)
PICTURES = Path(__file__).parent.parent.parent / "shared" / "data" / "imagenet_full"
PIXELS = Preprocess(224)
BATCH = 64
PASS = 2000
"""Pictures that a turn reads."""
SECONDS = 40.0
SLOWER = 1.5
"""The made-up device takes so many times as long for a batch as reading one."""


def measure(label: str) -> dict[str, Any]:
    """Seconds and processor seconds of each side's passes, how busy a slower device is, memory by pictures."""
    with contextlib.ExitStack() as stack:
        sides = {
            "jaxclip": stack.enter_context(process(_jaxclip)),
            "torchvision": stack.enter_context(process(_torchvision)),
        }
        for call in sides.values():
            call("read a batch")
        before = {name: call("processor seconds").value for name, call in sides.items()}
        times = take_turns({name: functools.partial(call, "read") for name, call in sides.items()}, seconds=SECONDS)
        spent = {name: call("processor seconds").value - before[name] for name, call in sides.items()}
    pace = PASS / statistics.median(times["jaxclip"]) / SLOWER
    turns = len(times["jaxclip"])
    return {
        "pictures": PASS,
        "seconds": times,
        "processor seconds": {name: seconds / turns for name, seconds in spent.items()},
        "device pace": pace,
        "device busy": [alone(busy, PASS, BATCH / pace) for _ in range(3)],
        "peak memory bytes": {str(n): alone(memory_of_embedding, n) for n in (PASS, 2 * PASS, 4 * PASS)},
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of all results."""
    lines = [
        "| what | jaxclip | torchvision, DataLoader of 2 workers | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for label, result in results.items():
        seconds, processor = result["seconds"], result["processor seconds"]
        names = ("jaxclip", "torchvision")
        mine, theirs = (f"{result['pictures'] / statistics.median(seconds[name]):.0f}" for name in names)
        lines.append(f"| {label}, pictures/s | {mine} | {theirs} | {ratio(*(seconds[name] for name in names)):.2f} |")
        mine, theirs = (f"{1000 * processor[name] / result['pictures']:.1f} ms" for name in names)
        lines.append(f"| processor's time for a picture | {mine} | {theirs} | |")
        share, pace = statistics.median(result["device busy"]), result["device pace"]
        lines.append(f"| a made-up device of {pace:.0f} pictures/s has work | {share:.1%} of the time | | |")
        counts, bytes_ = zip(*result["peak memory bytes"].items(), strict=True)
        held = ", ".join(f"{value / 1e6:.0f}" for value in bytes_)
        lines.append(f"| peak memory of embedding {', '.join(counts)} of them | {held} MB | | |")
    return "\n".join(lines)


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


def _jaxclip() -> Functions:
    import jax

    from jaxclip.loader import batches

    keep_memory()  # as `jaxclip embed` does
    device, source = jax.devices()[0], cast(FileSource, open_source(PICTURES))

    def read(n: int) -> int:
        done = 0
        for batch in batches(Repeated(source, n), PIXELS, BATCH):
            jax.block_until_ready(jax.device_put(batch.images, device))
            done += int(batch.mask.sum())
        return done

    return _passes(read)


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


def _torchvision() -> Functions:
    from torch.utils.data import DataLoader

    TorchPictures(1)[0]  # else each worker, once forked, loads the libraries anew

    def read(n: int) -> int:
        # In a process that was spawned, workers would be too, and import everything again.
        pictures = cast(Any, TorchPictures(n))
        return sum(map(len, DataLoader(pictures, BATCH, num_workers=2, multiprocessing_context="fork")))

    return _passes(read)


def _passes(read: Callable[[int], int]) -> Functions:
    def processor() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    def whole() -> None:
        if (done := read(PASS)) != PASS:
            raise AssertionError(f"{done} pictures were read, not {PASS}")

    return {"read a batch": lambda: read(BATCH), "read": whole, "processor seconds": processor}


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


def memory_of_embedding(n: int) -> int:
    """The most bytes that a process has held which embeds n pictures with a small model of random weights."""
    import jax
    from flax import nnx

    from jaxclip import checkpoint
    from jaxclip.embedding import embed
    from jaxclip.model import Model
    from jaxclip.models import clip

    keep_memory()  # as `jaxclip embed` does
    cfg = ModelConfig("random", ViT(224, 32, 64, 1, 1, 64), PIXELS, num_classes=1)
    graph, state = nnx.split(clip.abstract(cfg))
    arrays = {name: jax.numpy.full(leaf.shape, 0.1) for name, leaf in checkpoint.named(state).items()}
    model = Model(cfg, nnx.merge(graph, checkpoint.fill(state, arrays)))
    with tempfile.TemporaryDirectory() as store:
        stored = embed(model, cast(Source, Repeated(open_source(PICTURES), n)), store, batch_size=BATCH)  # type: ignore[arg-type]
        assert len(stored) == n
    return peak_memory()
