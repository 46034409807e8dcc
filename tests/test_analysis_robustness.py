"""Effective robustness against scipy's fit and planted truth; its data against their sources; the experiment."""

import csv
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from scipy import stats

from experiments import effective_robustness as experiment
from jaxclip import report
from jaxclip.accuracies import published_accuracies, read_accuracies, standard_models
from jaxclip.analysis import SHIFTS, effective_robustness, predicted_accuracy
from jaxclip.errors import InputError

SOURCE = {
    "imagenet": ("val", "ImageNet 1k"),
    "imagenet_v2": ("imagenetv2-matched-frequency-format-val", "ImageNet v2"),
    "imagenet_r": ("imagenet-r", "ImageNet-R"),
    "imagenet_sketch": ("imagenet-sketch", "ImageNet Sketch"),
    "objectnet": ("objectnet-1.0-beta", "ObjectNet"),
    "imagenet_a": ("imagenet-a", "ImageNet-A"),
    "imagenet_on_imagenet_r": ("val-on-imagenet-r-classes", None),
    "imagenet_on_objectnet": ("val-on-objectnet-classes", None),
    "imagenet_on_imagenet_a": ("val-on-imagenet-a-classes", None),
}


def logit(p):
    return np.log(p / (1 - p))


def source(name: str) -> list[dict[str, str]]:
    file = SHARED / "robustness" / name
    if not file.is_file():
        pytest.skip(f"the source's table is missing: {file}")
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_baselines_are_the_testbed_s_standard_models():
    """The packaged table is the source's, all standard models and no other: a wrong column would move every line."""
    kinds = {row["model"]: row["type"] for row in source("imagenet_testbed_model_types.csv")}
    rows = {r["model"]: r for r in source("imagenet_testbed_top1.csv") if kinds.get(r["model"]) == "standard"}
    ours = standard_models()
    assert set(ours.models) == set(rows) and len(ours.models) == 87
    for column, (theirs, _) in SOURCE.items():
        expected = [float(rows[model][theirs] or "nan") / 100 for model in ours.models]
        np.testing.assert_allclose(ours.columns[column], expected, atol=5e-7, err_msg=column)


def test_published_accuracies_are_open_clip_s():
    """The packaged table has every row of the source, digit for digit, and every registry entry finds its row."""
    rows = {f"{row['name']}/{row['pretrained']}": row for row in source("openclip_results.csv")}
    ours = published_accuracies()
    assert list(ours.models) == list(rows)
    for column in ("imagenet", *SHIFTS):
        np.testing.assert_array_equal(ours.columns[column], [float(row[SOURCE[column][1]]) for row in rows.values()])
    shown = experiment.registry_models()
    assert len(shown.accuracies.models) >= 17 and not np.isnan(shown.accuracies.columns["imagenet_a"]).any()


@pytest.mark.parametrize("x", ["full", "subset"])
def test_lines_are_scipy_s(x):
    """Slope, intercept and R² of each shift equal scipy's regression on the models that have a logit."""
    table = standard_models().columns
    found = effective_robustness(table, table, x, samples=50)
    for shift, fit in found.fits.items():
        own = x == "subset" and shift in ("imagenet_r", "objectnet", "imagenet_a")
        across, up = table[f"imagenet_on_{shift}" if own else "imagenet"], table[shift]
        good = (up > 0) & (up < 1)
        line = stats.linregress(logit(across[good]), logit(up[good]))
        assert fit[:3] == pytest.approx((line.slope, line.intercept, line.rvalue**2), rel=1e-4)
        assert (fit.models, fit.excluded) == (good.sum(), 87 - good.sum())
        expected = up - 1 / (1 + np.exp(-(line.slope * logit(across) + line.intercept)))
        np.testing.assert_allclose(found.shift[shift], expected, atol=1e-5)
    np.testing.assert_allclose(found.mean, np.mean([found.shift[s] for s in SHIFTS], axis=0), atol=1e-6)
    assert {s for s, f in found.fits.items() if f.excluded} == {"imagenet_r", "imagenet_a"}, "ResNet-50 has 0 on -A"


def planted(slope: float, intercept: float, gain: float, count: int = 12) -> tuple[dict, dict]:
    """Baselines exactly on a line for every shift, and one model that lies ``gain`` above it."""
    x = np.linspace(0.4, 0.85, count)
    line = 1 / (1 + np.exp(-(slope * logit(x) + intercept)))
    baselines = {"imagenet": x, **dict.fromkeys(SHIFTS, line)}
    at = 1 / (1 + np.exp(-(slope * logit(0.7) + intercept)))
    return {"imagenet": [0.7], **{shift: [at + gain] for shift in SHIFTS}}, baselines


@settings(max_examples=15, deadline=None)
@given(st.floats(0.5, 2), st.floats(-2, 0), st.floats(0, 0.15))
def test_planted_robustness_is_recovered(slope, intercept, gain):
    """A model planted above an exact line has exactly that effective robustness, and an interval of no width."""
    model, baselines = planted(slope, intercept, gain)
    found = effective_robustness(model, baselines, samples=50)
    for shift in SHIFTS:
        assert found.fits[shift][:3] == pytest.approx((slope, intercept, 1), abs=1e-4)
        assert found.shift[shift] == pytest.approx([gain], abs=1e-5)
        assert found.shift_interval[shift] == pytest.approx(np.array([[gain, gain]]), abs=1e-4)
    assert predicted_accuracy(0.7, found.fits["objectnet"]) == pytest.approx(model["objectnet"][0] - gain, abs=1e-5)
    order = np.random.default_rng(0).permutation(12)
    shuffled = {name: values[order] for name, values in baselines.items()}
    assert effective_robustness(model, shuffled, samples=50).mean == pytest.approx(found.mean, abs=1e-5)


def test_interval_is_the_bootstrap_s():
    """The interval agrees with a plain numpy bootstrap over baseline models, holds the estimate, follows the key."""
    table, models = standard_models().columns, published_accuracies().columns
    found = effective_robustness(models, table, key=jax.random.key(0))
    again = effective_robustness(models, table, key=jax.random.key(0))
    other = effective_robustness(models, table, key=jax.random.key(1))
    np.testing.assert_array_equal(found.mean_interval, again.mean_interval)
    assert (found.mean_interval != other.mean_interval).any()
    random = np.random.default_rng(0)
    x, y = logit(table["imagenet"]), logit(table["objectnet"])
    draws = []
    for _ in range(2000):
        some = random.integers(0, len(x), len(x))
        slope, intercept = np.polyfit(x[some], y[some], 1)
        line = 1 / (1 + np.exp(-(slope * logit(models["imagenet"][0]) + intercept)))
        draws.append(models["objectnet"][0] - line)
    np.testing.assert_allclose(found.shift_interval["objectnet"][0], np.quantile(draws, (0.025, 0.975)), atol=1.5e-3)
    assert ((found.mean_interval[:, 0] < found.mean) & (found.mean < found.mean_interval[:, 1])).all()


def test_draws_of_one_baseline_have_no_line():
    """Of three baselines on one line every draw of two gives that line, and a draw of one none: no interval is wide."""
    model, baselines = planted(1.1, -0.7, 0.05, count=3)
    found = effective_robustness(model, baselines, samples=300)
    for shift in SHIFTS:
        assert found.shift_interval[shift] == pytest.approx(np.array([[0.05, 0.05]]), abs=1e-4)


def test_missing_and_extreme_accuracies():
    """A missing shift makes that shift and the mean NaN, not a mean over fewer; 0 under shift is a valid accuracy."""
    model, baselines = planted(1, -1, 0.0)
    model = {**model, "imagenet_a": [0.0], "imagenet_r": [np.nan]}
    del model["objectnet"]
    baselines["imagenet_a"] = np.where(np.arange(12) < 2, 0.0, baselines["imagenet_a"])
    found = effective_robustness(model, baselines, samples=50)
    assert np.isnan(found.mean[0]) and np.isnan(found.shift["imagenet_r"][0]) and np.isnan(found.shift["objectnet"][0])
    assert found.shift["imagenet_a"][0] == pytest.approx(-predicted_accuracy(0.7, found.fits["imagenet_a"]), abs=1e-6)
    assert (found.fits["imagenet_a"].models, found.fits["imagenet_a"].excluded) == (10, 2)


def test_accuracies_of_1_have_no_logit():
    """A baseline with an accuracy of 0 or 1, on ImageNet or under shift, is left out of the line, which stays exact."""
    model, baselines = planted(1.2, -0.5, 0.05)
    baselines = {name: np.append(values, values[[3, 5, 7]]) for name, values in baselines.items()}
    baselines["imagenet"][12:14] = 0, 1
    baselines["imagenet_v2"][14] = 1
    baselines["imagenet_r"][14] = 0
    fits = effective_robustness(model, baselines, samples=50).fits
    for shift, fit in fits.items():
        assert fit[:3] == pytest.approx((1.2, -0.5, 1), abs=1e-4), shift
        assert fit[3:] == ((12, 3) if shift in ("imagenet_v2", "imagenet_r") else (13, 2))


def test_interval_of_the_mean_is_of_one_draw_for_all_shifts():
    """Where two shifts' residuals cancel, their mean hardly moves with the baselines, however much each shift does: a
    mean of intervals, or a draw for each shift, would be as wide as theirs.
    """
    x = np.linspace(0.4, 0.8, 30)
    residual = 0.4 * np.random.default_rng(0).standard_normal(30)
    up, down = (1 / (1 + np.exp(-sign * residual)) for sign in (1, -1))  # whatever x, so that both are around 0.5
    shifts = ("imagenet_v2", "imagenet_sketch")
    baselines, model = (
        {"imagenet": x, shifts[0]: up, shifts[1]: down},
        {"imagenet": [0.6], **{shift: [0.5] for shift in shifts}},
    )
    found = effective_robustness(model, baselines, samples=300, shifts=shifts)
    width = {shift: float(np.ptp(found.shift_interval[shift])) for shift in shifts}
    assert min(width.values()) > 0.05
    assert np.ptp(found.mean_interval) < 0.001


def test_bad_tables():
    """Each mistake is one clear error that names table, column and row."""
    model, baselines = planted(1, -1, 0.0)
    for accuracies, base, x, message in (
        ({}, baselines, "full", "accuracies: column 'imagenet' is missing"),
        ({**model, "imagenet_v2": [70.0]}, baselines, "full", "accuracies: row 0 of 'imagenet_v2' is 70.0"),
        ({**model, "imagenet_c": [0.7]}, baselines, "full", "unknown column 'imagenet_c'"),
        ({**model, "objectnet": [0.7, 0.8]}, baselines, "full", "'objectnet' has 2 models, and 'imagenet' has 1"),
        (model, {"imagenet": [0.5]}, "full", "baselines: column 'imagenet_v2' is missing"),
        (model, {k: v[:2] for k, v in baselines.items()}, "full", "baselines: 2 models .* imagenet_v2"),
        (model, baselines, "subset", "accuracies: column 'imagenet_on_imagenet_r' is missing"),
        (model, baselines, "half", "'half', not one of full, subset"),
        (model, {**baselines, "imagenet": np.full(12, 0.7)}, "full", "all have the same ImageNet accuracy"),
    ):
        with pytest.raises(InputError, match=message):
            effective_robustness(accuracies, base, x)
    for options, message in (({"samples": 0}, "samples is 0"), ({"shifts": "objectnet"}, "shifts are 'objectnet'")):
        with pytest.raises(InputError, match=message):
            effective_robustness(model, baselines, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the column 'model'"),
        ("model,imagenet,imagenet_v2\n", "no model below"),
        ("name,imagenet,imagenet_v2\na,0.5,0.5\n", "unknown column 'name'"),
        ("model,imagenet\na,0.5\n", "at least one of imagenet_v2"),
        ("model,imagenet,imagenet_v2\na,0.5\n", "line 2: not 3 cells"),
        ("model,imagenet,imagenet_v2\na,0.5,0.5,0.5\n", "line 2: not 3 cells"),
        ("model,imagenet,imagenet_v2\na,0.5,0.5\na,0.5,0.5\n", "line 3: the model's name 'a' is empty or stands twice"),
        (
            "model,imagenet,imagenet_v2\na,0.5,63 %\n",
            "line 2, column imagenet_v2: '63 %' is not a number: divide percent by 100",
        ),
        ("model,imagenet,imagenet_v2\na,0.5,x\n", "'x' is not a number; leave the cell empty"),
        ("model,imagenet,imagenet_v2\na,0.5,0.5\n a ,0.5,0.5\n", "line 3: the model's name 'a' is empty or stands"),
        ("model,imagenet,imagenet_v2\na,0.5,63\n", "63 is not an accuracy from 0 to 1: divide percent by 100"),
        ("model,imagenet,imagenet_v2\na,0.5,nan\n", "nan is not an accuracy"),
        ('model,"imagenet,imagenet_v2\na,0.5,0.5\n', r"line 2: not CSV \(unexpected end of data\)"),
        ('model,imagenet,imagenet_v2\n"a,0.5,0.5\n', r"line 2: not CSV \(unexpected end of data\)"),
    ],
)
def test_bad_files_are_explained(tmp_path, text, message):
    """A user's table with a mistake is one error that names file, line and column, and says what to do."""
    file = tmp_path / "my.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_accuracies(file)
    assert str(file) in str(error.value)


def test_unreadable_files(tmp_path):
    """A missing file, a folder and a binary file are errors that name it."""
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x9f")
    for name in ("missing.csv", ".", "binary.csv"):
        with pytest.raises(InputError, match=r"No such file|directory|is not text"):
            read_accuracies(tmp_path / name)


def test_experiment_for_a_user_s_models(tmp_path):
    """A user's CSV gives the models' and the lines' tables and the figure, with what is missing left empty."""
    file = tmp_path / "my.csv"
    file.write_text("﻿model,imagenet,imagenet_v2,imagenet_r\nmine_1,0.7,0.65,\nmine_2,0.6,0.5,0.4\n")
    section = experiment.run(file)
    columns, cells, _ = section.tables["effective-robustness"]
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    assert [row["Model"] for row in rows] == ["mine_1", "mine_2"]
    found = effective_robustness(read_accuracies(file).columns, standard_models().columns, samples=50)
    assert [row["ER on ImageNet-V2"] for row in rows] == pytest.approx(found.shift["imagenet_v2"])
    assert rows[0]["ER on ImageNet-R"] is rows[0]["ER"] is rows[1]["ER on ObjectNet"] is None
    _, lines, _ = section.tables["lines"]
    assert [tuple(line[1:]) for line in lines] == list(found.fits.values())
    assert len(section.figures["effective-robustness"].axes) == 6, "five panels and the legend"
    assert "0 of 0 models have a positive mean" in "".join(section.blocks)
    # Accuracies of 0 and 1 are accuracies: a small -A split has them.
    file.write_text("model,imagenet,imagenet_v2,imagenet_r,imagenet_sketch,objectnet,imagenet_a\nup,0.7"
                    + ",0.7" * 4 + ",1\ndown,0.7" + ",0.2" * 4 + ",0\nalso,0.7" + ",0.1" * 5)  # fmt: skip
    section = experiment.run(file)
    found = effective_robustness(read_accuracies(file).columns, standard_models().columns, samples=50)
    rows = [dict(zip(columns, row, strict=True)) for row in section.tables["effective-robustness"][1]]
    assert [row["ER"].value for row in rows] == pytest.approx(found.mean) and (found.mean > 0).tolist() == [True] + [
        False
    ] * 2
    assert "1 of 3 models have a positive mean" in "".join(section.blocks)


def test_a_user_s_table_without_the_subset_columns(tmp_path):
    """The message names the file and the command that measures what is missing; V2 and Sketch need no column."""
    file = tmp_path / "my.csv"
    file.write_text("model,imagenet,imagenet_v2,imagenet_a\nmine,0.7,0.65,0.2\n")
    with pytest.raises(InputError, match=r"my.csv has no column 'imagenet_on_imagenet_a': .*evaluate --subset"):
        experiment.run(file, "subset")
    with pytest.raises(InputError, match="give a CSV file"):
        experiment.run(tmp_path)


def test_a_user_s_models_have_a_colour_of_their_own(tmp_path):
    """They are ink, which no training set has; more sets than colours share one, and it is said."""
    file = tmp_path / "my.csv"
    file.write_text("model,imagenet,imagenet_v2\nmine,0.7,0.65\n")
    figure = experiment.run(file).figures["effective-robustness"]
    points = {to_hex(points.get_facecolor()[0]): points for points in figure.axes[0].collections}
    np.testing.assert_allclose(points[report.INK].get_offsets(), [[logit(0.7), logit(0.65)]], rtol=1e-6)
    many = [f"set {i}" for i in range(8) for _ in range(10 - i)]
    names = experiment._names(many)
    assert set(names.values()) == {*(f"set {i}" for i in range(5)), "others"}


def test_the_legend_is_whole(tmp_path):
    """All that is named in it is within the figure and none of it over another, with every kind of model that is."""
    file = tmp_path / "my.csv"
    file.write_text("model,imagenet,imagenet_v2,imagenet_r,imagenet_sketch,objectnet,imagenet_a\nmine" + ",0.5" * 6)
    figure = experiment.run(file).figures["effective-robustness"]
    with report.style():
        figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.axes[-1].get_legend().get_texts() if t.get_text()]
    page = figure.bbox
    assert all(page.x0 <= b.x0 and page.y0 <= b.y0 and b.x1 <= page.x1 and b.y1 <= page.y1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.slow
def test_experiment_of_the_registry_as_a_command(tmp_path):
    """The command works with nothing but the package: the 17 zero-shot CLIPs of the paper lie above all five lines."""
    command = [sys.executable, "-m", "experiments.effective_robustness", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ViT-L-14/openai" in done.stdout
    with (tmp_path / "tables" / "effective-robustness.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) >= 17
    assert all(float(row[f"ER on {name}"]) > 0 for row in rows for name in experiment.TITLES.values())
