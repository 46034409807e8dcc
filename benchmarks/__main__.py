"""``python -m benchmarks``: jaxclip beside its peers on this machine, kept in results.json, shown in the README."""

import json
from pathlib import Path
from typing import Any

import tyro

from benchmarks import analysis, encoders, end_to_end, gpu, input_pipeline, scaling, training
from benchmarks.contest import can_run, machine, span
from jaxclip.files import new_file, replace_section

RESULTS = Path(__file__).parent / "results.json"
README = Path(__file__).parent.parent / "README.md"
SUITES: dict[str, Any] = {
    "encoders": encoders, "end_to_end": end_to_end, "input": input_pipeline, "training": training, "gpu": gpu,
    "analysis": analysis, "scaling": scaling,
}  # fmt: skip


def main(only: str = "", readme: bool = True) -> None:
    """Measure what has no result yet, keep the results, and put the tables into the README.

    Args:
        only: Measure what has this in its name ("encoders", "ViT-B/32", …), results or not.
        readme: Write the tables into the README; else print them.
    """
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for suite, module in SUITES.items():
        for label in module.CASES:
            name = f"{suite} {label}"
            if only not in name or (not only and label in results.get(suite, {})) or not can_run(label):
                continue
            print(f"{name} …", flush=True)
            found = {"machine": machine(), **module.measure(label)}
            results.setdefault(suite, {})[label] = found
            with new_file(RESULTS) as file:
                json.dump(results, file, indent=1)
                file.write("\n")
    text = tables(results)
    if readme:
        replace_section(README, "benchmarks", text)
    else:
        print(text)


def tables(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown tables of all results, each under the machines that they were measured on."""
    parts = []
    for suite, module in SUITES.items():
        done = {label: results[suite][label] for label in module.CASES if label in results.get(suite, {})}
        if done:
            machines = _machines([result["machine"] for result in done.values()])
            parts.append(f"{module.TITLE} ({machines}):\n\n{module.table(done)}")
    return "\n\n".join(parts)


def _machines(names: list[str]) -> str:
    """Each machine once, with the least and the most of its loads."""
    loads: dict[str, list[float]] = {}
    for name, _, load in (name.partition(", load ") for name in names):
        loads.setdefault(name, []).extend([float(load)] if load else [])
    return "; ".join(f"{name}, load {span(some, '.1f')}" if some else name for name, some in loads.items())


if __name__ == "__main__":
    tyro.cli(main)
