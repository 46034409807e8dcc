"""All experiments of a study, as one report: what the paper found beside what this run found, tables, figures.

What is there runs, what is missing is named; results that an earlier run left in OUT/results are read, not computed.

    python -m experiments.reproduce --config experiments/configs/paper.py
"""

import dataclasses
import html
from collections import Counter
from pathlib import Path

import tyro
from rich.text import Text

from experiments import (
    accuracy_and_er,
    cka,
    concepts,
    findings,
    importance,
    kurtosis,
    kurtosis_vs_er,
    outlier_features,
    pruning,
    wise_ft,
)
from experiments import study as studies
from experiments.study import Experiment, Study
from jaxclip import report
from jaxclip.files import check_folder, sha256
from jaxclip.machine import keep_memory
from jaxclip.progress import console
from jaxclip.sections import GROUPS, Section, title, write

EXPERIMENTS: tuple[Experiment, ...] = (
    accuracy_and_er,
    kurtosis,
    outlier_features,
    importance,
    pruning,
    concepts,
    cka,
    kurtosis_vs_er,
    wise_ft,
)
VERDICTS = {True: "pass", False: "differs", None: "not run"}


def main(config: Path, out: Path = Path("report"), root: Path | None = None) -> None:
    """Run every experiment on what is there, and write the report.

    Args:
        config: A configuration, such as experiments/configs/paper.py.
        out: The folder to write index.html, tables/, figures/ and results/ to.
        root: The folder where checkpoints and store are. Left out: $JAXCLIP_ROOT, or this folder.
    """
    with studies.exit_on_input_error():
        check_folder(out)
        study = dataclasses.replace(studies.load(config, root), results=out / "results")
        page, compared = reproduce(study, out, {"Configuration": f"{config.name} (SHA-256 {sha256(config)})"})
    show(study, page, compared)


def show(study: Study, page: Path, compared: list[tuple[findings.Finding, findings.Verdict]]) -> None:
    """Prints what is missing, the comparison with the paper, and where the report is."""
    terminal = console()
    absent = [row[0] for row in studies.missing(study) if all(n is None for n in row[4:])]
    terminal.print(f"models with no representations: {len(absent)} of {len(study.models)}", ", ".join(absent), sep="\n")
    if empty := studies.absent_sets(study):
        terminal.print(Text(f"no model has representations of {', '.join(empty)}"))
    for finding, verdict in compared:
        said = VERDICTS[verdict.agrees]
        terminal.print(Text.assemble((f"{said:8}", "bold"), f" {finding.paper} ", (verdict.found, "dim")))
    terminal.print(f"written: {page}")


def reproduce(
    study: Study, out: Path, facts: dict[str, object] | None = None
) -> tuple[Path, list[tuple[findings.Finding, findings.Verdict]]]:
    """Writes the report of a study, and returns its page and the comparison with the paper.

    The same inputs give the same bytes, whether results were computed or found.
    """
    sections = [experiment.run(study) for experiment in EXPERIMENTS]
    compared = [(finding, finding.judge(study)) for finding in findings.FINDINGS]
    first = [_comparison(compared), _present(study)]
    page = write(out, study.title, _lead(study, compared), [*first, *sections, _provenance(study, facts or {})])
    return page, compared


def _lead(study: Study, compared: list[tuple[findings.Finding, findings.Verdict]]) -> str:
    counts = Counter(VERDICTS[verdict.agrees] for _, verdict in compared)
    there = sum(bool(sets) for sets in study.stored.values())
    said = ", ".join(f"{counts[what]} {what}" for what in VERDICTS.values())
    return (
        f'<p class="lead">{there} of {len(study.models)} models have representations here. Of the paper’s '
        f"{len(compared)} statements: {said}.</p>{study.note}"
    )


def _comparison(compared: list[tuple[findings.Finding, findings.Verdict]]) -> Section:
    section = Section("The paper found, this run found")
    section.table(
        ["", "The paper found", "This run found", "Verdict", "Criterion"],
        [
            [str(i), f.paper, v.found if v.agrees is not None else "", VERDICTS[v.agrees], f.criterion]
            for i, (f, v) in enumerate(compared, 1)
        ],
        "The paper’s statements beside this run. The criteria are this project’s reading of the paper’s words, fixed "
        "in <code>experiments/findings.py</code>.",
        "findings",
    )
    return section


def _present(study: Study) -> Section:
    section = Section("What was there")
    sets = [title(name) for name in study.sets]
    if empty := studies.absent_sets(study):
        section.text(report.notice(f"No model has representations of {html.escape(', '.join(empty))}."))
    section.table(
        ["Model", "Group", "Training set", "Head", *sets],
        studies.missing(study),
        "Pictures with stored representations, by model and set; a dash is missing. Head: whether the head is "
        "there, or the checkpoint to make it from.",
        "present",
        dict.fromkeys(sets, ","),
    )
    return section


def _provenance(study: Study, facts: dict[str, object]) -> Section:
    section = Section("Provenance")
    options = {
        field.replace("_", " ").capitalize(): value
        for field, value in dataclasses.asdict(study.options).items()
        if not isinstance(value, tuple)
    }
    counted = Counter(study.groups.values())
    models = ", ".join(f"{counted[group]} {GROUPS[group]}" for group in GROUPS if counted[group])
    section.text(report.provenance({**facts, "Models": models, **options, **report.environment()}))
    rows = []
    for name, mine in study.stored.items():
        for stored in mine.values():
            identity = stored.manifest["identity"]
            digests = (stored.folder.name, identity["model"], identity["data"])
            types = f"{identity['dtype']} / {identity['store_dtype']}"
            rows.append([name, title(stored.name), types, identity["jaxclip"], *(digest[:12] for digest in digests)])
    if rows:
        section.table(
            ["Model", "Set", "Computed / stored", "jaxclip", "Key", "Weights", "Data"],
            rows,
            "The representations: the first letters of their key in the store, and of the digests of weights and data.",
            "representations",
        )
    return section


if __name__ == "__main__":
    keep_memory()
    tyro.cli(main)
