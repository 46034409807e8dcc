"""A study: which models, which data sets, where their representations are; and every analysis's results, computed once.

A configuration is a Python file with ``get_config(root)``, which returns a :class:`Study`. Results are JSON files in
``study.results``, named by the content addresses of all that decides them: what is there is read, the rest computed.
"""

import contextlib
import dataclasses
import functools
import html
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tyro

import jaxclip
from jaxclip import analyze, registry, report
from jaxclip.analysis import SHIFTS, EffectiveRobustness, PrivilegedDirections
from jaxclip.analyze import Activations, ConceptSummary, Directions, Head, Options, Pruning
from jaxclip.checkpoint import CONFIG
from jaxclip.data import imagenet_templates
from jaxclip.datasets.named import Concepts
from jaxclip.datasets.source import digest
from jaxclip.datasets.subsets import plain_name
from jaxclip.errors import InputError, to_mend
from jaxclip.evaluation import Accuracy
from jaxclip.files import check_folder, new_file
from jaxclip.machine import keep_memory
from jaxclip.model import load_model
from jaxclip.progress import progress
from jaxclip.sections import GROUPS, Section, some, title, write
from jaxclip.store import MANIFEST, Representations, key_of, model_digest


@dataclasses.dataclass(frozen=True)
class StudyModel:
    """A model of the study.

    Attributes:
        name: As its ``config.json`` has it, and so the manifests of its representations.
        folder: Its checkpoint.
        group: One of the paper's groups.
        backbone: The vision encoder, to compare groups by.
        training_set: What it was trained on.
    """

    name: str
    folder: Path
    group: registry.Group
    backbone: str
    training_set: str


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """Models between two of a study (WiSE-FT).

    Attributes:
        zero_shot: The model at alpha 0.
        fine_tuned: The model at alpha 1.
        between: By alpha.
    """

    zero_shot: StudyModel
    fine_tuned: StudyModel
    between: Mapping[float, StudyModel]


@dataclasses.dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        title: The report's.
        models: All of the study, whether or not they are there.
        store: The store with their representations.
        reference: The labelled set that kurtosis, importance and CKA are measured on.
        shifts: Other labelled sets with the same classes.
        standard: The models that the line of effective robustness goes through; none: the ImageNet testbed's, where the
            reference is ImageNet.
        interpolated: Lines between zero-shot models and what they were fine-tuned to (WiSE-FT).
        templates: Prompts of the zero-shot heads.
        concept_set: The set with concepts; None for none.
        read_concepts: From the concept set's representations, which row has which concepts.
        options: How the method is read.
        results: The folder of results.
        note: What a reader must know of the study; HTML.
    """

    title: str
    models: tuple[StudyModel, ...]
    store: Path
    reference: str = analyze.IMAGENET
    shifts: tuple[str, ...] = SHIFTS
    standard: tuple[StudyModel, ...] = ()
    interpolated: tuple[Interpolation, ...] = ()
    templates: tuple[str, ...] = tuple(imagenet_templates())
    concept_set: str | None = analyze.BRODEN
    read_concepts: Callable[[Representations], Concepts] = analyze.broden_concepts
    options: Options = dataclasses.field(default_factory=Options)
    results: Path = Path("report/results")
    note: str = ""

    def __post_init__(self):
        for name in self.sets:
            if plain_name(name) != name:
                raise InputError(f"the study's set {name!r} is called {plain_name(name)!r} everywhere: call it so")

    @property
    def sets(self) -> tuple[str, ...]:
        """Every data set's name."""
        names = (self.reference, *self.shifts, *([self.concept_set] if self.concept_set else []))
        return tuple(dict.fromkeys(names))

    @property
    def groups(self) -> dict[str, str]:
        """From each model's name, its group."""
        return {model.name: model.group for model in self.models}

    @property
    def about(self) -> dict[str, tuple[str]]:
        """From each model's name, its group in words."""
        return {model.name: (GROUPS[model.group],) for model in self.models}

    @functools.cached_property
    def stored(self) -> dict[str, dict[str, Representations]]:
        """By model and set, the finished representations in the store.

        Raises:
            InputError: The store has representations by different weights under one model's name, or of different
                pictures under one set's.
        """
        found: dict[str, list[Representations]] = {model.name: [] for model in self.models}
        for stored in analyze.finished(self.store) if any(self.store.glob(f"*/{MANIFEST}")) else []:
            name = stored.manifest["model"]["name"]
            if name in found and plain_name(stored.name) in self.sets:
                found[name].append(stored)
        for name, mine in found.items():
            if len(weights := {_weights(stored) for stored in mine}) > 1:
                raise InputError(
                    f"{self.store} has representations by different weights, all called {name}: remove those of all "
                    f"but one ({', '.join(sorted(w[:12] for w in weights))}), or give the models "
                    "different names (--name of `jaxclip convert` and of training) and embed again"
                )
        return {name: analyze.by_set(mine) for name, mine in found.items()}

    @functools.cached_property
    def concepts(self) -> dict[tuple[str, bytes], Concepts]:
        """Those that have been read, by the data set and its rows."""
        return {}

    @functools.cached_property
    def classes(self) -> list[str]:
        """What heads choose between; nothing where no model has the reference set."""
        references = (sets[self.reference] for sets in self.stored.values() if self.reference in sets)
        return next((analyze.class_names(stored) for stored in references), [])


class Experiment(Protocol):
    """The module of an experiment."""

    def run(self, study: Study) -> Section:
        """Its figures and tables."""
        ...


def load(config: Path, root: Path | None = None) -> Study:
    """The study of a configuration.

    Args:
        config: A Python file with ``get_config(root)``.
        root: The folder where checkpoints and store are; None for ``$JAXCLIP_ROOT``, or this folder.

    Raises:
        InputError: There is no such file, or it has no ``get_config``.
    """
    spec = importlib.util.spec_from_file_location("config", config)
    if not config.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{config} is no configuration: give a Python file with get_config(root)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"{config} has no get_config(root)")
    return module.get_config(Path(os.environ.get("JAXCLIP_ROOT", ".")) if root is None else root)


def main(run: Callable[[Study], Section]) -> None:
    """The command line of one experiment."""

    def command(config: Path, out: Path = Path("report"), root: Path | None = None) -> None:
        check_folder(out)
        study = dataclasses.replace(load(config, root), results=out / "results")
        section = run(study)
        section.print()
        name = Path(sys.argv[0]).stem
        page = write(out / name, f"{study.title}: {section.title}", study.note, [section])
        print(f"written: {page}, tables and figures beside it")

    command.__doc__ = f"""{(sys.modules[run.__module__].__doc__ or "").partition(chr(10))[0]}

    Args:
        config: A configuration, such as experiments/configs/paper.py.
        out: The folder to write to.
        root: The folder where checkpoints and store are. Left out: $JAXCLIP_ROOT, or this folder.
    """
    keep_memory()
    with exit_on_input_error():
        tyro.cli(command)


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Prints what a user has to mend, alone, and exits with code 2; interrupted, with 130: as the command line does."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as error:
        if (said := to_mend(error)) is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


# --- results ---------------------------------------------------------------------------------------------------------


def activations(study: Study) -> dict[str, Activations]:
    """Kurtosis and outlier features on the reference set, by model."""
    found = {}
    for name, (stored,) in _each(study, "activations", [study.reference]):
        inputs = {"threshold": study.options.outlier_threshold}
        compute = functools.partial(analyze.activations, stored, study.options)
        found[name] = Activations(**_cached(study, "activations", name, [stored], inputs, compute))
    return found


def directions(study: Study) -> dict[str, Directions]:
    """How much the head reads along its directions, by model."""
    found = {}
    for name, (stored,) in _each(study, "directions", [study.reference], head=True):

        def compute(name: str = name) -> Directions:
            return analyze.directions(_ranked(study, name), study.options)

        inputs = _head_inputs(study) | {"importance": study.options.importance}
        found[name] = Directions(**_cached(study, "directions", name, [stored], inputs, compute))
    return found


def accuracies(study: Study) -> dict[str, dict[str, Accuracy]]:
    """Accuracy with the whole head, by model and set (that are there)."""
    found = {}
    for name, (stored,) in _each(study, "accuracy", [study.reference], head=True):
        sets = {k: study.stored[name][k] for k in study.shifts if k in study.stored[name]}

        def compute(name: str = name, stored: Representations = stored, sets: Any = sets) -> dict[str, Accuracy]:
            views = analyze.views(stored, sets, study.options.x)
            return {k: analyze.accuracy(head(study, name), data) for k, data in views.items()}

        inputs = _head_inputs(study) | {"x": study.options.x}
        result = _cached(study, "accuracy", name, [stored, *sets.values()], inputs, compute)
        found[name] = {k: Accuracy(**a) for k, a in result.items()}
    return found


def prunings(study: Study) -> dict[str, Pruning]:
    """Accuracy over the share of directions pruned, by model."""
    found = {}
    for name, (stored,) in _each(study, "pruning", [study.reference], head=True):
        sets = {k: study.stored[name][k] for k in study.shifts if k in study.stored[name]}

        def compute(name: str = name, stored: Representations = stored, sets: Any = sets) -> Pruning:
            views, W = analyze.views(stored, sets, study.options.x), head(study, name)
            ranked = _ranked(study, name)
            curves = {k: analyze.prune(W, ranked, data, study.options) for k, data in views.items()}
            return Pruning(list(study.options.fractions), curves)

        options = {key: getattr(study.options, key) for key in ("importance", "fractions", "x")}
        inputs = _head_inputs(study) | options
        found[name] = Pruning(**_cached(study, "pruning", name, [stored, *sets.values()], inputs, compute))
    return found


def concepts(study: Study) -> dict[str, ConceptSummary]:
    """Which concepts the directions encode, by model."""
    found: dict[str, ConceptSummary] = {}
    if study.concept_set is None:
        return found
    for name, (stored, reference) in _each(study, "concepts", [study.concept_set, study.reference], head=True):

        def compute(name: str = name, stored: Representations = stored) -> ConceptSummary:
            rows = analyze.concept_directions(_ranked(study, name), study.options)
            return analyze.summarise_concepts(stored, stored.ids, _concepts(study, stored), rows, study.options)

        inputs = _head_inputs(study) | {
            "options": {k: v for k, v in dataclasses.asdict(study.options).items() if k not in ("fractions", "x")},
            # Broden's are a part of the data set, whose fingerprint is in the representations' address already.
            "concepts": None if study.read_concepts is analyze.broden_concepts else _digest(_concepts(study, stored)),
        }
        found[name] = ConceptSummary(**_cached(study, "concepts", name, [stored, reference], inputs, compute))
    return found


def _concepts(study: Study, stored: Representations) -> Concepts:
    """What ``study.read_concepts`` gives, read once for all models that saw the same pictures."""
    key = stored.manifest["identity"]["data"], stored.indices.tobytes()
    if key not in study.concepts:
        study.concepts[key] = study.read_concepts(stored)
    return study.concepts[key]


def _digest(found: Concepts) -> str:
    matrix = found.matrix.tocoo()
    places = np.stack([matrix.row, matrix.col])[:, matrix.data.astype(bool)].astype(np.int64)
    return digest([matrix.shape, found.names, found.categories, places[:, np.lexsort(places)].tobytes()])


def cka(study: Study) -> dict[tuple[str, str], float]:
    """Linear CKA on the reference set, by pair of models (each once, and none with itself)."""
    found = {}
    mine = {name: sets[study.reference] for name, sets in study.stored.items() if study.reference in sets}
    pairs = list(itertools.combinations(mine, 2))
    with progress("CKA", len(pairs), "pairs") as advance:
        for a, b in pairs:
            compute = functools.partial(analyze.cka, mine[a], mine[b])
            found[a, b] = _cached(study, "cka", f"{a}-{b}", [mine[a], mine[b]], {}, compute)
            advance(1)
    return found


def robustness(study: Study, found: Mapping[str, Mapping[str, Accuracy]]) -> EffectiveRobustness | None:
    """Effective robustness of the models of :func:`accuracies`, in their order; None where there is none to judge."""
    return _robustness(study, columns(found)) if found else None


def columns(found: Mapping[str, Mapping[str, Accuracy]]) -> dict[str, np.ndarray]:
    """The accuracies of :func:`accuracies` by set, in the models' order; NaN where one is missing."""
    sets = dict.fromkeys(k for mine in found.values() for k in mine)
    return {k: np.array([mine[k].value if k in mine else np.nan for mine in found.values()]) for k in sets}


def pruned_robustness(study: Study, found: Mapping[str, Pruning]) -> dict[str, np.ndarray]:
    """Mean effective robustness for each fraction, by model."""
    missing = np.full(len(study.options.fractions), np.nan)
    names = dict.fromkeys(k for p in found.values() for k in p.accuracy)
    sets = {k: np.concatenate([p.accuracy.get(k, missing) for p in found.values()]) for k in names}
    result = _robustness(study, sets) if found else None
    return {} if result is None else dict(zip(found, result.mean.reshape(len(found), -1), strict=True))


def with_models(study: Study, models: Iterable[StudyModel]) -> Study:
    """The study of other models on the same sets."""
    return dataclasses.replace(study, models=tuple(models))


def baselines(study: Study) -> Mapping[str, np.ndarray] | None:
    """The accuracies by set of the study's own standard models; None where it has none, or fewer than three here."""
    found = accuracies(with_models(study, study.standard)) if study.standard else {}
    return columns(found) if len(found) >= 3 else None


def _robustness(study: Study, table: Mapping[str, np.ndarray]) -> EffectiveRobustness | None:
    line = baselines(study)
    testbed = _imagenet(study) and not study.standard and set(study.shifts) <= set(SHIFTS)
    if line is None and not testbed:
        return None
    return analyze.robustness(study.reference, table, study.options, baselines=line, shifts=study.shifts)


def head(study: Study, name: str) -> Head:
    """A model's head over the reference's classes: from the store's ``head-KEY.npz``, or made and put there.

    Raises:
        InputError: The checkpoint is not the one that the representations were made with.
    """
    path = _head_path(study, name)
    if not path.exists():
        model = load_model(_model(study, name).folder)
        stored = study.stored[name][study.reference]
        if model_digest(model) != _weights(stored):
            raise InputError(
                f"{_model(study, name).folder} has other weights than made {stored.folder}: embed again, or put the "
                "checkpoint back"
            )
        made = analyze.read_head(model, study.classes, study.templates)
        with new_file(path, "wb") as file:
            np.savez(file, W=made.W, b=made.b, kind=made.kind)
    with np.load(path) as found:
        return Head(found["W"], found["b"], str(found["kind"]))


def absent_sets(study: Study) -> list[str]:
    """The sets that no model has representations of, as they are called in text."""
    return [title(name) for name in study.sets if not any(name in mine for mine in study.stored.values())]


def missing(study: Study) -> list[list[Any]]:
    """For each model, group, training set, whether its head is there (or its checkpoint), and each set's pictures."""
    return [
        [
            model.name,
            GROUPS[model.group],
            model.training_set,
            "yes" if _has_head(study, model.name) else "no",
            *(len(mine[k]) if k in (mine := study.stored[model.name]) else None for k in study.sets),
        ]
        for model in study.models
    ]


def note_missing(section: Section, study: Study, found: Mapping[str, Any], sets: Sequence[str]) -> bool:
    """Says in the section which models are not in ``found``, and for want of what; whether any model is."""
    absent = [model.name for model in study.models if model.name not in found]
    if absent:
        what = ", ".join(title(name) for name in sets)
        section.text(
            report.notice(
                f"Not run for {len(absent)} of {len(study.models)} models ({html.escape(some(absent))}): their "
                f"checkpoints or their representations of {html.escape(what)} are not there."
            )
        )
    return bool(found)


def _each(
    study: Study, what: str, sets: Sequence[str], head: bool = False
) -> Iterator[tuple[str, list[Representations]]]:
    """Every model that has these sets, and a head where one is needed; with progress, of ``what``."""
    names = [
        name
        for name, mine in study.stored.items()
        if all(k in mine for k in sets) and (not head or _has_head(study, name))
    ]
    with progress(what, len(names), "models") as advance:
        for name in names:
            yield name, [study.stored[name][k] for k in sets]
            advance(1)


def _cached(
    study: Study,
    what: str,
    name: str,
    stored: Sequence[Representations],
    inputs: Mapping[str, Any],
    compute: Callable[[], Any],
) -> Any:
    """The result in JSON's types: read where there is one of the same inputs, computed and written where not."""
    known = {"what": what, "stored": [s.folder.name for s in stored], **inputs, "jaxclip": jaxclip.__version__}
    known = analyze.plain(known)
    path = study.results / f"{what}-{name.replace('/', '-')}-{key_of(known)[:16]}.json"
    if not path.exists():
        analyze.save_json(path, {"inputs": known, "result": compute()})
    return analyze.read_json(path)["result"]


def _ranked(study: Study, name: str) -> PrivilegedDirections:
    return analyze.rank(head(study, name), study.stored[name][study.reference], study.options)


def _head_path(study: Study, name: str) -> Path:
    weights = _weights(study.stored[name][study.reference])
    return study.store / f"head-{key_of([weights, _head_inputs(study)])}.npz"


def _head_inputs(study: Study) -> dict[str, Any]:
    return {"head": key_of([study.classes, study.templates])}


def _has_head(study: Study, name: str) -> bool:
    if study.reference not in study.stored[name]:
        return False
    return _head_path(study, name).exists() or (_model(study, name).folder / CONFIG).exists()


def _model(study: Study, name: str) -> StudyModel:
    return next(model for model in study.models if model.name == name)


def _weights(stored: Representations) -> str:
    return stored.manifest["identity"]["model"]


def _imagenet(study: Study) -> bool:
    references = [sets[study.reference] for sets in study.stored.values() if study.reference in sets]
    return bool(references) and analyze.is_imagenet(references[0])
