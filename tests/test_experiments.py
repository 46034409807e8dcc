"""The experiments on a synthetic study: planted truths come out, what is missing is named, a killed run goes on."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import synthetic_study as synthetic
from browser import needs_browser, title_of
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments import accuracy_and_er, cka, concepts, findings, kurtosis_vs_er, pruning, reproduce
from experiments import study as studies
from experiments.study import Study
from jaxclip import analyze, report
from jaxclip.analysis import SHIFTS, linear_cka
from jaxclip.datasets.named import Concepts
from jaxclip.errors import InputError
from jaxclip.sections import GROUPS, Section, group_color, title
from jaxclip.store import MANIFEST, Representations

PAPER = Path(__file__).parent.parent / "experiments" / "configs" / "paper.py"


def legend(figure: Figure) -> set[str]:
    """The words of the legend in the last panel."""
    return {text.get_text() for text in figure.axes[-1].get_legend().get_texts()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("synthetic")
    return dataclasses.replace(synthetic.make(root), results=root / "results")


def test_planted_outlier_feature_and_privileged_direction(made: Study) -> None:
    """The one coordinate that is huge, and the one direction that reads it, in the robust models and in no other."""
    activations, directions = studies.activations(made), studies.directions(made)
    for name, a in activations.items():
        robust = made.groups[name] == "zero-shot"
        assert a.outliers == ([synthetic.OUTLIER] if robust else []), name
        assert (a.kurtosis > 30) == robust, f"{name}: kurtosis {a.kurtosis}"
    for name, d in directions.items():
        robust = made.groups[name] == "zero-shot"
        assert (d.max_over_mean > 10) == robust, name
        if robust:
            assert d.features[0][0] == synthetic.OUTLIER and d.coordinates[0][0] > 0.99, name


def test_planted_concepts(made: Study) -> None:
    """Exactly the concepts that lie along directions are encoded, each by one direction, and none by chance."""
    for name, c in studies.concepts(made).items():
        planted = {f"synthetic concept {i}": 1 for i in range(synthetic.ENCODED[made.groups[name]])}
        assert c.encoded == planted, name
        assert c.unique["permuted_labels"] == 0 and c.polysemanticity["directions"] == 1
        assert c.unique_over["directions"][c.thresholds.index(0.9)] == c.unique["directions"]


def test_the_top_images_of_a_concept_have_it(made: Study) -> None:
    """A direction's sign or an image's id that is off would show pictures without the concept."""
    name, c = next(iter(studies.concepts(made).items()))
    stored = made.stored[name]["broden"]
    has = dict(zip(stored.ids, synthetic.planted_concepts(stored).matrix.toarray(), strict=True))
    assert c.best and all(has[i][int(b["concept"].split()[-1])] for b in c.best for i in b["top_images"][:3])


def test_pruning_four_fifths(made: Study) -> None:
    """The robust heads have 13 directions of 64, so that 80 % can go; the others need all."""
    for name, p in studies.prunings(made).items():
        lost = np.array(p.accuracy["imagenet2012"])[0] - np.array(p.accuracy["imagenet2012"])[p.fractions.index(0.8)]
        assert (lost < 0.01) if made.groups[name] == "zero-shot" else (lost > 0.4), name


def test_accuracy_is_that_of_numpy(made: Study) -> None:
    """With the classes of -A, and any right class of ObjectNet's; and pruning nothing changes nothing."""
    name = "synthetic-zero-shot-a"
    W = studies.head(made, name).W
    found, pruned = studies.accuracies(made)[name], studies.prunings(made)[name]
    for set_ in ("imagenet2012", "imagenet_a", "objectnet"):
        stored = made.stored[name][set_]
        data = analyze.labelled(stored)
        chosen = data.classes[(np.asarray(stored) @ W[data.classes].T).argmax(1)]
        value = data.answers[stored.labels, chosen].mean()
        assert 0.3 < value < 1 and len(data.classes) == {"imagenet_a": 200, "objectnet": 125}.get(set_, 1000)
        assert found[set_].value == pytest.approx(value, abs=1e-9), set_
        assert pruned.accuracy[set_][0] == pytest.approx(value, abs=0.01), set_


def test_effective_robustness_needs_all_five_shifts(made: Study) -> None:
    accuracies = studies.accuracies(made)
    result = studies.robustness(made, accuracies)
    assert result is not None
    er = dict(zip(accuracies, result.mean, strict=True))
    assert np.isnan(er[synthetic.NO_OBJECTNET]), "a mean over four shifts is another quantity"
    robust = [v for name, v in er.items() if made.groups[name] == "zero-shot"]
    assert min(robust) > max(v for name, v in er.items() if made.groups[name] != "zero-shot" and not np.isnan(v))
    pruned = studies.pruned_robustness(made, studies.prunings(made))
    for name in er:
        np.testing.assert_allclose(pruned[name][0], er[name], atol=0.01, err_msg="nothing pruned, another robustness")


def test_what_is_missing_is_named(made: Study) -> None:
    rows = {row[0]: row for row in studies.missing(made)}
    place = 4 + made.sets.index("objectnet")
    assert rows[synthetic.NO_OBJECTNET][place] is None and rows["synthetic-supervised-a"][place] == synthetic.IMAGES
    assert rows[synthetic.NO_HEAD][3] == "no" and set(rows[synthetic.ABSENT][4:]) == {None}
    assert set(studies.directions(made)) == set(synthetic.MODELS) - {synthetic.NO_HEAD, synthetic.ABSENT}
    assert synthetic.NO_HEAD in studies.activations(made), "kurtosis needs no head"


def test_results_are_read_and_not_computed_again(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = studies.activations(made)
    monkeypatch.setattr(analyze, "activations", lambda *_: pytest.fail("computed again"))
    assert studies.activations(made) == before
    other = dataclasses.replace(made, options=dataclasses.replace(made.options, outlier_threshold=5.0))
    with pytest.raises(pytest.fail.Exception):
        studies.activations(other)


def test_what_decides_a_result_is_in_its_name(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option that an analysis heeds, and the head's prompts: else another run's numbers pass for this one's."""

    class Stop(BaseException):
        pass

    def stop(study, what, name, stored, inputs, compute):
        raise Stop(analyze.plain(inputs))

    def inputs(function, study: Study) -> dict:
        with pytest.raises(Stop) as caught:
            function(study)
        return caught.value.args[0]

    monkeypatch.setattr(studies, "_cached", stop)
    shares = {"fractions": (0.0, 1.0)}
    concepts = {"directions": "coordinates", "concept_threshold": 0.8, "concept_thresholds": (0.5,), "negatives": "all",
                "min_images": 30, "seed": 1}  # fmt: skip
    heeded = {
        studies.activations: {"outlier_threshold": 5.0},
        studies.directions: {"importance": "projection"},
        studies.accuracies: {"x": "subset"},
        studies.prunings: {"importance": "projection", "x": "subset", **shares},
        studies.concepts: concepts,
    }
    for function, changes in heeded.items():
        before = inputs(function, made)
        for option, value in changes.items():
            options = dataclasses.replace(made.options, **{option: value})
            assert inputs(function, dataclasses.replace(made, options=options)) != before, (function.__name__, option)
        prompts = dataclasses.replace(made, templates=("a {}.",))
        assert (inputs(function, prompts) == before) == (function is studies.activations), function.__name__


def test_other_concepts_are_other_results(made: Study) -> None:
    """Concepts that are read by a function of the same name, but of other pictures, are computed again."""
    name = "synthetic-zero-shot-a"
    before = studies.concepts(made)[name]

    def planted_concepts(stored: Representations) -> Concepts:
        found = synthetic.planted_concepts(stored)
        return found._replace(matrix=found.matrix[::-1])

    planted_concepts.__qualname__ = synthetic.planted_concepts.__qualname__
    assert before.unique["directions"] == synthetic.ENCODED["zero-shot"]
    other = dataclasses.replace(made, read_concepts=planted_concepts)
    assert studies.concepts(other)[name].unique["directions"] == 0


def test_a_mean_over_the_shifts_is_over_all(made: Study) -> None:
    """The model without ObjectNet has no mean accuracy beside means over five shifts."""
    _, rows, _ = pruning.run(made).tables["pruning"]
    means = {str(row[0]): row[2] for row in rows if row[1] == "mean of the shifts"}
    assert means[synthetic.NO_OBJECTNET] is None and isinstance(means["synthetic-zero-shot-a"], float)


def test_a_model_without_a_shift_is_named_under_the_pruning_figure(made: Study) -> None:
    """Its line is missing in two of three panels."""
    text = "".join(pruning.run(made).blocks)
    assert f"Not in every panel, since a shift is missing: {synthetic.NO_OBJECTNET}." in text
    one = studies.with_models(made, made.models[:1])
    assert "Not in every panel" not in "".join(pruning.run(one).blocks)


def test_every_number_of_the_pruning_curves_can_be_taken_away(made: Study) -> None:
    section, found = pruning.run(made), studies.prunings(made)
    columns, rows = section.downloads["pruning-curves"]
    assert columns == ["Model", "Share pruned", *map(title, ("imagenet2012", *SHIFTS)), "ER"]
    assert len(rows) == len(found) * len(made.options.fractions)
    mine = [row for row in rows if row[0] == synthetic.NO_OBJECTNET]
    assert [row[2] for row in mine] == found[synthetic.NO_OBJECTNET].accuracy["imagenet2012"]
    assert {row[columns.index("ObjectNet")] for row in mine} == {row[-1] for row in mine} == {None}
    assert all(isinstance(row[-1], float) for row in rows if row[0] == "synthetic-zero-shot-a")


def test_models_have_the_colours_of_their_groups(made: Study) -> None:
    """In the scatter as in all other figures: by training set, 14 of the paper's share six colours."""
    figure = accuracy_and_er.run(made).figures["measured-robustness"]
    shown = {to_hex(points.get_facecolor()[0]) for points in figure.axes[0].collections}
    groups = {group_color(made.groups[name], made.groups) for name in studies.accuracies(made)}
    assert shown == groups | {report.MUTED}
    assert {"group", *(GROUPS[made.groups[name]] for name in studies.accuracies(made))} <= legend(figure)


def test_kurtosis_against_robustness_shows_both_intervals(made: Study) -> None:
    points = kurtosis_vs_er.both(made)
    figure = kurtosis_vs_er.run(made).figures["kurtosis-vs-er"]
    (ax,) = figure.axes
    across = [list(line.get_xdata()) for line in ax.lines]
    assert all([kurtosis.low, kurtosis.high] in across for kurtosis, _ in points.values())
    assert all(er.low < er.value < er.high for _, er in points.values())
    ticks = [ax.xaxis.get_major_formatter()(x) for x in (3, 10, 30)]
    assert ticks == ["3", "10", "30"], "in powers of ten"


def test_chance_stands_beside_polysemanticity(made: Study) -> None:
    columns, rows, _ = concepts.run(made).tables["concept-counts"]
    assert columns[5:8] == ["Concepts each", "Each, random", "Each, permuted"]
    found = studies.concepts(made)
    for row in rows:
        each = found[str(row[0])].polysemanticity
        shown = [each[k] for k in ("directions", "random_directions", "permuted_labels")]
        assert row[5:8] == [None if np.isnan(x) else x for x in shown]


def test_cka_of_few_images_is_biased_as_is_said(made: Study) -> None:
    """The report says how large CKA is by chance: so large is that of unrelated normal representations."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((synthetic.IMAGES, synthetic.D)).astype(np.float32) for _ in range(2))
    chance = linear_cka(a, b)
    text = "".join(cka.run(made).blocks)
    assert (
        f"at most {synthetic.D / (synthetic.IMAGES + synthetic.D):.2g} here" in text and "images of ImageNet:" in text
    )
    assert chance == pytest.approx(synthetic.D / (synthetic.IMAGES + synthetic.D), rel=0.05)
    sizes = {"few": {made.reference: np.empty((100, 64))}, "wide": {made.reference: np.empty((900, 300))}}
    study = SimpleNamespace(stored=sizes, reference=made.reference)
    assert cka._by_chance(study, list(sizes)) == 300 / (100 + 300), "at most: of the fewest images and the widest model"  # type: ignore[arg-type]


def test_cka_is_between_the_models_that_it_stands_for(made: Study) -> None:
    """The matrix is symmetric, each cell that of its two models; a group's mean is over its own pairs alone."""
    section, found = cka.run(made), studies.cka(made)
    (ax, _) = section.figures["cka"].axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    values = np.asarray(ax.collections[0].get_array()).reshape(len(names), len(names))
    np.testing.assert_allclose(values, values.T)
    for (a, b), value in found.items():
        assert values[names.index(a), names.index(b)] == value
        assert value == pytest.approx(
            linear_cka(*(np.asarray(made.stored[m]["imagenet2012"]) for m in (a, b))), abs=1e-6
        )
    columns, rows, _ = section.tables["cka-groups"]
    for row in rows:
        for column, mean in zip(columns[1:], row[1:], strict=True):
            mine = [
                v
                for pair, v in found.items()
                if sorted(GROUPS[made.groups[m]] for m in pair) == sorted([row[0], column])
            ]
            assert mean == (pytest.approx(np.mean(mine)) if mine else None), (row[0], column)


def test_overlap_is_jaccard_s_and_shared_concepts_come_first() -> None:
    """Over the union: few concepts are not alike to many that have them. By most models, then by most directions."""
    found = {
        "a": SimpleNamespace(encoded={"sky": 1, "dog": 1}),
        "b": SimpleNamespace(encoded={"sky": 1, "dog": 5, "sea": 9, "car": 1}),
        "c": SimpleNamespace(encoded={}),
        "d": SimpleNamespace(encoded={}),
    }
    section = Section("")
    concepts.overlap(section, found)  # type: ignore[arg-type]
    values = np.asarray(section.figures["concept-overlap"].axes[0].collections[0].get_array()).reshape(4, 4)
    np.testing.assert_array_equal(values[:2, :3], [[1, 0.5, 0], [0.5, 1, 0]])
    assert np.isnan(values[2:, 2:]).all(), "neither encodes any: nothing over nothing"
    concepts.shared(section, found)  # type: ignore[arg-type]
    assert section.tables["shared-concepts"][1] == [["dog", 2, 6], ["sky", 2, 2], ["sea", 1, 9], ["car", 1, 1]]


def test_a_file_in_the_way_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "afile").write_text("")
    with pytest.raises(SystemExit) as stopped, studies.exit_on_input_error():
        analyze.save_json(tmp_path / "afile" / "results" / "x.json", {})
    assert stopped.value.code == 2 and "a file is in the way" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError), studies.exit_on_input_error():  # a fault of the tool's keeps its traceback
        (tmp_path / "nowhere").read_text()


def test_an_interrupted_experiment_is_no_traceback() -> None:
    """Ctrl-C ends an experiment as it ends the other commands."""
    with pytest.raises(SystemExit) as stopped, studies.exit_on_input_error():
        raise KeyboardInterrupt
    assert stopped.value.code == 130


def test_sets_that_no_model_has_are_printed(made: Study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without the reference nothing runs: a terminal that says "not run" of everything is to say why."""
    reproduce.show(dataclasses.replace(made), tmp_path, [])
    assert "no model has" not in capsys.readouterr().out
    reproduce.show(dataclasses.replace(made, reference="mine", shifts=("other",)), tmp_path, [])
    assert "no model has representations of mine, other" in capsys.readouterr().out


def test_what_is_printed_of_a_study_is_no_markup(made: Study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    absent = dataclasses.replace(made.models[0], name="absent[/lr]")
    study = studies.with_models(made, [absent])
    reproduce.show(study, tmp_path, [(findings.FINDINGS[0], findings.Verdict(True, "[bold]found"))])
    printed = capsys.readouterr().out
    assert "absent[/lr]" in printed and "[bold]found" in printed.replace("\n", "")


def test_findings_without_the_share_that_they_are_about(made: Study) -> None:
    """ "80 %" is not said of the nearest share that was tried."""
    options = dataclasses.replace(made.options, fractions=(0.0, 0.5, 1.0))
    study = dataclasses.replace(made, options=options)
    assert [f.judge(study).agrees for f in findings.FINDINGS if "pruned" in f.paper] == [None, None]


def test_a_shift_that_the_testbed_has_not_judges_no_robustness(made: Study) -> None:
    """It has no line there, which must not stop the study after hours."""
    found = studies.accuracies(made)
    assert studies.robustness(made, found) is not None
    assert studies.robustness(dataclasses.replace(made, shifts=(*SHIFTS, "own")), found) is None


def test_no_finding_passes_on_no_evidence(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of no accuracy loses none of it, and of three models' orders one in six is perfect."""
    judge = {finding.paper: finding.judge for finding in findings.FINDINGS}
    (correlation,) = (judge[paper] for paper in judge if paper.startswith("Outlier features go with"))
    (pruned,) = (judge[paper] for paper in judge if paper.endswith("little loss of accuracy."))
    few = [model for model in made.models if model.name in list(kurtosis_vs_er.both(made))[:4]]
    assert correlation(made).agrees is not None
    assert correlation(studies.with_models(made, few)).agrees is None
    assert pruned(made).agrees is not None
    useless = {
        name: dataclasses.replace(p, accuracy={k: [0.04 for _ in y] for k, y in p.accuracy.items()})
        for name, p in studies.prunings(made).items()
    }
    monkeypatch.setattr(studies, "prunings", lambda study: useless)
    assert pruned(made).agrees is None


def test_one_other_group_is_enough_to_differ(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "The less robust models" are all of them; and privileged directions are few, at most 5 % of all (here 64)."""
    judge = {finding.paper: finding.judge for finding in findings.FINDINGS}
    activations, directions = studies.activations(made), studies.directions(made)

    def privileged(name: str, count: int) -> analyze.Directions:
        return dataclasses.replace(
            directions[name], importance=[20.0] * count + [1.0] * (64 - count), max_over_mean=9.0
        )

    group = made.groups
    outliers = {
        name: dataclasses.replace(a, kurtosis=50.0) if group[name] == "fine-tuned" else a
        for name, a in activations.items()
    }
    monkeypatch.setattr(studies, "activations", lambda study: outliers)
    assert judge["The less robust models have none."](made).agrees is False
    changed = {n: privileged(n, 1) if group[n] == "fine-tuned" else d for n, d in directions.items()}
    monkeypatch.setattr(studies, "directions", lambda study: changed)
    assert judge["The less robust models have no strongly privileged directions."](made).agrees is False
    for count, few in ((3, True), (4, False)):
        changed = {n: privileged(n, count) if group[n] == "zero-shot" else d for n, d in directions.items()}
        assert judge["Zero-shot CLIPs have few strongly privileged directions."](made).agrees is few


def test_concepts_are_compared_within_a_backbone(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide encoder encodes more; and many concepts speak for language only where there is little robustness."""
    unique = {"zero-shot-a": 10, "zero-shot-b": 10, "captions-a": 15, "supervised-a": 11, "supervised-b": 0}
    counts = {f"synthetic-{name}": SimpleNamespace(unique={"directions": n}) for name, n in unique.items()}
    monkeypatch.setattr(studies, "concepts", lambda study: counts)
    paired = findings._against_supervised(made, "zero-shot")
    assert paired == {"synthetic-zero-shot-a": (10, 11.0), "synthetic-zero-shot-b": (10, 0.0)}
    (language,) = (f.judge for f in findings.FINDINGS if f.paper.startswith("Many concepts go with language"))
    accuracies = studies.accuracies(made)
    for er, agrees in ((0.11, False), (0.09, True)):
        means = np.array([0.2 if made.groups[name] == "zero-shot" else er for name in accuracies])
        judged = SimpleNamespace(mean=means, mean_interval=np.stack([means, means], 1))
        monkeypatch.setattr(studies, "robustness", lambda *_, judged=judged: judged)
        assert language(made).agrees is agrees, "half of 0.2 is 0.1"


def test_the_lead_counts_models_and_verdicts(made: Study) -> None:
    verdicts = [findings.Verdict(agrees, "") for agrees in (True, True, False, None, None, None)]
    said = reproduce._lead(made, [(findings.FINDINGS[0], verdict) for verdict in verdicts])
    assert "7 of 8 models have representations here" in said
    assert "6 statements: 2 pass, 1 differs, 3 not run" in said


def test_findings_pass_where_planted_and_differ_where_not(made: Study) -> None:
    """The same numbers with the groups' names exchanged must not agree with the paper."""
    verdicts = [finding.judge(made).agrees for finding in findings.FINDINGS]
    kurtosis, others, privileged, unprivileged, correlation, pruned, robust, concepts, language = verdicts
    assert all([kurtosis, others, privileged, unprivileged, pruned, robust, concepts, language]), verdicts
    assert correlation is not None, "five models have both numbers"
    exchanged = synthetic.with_groups(made, {"zero-shot": "supervised", "supervised": "zero-shot"})
    verdicts = [finding.judge(exchanged).agrees for finding in findings.FINDINGS]
    assert not any([*verdicts[:4], verdicts[5], verdicts[7]]), verdicts


def test_cka_takes_two_models(made: Study) -> None:
    section = cka.run(studies.with_models(made, made.models[:1]))
    assert "it takes two models" in "".join(section.blocks) and not section.tables


def test_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(30)
    y = x + rng.standard_normal(30)
    found = kurtosis_vs_er.rank_correlation(x, y, 0)
    drawn = scipy.stats.bootstrap(
        (x, y), lambda a, b: scipy.stats.spearmanr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=2000, method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    assert found.value == scipy.stats.spearmanr(x, y).statistic
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.05)
    assert kurtosis_vs_er.rank_correlation(x, np.exp(x), 0)[:3] == pytest.approx((1, 1, 1))


def test_other_weights_are_refused(made: Study, tmp_path: Path) -> None:
    """A head of one checkpoint with representations of another would give numbers that mean nothing."""
    shutil.copytree(made.store, tmp_path / "store")
    for path in (tmp_path / "store").glob("head-*"):
        path.unlink()
    swapped = [dataclasses.replace(m, folder=made.models[1].folder) for m in made.models]
    study = dataclasses.replace(made, models=tuple(swapped), store=tmp_path / "store", results=tmp_path)
    with pytest.raises(InputError, match="other weights"):
        studies.head(study, made.models[0].name)
    stored = made.stored[made.models[0].name]["imagenet2012"]
    synthetic.put(
        tmp_path / "store",
        made.models[0].name,
        "0" * 64,
        stored.name,
        np.asarray(stored),
        stored.labels,
        stored.classes,
    )
    with pytest.raises(InputError, match="different weights"):
        _ = dataclasses.replace(study).stored  # of a new study, which reads the store anew


def test_two_stores_of_one_set_are_refused(made: Study, tmp_path: Path) -> None:
    """Of two downloads of one data set, embedded one after the other, the one with the lesser hash would be taken."""
    shutil.copytree(made.store, tmp_path / "store")
    name = made.models[0].name
    stored = made.stored[name]["imagenet_v2"]
    second = tmp_path / "store" / ("f" * 64)
    shutil.copytree(stored.folder, second)
    study = dataclasses.replace(made, store=tmp_path / "store", results=tmp_path)
    with pytest.raises(InputError, match="are both of imagenet_v2, by one model"):
        _ = study.stored
    with pytest.raises(InputError, match="'imagenet-r' is called 'imagenet_r' everywhere"):
        dataclasses.replace(study, shifts=("imagenet-r",))
    manifest = json.loads((second / MANIFEST).read_text())
    for called, known in (("imagenet-a", "imagenet_a"), ("my pictures", None)):
        manifest["data"]["name"] = called
        (second / MANIFEST).write_text(json.dumps(manifest))
        if known is not None:
            with pytest.raises(InputError, match=f"are both of ({called}|{known})"):
                _ = dataclasses.replace(study).stored
    assert dataclasses.replace(study).stored[name].keys() == made.stored[name].keys(), "a set of no study is no trouble"


def test_nothing_is_there(tmp_path: Path) -> None:
    """The paper's own configuration on an empty folder: every statement is "not run", and nothing fails."""
    study = dataclasses.replace(studies.load(PAPER, tmp_path), results=tmp_path / "results")
    assert len(study.models) == 40
    assert {finding.judge(study).agrees for finding in findings.FINDINGS} == {None}
    assert all(row[4:] == [None] * 7 for row in studies.missing(study))
    section = accuracy_and_er.run(study)
    assert "Not run for 40 of 40 models" in "".join(section.blocks)
    columns, rows, _ = section.tables["published-accuracy"]
    assert len(rows) >= 17, "the published accuracies are real numbers that are always there"
    (row,) = (dict(zip(columns, row, strict=True)) for row in rows if row[0] == "ViT-L-14/openai")
    published = {"imagenet2012": 0.7554, "imagenet_v2": 0.6983, "imagenet_r": 0.8784, "imagenet_sketch": 0.5959,
                 "objectnet": 0.6889, "imagenet_a": 0.7075}  # fmt: skip
    assert {title(name): value for name, value in published.items()}.items() <= row.items(), "open_clip's own table"


def test_bad_configurations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.py"):
        studies.load(tmp_path / "nowhere.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="get_config"):
        studies.load(tmp_path / "empty.py")


# --- the whole report ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(made: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    return reproduce.reproduce(dataclasses.replace(made, results=out / "results"), out)[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    made: Study, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = dataclasses.replace(made, results=tmp_path / "results")
    save, left = analyze.save_json, iter(range(11))

    def until_killed(path: Path, content: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        save(path, content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(analyze, "save_json", until_killed)
        reproduce.reproduce(study, tmp_path)
    first = {path: path.stat().st_mtime_ns for path in study.results.iterdir()}
    assert len(first) == 11 and not (tmp_path / "index.html").exists()
    resumed, _ = reproduce.reproduce(study, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in first} == first, "what was there was computed again"
    assert resumed.read_bytes() == page.read_bytes()


@pytest.mark.slow
def test_the_report_says_what_it_must(page: Path) -> None:
    text = page.read_text()
    for words in ("The paper found, this run found", "Synthetic models", synthetic.ABSENT, "Weights", "Seed", "jax "):
        assert words.casefold() in text.casefold(), words
    names = re.findall(r'download="([^"]*)\.csv"', text)
    assert len(names) == len(set(names)) >= 12, "two tables have one name"
    assert {path.stem for path in (page.parent / "tables").iterdir()} == set(names)
    assert not re.search(r"\bnan\b", re.sub(r"<[^>]*>", " ", text)), "a missing number is shown as nan"


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_report(page: Path, tmp_path: Path, width: int) -> None:
    """No message on the console, every figure drawn, nothing wider than the window."""
    probe = """<iframe id="page" src="%s" style="border: 0; width: %dpx; height: 900px"></iframe><script>
    page.onload = () => {
      const root = page.contentDocument.documentElement;
      const figures = [...root.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect());
      const flat = figures.filter((r) => r.width * r.height < 1e4).length;
      document.title = JSON.stringify({ overflow: root.scrollWidth - %d, figures: figures.length, flat });
    };
    </script>"""
    (tmp_path / "frame.html").write_text(probe % (page.as_uri(), width, width))
    found = title_of(tmp_path / "frame.html", width=1300)
    assert found["figures"] >= 10 and found["flat"] == 0, found
    assert found["overflow"] <= 0, f"the page scrolls sideways at {width} px"
