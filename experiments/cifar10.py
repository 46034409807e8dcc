"""CIFAR-10 in miniature: trains four small models, makes shift sets, embeds, runs every analysis, writes a report.

    python -m experiments.cifar10 --out cifar10 --data ../shared/data/cifar10

``experiments/configs/cifar10.py`` says what is trained and why. Every stage leaves its result under ``--out`` and is
skipped where that is there; a training run that was killed goes on from its last checkpoint.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from experiments import reproduce
from experiments import study as studies
from experiments.configs import cifar10 as config
from experiments.corruptions import CORRUPTIONS
from experiments.study import StudyModel
from jaxclip.config import Preprocess
from jaxclip.datasets import FileSource, Source, open_source
from jaxclip.datasets.files import open_tars
from jaxclip.embedding import embed
from jaxclip.files import new_directory, new_file
from jaxclip.interpolate import interpolate_checkpoints
from jaxclip.loader import batches
from jaxclip.machine import keep_memory
from jaxclip.model import load_model
from jaxclip.preprocess import decode
from jaxclip.progress import progress
from jaxclip.training import runs
from jaxclip.training.data import Captions
from jaxclip.training.recipe import Recipe

COSTS = "seconds.json"


def main(
    out: Path, data: Path = Path("../shared/data/cifar10"), pictures: int | None = None, epochs: float | None = None
) -> None:
    """Run the miniature, or go on with it.

    Args:
        out: The folder for everything; the report is OUT/report/index.html.
        data: The folder of train.tar.gz and test.tar.gz (CLASS/NNNN.jpg within).
        pictures: Only so many of each class, to train on and to test with, for a trial of the command.
        epochs: Only so many, for each training run.
    """
    with studies.exit_on_input_error():
        train_set, test_set = (first(open_tars([data / f"{split}.tar.gz"]), pictures) for split in ("train", "test"))
        test_set = dataclasses.replace(test_set, name=config.REFERENCE)
        recipes = {
            name: recipe if epochs is None else dataclasses.replace(recipe, epochs=epochs, save=epochs / 4)
            for name, recipe in config.RECIPES.items()
        }
        train(out, train_set, recipes)
        with cost(out, "shift sets and concepts"):
            sources = {config.REFERENCE: test_set, **shift_sets(out, first(test_set, config.SHIFTED_OF_EACH_CLASS))}
            pixel_concepts(out, test_set)
        study = dataclasses.replace(config.get_config(out), results=out / "report" / "results")
        with cost(out, "representations"):
            represent(study, sources)
        with cost(out, "analyses"):
            for experiment in reproduce.EXPERIMENTS:
                experiment.run(study)
        minutes = {f"Minutes: {what}": f"{s / 60:.1f}" for what, s in json.loads((out / COSTS).read_text()).items()}
        page, compared = reproduce.reproduce(study, out / "report", {"Seed": config.SEED, **minutes})
        reproduce.show(study, page, compared)


# --- training --------------------------------------------------------------------------------------------------------


def train(out: Path, train_set: FileSource, recipes: dict[str, Recipe]) -> None:
    """The four models and the checkpoints between the CLIP and its fine-tuned self, each where it is not there."""
    clip, tuned = config.CLIP.name, f"{config.CLIP.name}-finetuned"
    captioned = Captions(train_set, config.captions(train_set.labels, train_set.classes))
    start = out / clip / runs.LAST
    jobs: dict[str, Callable[..., Path]] = {
        config.VIT.name: functools.partial(runs.supervised, config.VIT, train_set),
        config.RESNET.name: functools.partial(runs.supervised, config.RESNET, train_set),
        clip: functools.partial(runs.from_captions, config.CLIP, captioned),
        tuned: functools.partial(runs.finetune, start, train_set, templates=config.TEMPLATES),
    }
    for name, job in jobs.items():
        if not (out / name / runs.LAST).exists():
            with cost(out, f"training {name}"):
                job(out=out / name, recipe=recipes[name], workers=1)
    missing = [alpha for alpha in config.ALPHAS if not (out / "wise_ft" / f"alpha_{alpha:.2f}").exists()]
    if missing:
        interpolate_checkpoints(out / tuned / runs.ZERO_SHOT, out / tuned / runs.LAST, missing, out / "wise_ft")


# --- pictures --------------------------------------------------------------------------------------------------------


def first(source: FileSource, of_each: int | None) -> FileSource:
    """The source's first pictures of each class; all of them for None."""
    if of_each is None:
        return source
    rows = np.sort(np.concatenate([np.flatnonzero(source.labels == c)[:of_each] for c in range(len(source.classes))]))
    picked = {field: getattr(source, field)[rows] for field in ("labels", "starts", "sizes")}
    file = None if source.file is None else source.file[rows]
    return dataclasses.replace(source, ids=tuple(source.ids[i] for i in rows), file=file, **picked)


def shift_sets(out: Path, clean: FileSource) -> dict[str, Source]:
    """Every shift set, as a folder of lossless pictures in class folders, made where it is not there."""
    sources: dict[str, Source] = {}
    for number, name in enumerate(config.SHIFTS):
        folder = out / "shifts" / name
        if not folder.exists():
            rng = np.random.default_rng([config.SEED, number])
            with new_directory(folder) as part, progress(name, len(clean)) as advance:
                for example in (clean[i] for i in range(len(clean))):
                    path = part / clean.classes[example.label] / f"{Path(example.id).stem}.png"
                    path.parent.mkdir(exist_ok=True)
                    picture = np.asarray(decode(example.image_bytes).convert("RGB"))
                    Image.fromarray(CORRUPTIONS[name](picture, config.SEVERITY, rng)).save(path)
                    advance(1)
        sources[name] = open_source(folder, classes=clean.classes)
    return sources


def pixel_concepts(out: Path, test_set: Source) -> None:
    """Writes which test pictures show which concept of the pixels: the tenth with the most of each."""
    ids, means = [], []
    for batch in batches(test_set, Preprocess(32), 256):
        ids += [name for name, there in zip(batch.ids, batch.mask, strict=False) if there]
        means.append(batch.images[batch.mask].mean(axis=(1, 2)))
    rgb = np.concatenate(means)
    light = rgb.mean(axis=1)
    amounts = dict(zip(config.PIXELS, (light, -light, *(rgb - light[:, None]).T), strict=True))
    most = {name: np.argsort(-x, kind="stable")[: len(ids) // 10] for name, x in amounts.items()}
    with new_file(out / config.PIXEL_CONCEPTS) as file:
        json.dump({name: [ids[i] for i in sorted(rows)] for name, rows in most.items()}, file)


def represent(study: studies.Study, sources: dict[str, Source]) -> None:
    """The store of every model of the study, those of the line and between the ends of WiSE-FT among them."""
    between = [model for line in study.interpolated for model in line.between.values()]
    models: dict[str, StudyModel] = {m.name: m for m in (*study.models, *study.standard, *between)}
    with progress("representations", len(models), "models") as advance:
        for one in models.values():
            model = load_model(one.folder)
            for source in sources.values():
                embed(model, source, study.store, batch_size=256)
            advance(1, one.name)


# --- the machine -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cost(out: Path, what: str) -> Iterator[None]:
    """Keeps the seconds that a stage took the first time that it came to its end."""
    start = time.monotonic()
    yield
    path = out / COSTS
    seconds = json.loads(path.read_text()) if path.exists() else {}
    if what not in seconds:
        with new_file(path) as file:
            json.dump(seconds | {what: time.monotonic() - start}, file, indent=1)
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    keep_memory()
    tyro.cli(main)
