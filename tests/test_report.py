"""The report library: what a reader sees, sorts, downloads and hears, and that the page needs nothing but itself."""

import base64
import csv
import html
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import needs_browser, title_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from jaxclip import report
from jaxclip.analyze import Activations, ConceptSummary, Directions, Pruning
from jaxclip.evaluation import Accuracy
from jaxclip.sections import (
    Section,
    accuracy_table,
    best_concepts_table,
    concept_figure,
    concept_table,
    heat_map,
    importance_figure,
    importance_table,
    kurtosis_figure,
    kurtosis_table,
    outlier_figure,
    outlier_table,
    pruning_figure,
    pruning_table,
    write,
)

ROOT = Path(__file__).parent.parent
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Elements of a page, and what is wrong with its nesting."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self._open]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")


def check(text: str) -> Page:
    """Asserts what holds for every page: nesting, unique ids, links that lead somewhere, alternative texts."""
    page = Page(text)
    assert not page.faults, page.faults[:3]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)), "an id occurs twice, so links and clip paths of one figure may reach another"
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attrs.get(name)
            if value is None:
                continue
            assert value.startswith(("data:", "#")), f"<{tag} {name}> loads {value[:60]}"
            assert value == "#" or value.startswith("data:") or value[1:] in ids, f"{value} leads nowhere"
        if tag == "img":
            assert attrs.get("alt"), "a picture without an alternative text"
        if tag == "svg":
            assert attrs.get("role") == "img" and attrs.get("aria-label"), "a figure without an alternative text"
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.strip("'\"")[1:] in ids, f"url({target}) leads nowhere, or outside"
    assert "@import" not in text
    return page


def figure(height: float = 1.0) -> str:
    with report.style():
        fig = Figure()
        ax = fig.subplots()
        ax.plot([0, 1, 2], [0, height, 0], marker="o", label="line")
        ax.set_xlim(0.2, 1.8)  # clips, so that there is a clip path
        ax.legend()
    return report.figure(fig, "A line, σ<sub>i</sub>.", 'Up & down, "once"', "line")


def test_a_name_with_dollar_signs_is_drawn_as_it_is() -> None:
    """Matplotlib would take what is between them for mathematics, without the signs."""
    with report.style():
        fig = Figure()
        widths = [
            fig.text(0, 0, name, fontsize=8).get_window_extent(FigureCanvasAgg(fig).get_renderer()).width
            for name in ("$x$", "x", "$")
        ]
    assert widths[0] > widths[1] + widths[2]


HOSTILE = '<script>alert("x")</script> & 50 %'
ROWS: list[list[report.Cell]] = [
    ["held-out", report.Estimate(0.9712345678901234, 0.95, 0.98), 599, 1.5],
    [HOSTILE, report.Estimate(0.5, 0.25, 0.75), None, float("nan")],
    ["a,b", None, 12, -2.0],
]


def table() -> str:
    return report.table(["Set", "Accuracy", "Images", "x_1"], ROWS, "Caption.", "numbers", {"Accuracy": ".1%"})


def downloads(text: str) -> dict[str, str]:
    found = re.findall(r'href="data:[^,"]*;base64,([^"]*)" download="([^"]*)"', text)
    return {name: base64.b64decode(content).decode() for content, name in found}


def whole_page() -> str:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    return report.page(
        HOSTILE,
        report.notice("Toy."),
        {
            "One & two": [report.side_by_side(figure(), figure(2.0)), table()],
            "Three": [
                report.gallery({"row": [report.picture(pixels, HOSTILE, "7")] * 2}, "Pictures."),
                report.provenance({"Seed": 0, HOSTILE: HOSTILE}),
            ],
        },
    )


def test_a_page_is_well_formed_and_loads_nothing():
    page = check(whole_page())
    assert [tag for tag, _ in page.elements].count("script") == 1, "text that was given became a script"
    assert [
        attrs["href"] for tag, attrs in page.elements if tag == "a" and attrs["href"] in ("#one-two", "#three")
    ] == [
        "#one-two",
        "#three",
    ], "the list of contents does not lead to the sections"
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy and "default-src 'none'" in policy, (
        "a browser would load from outside if a caller's HTML asked for it"
    )


def test_equal_input_gives_equal_bytes():
    assert whole_page() == whole_page(), "a date, a random id or an order makes reports differ from run to run"


def test_csv_has_every_digit_and_the_intervals():
    text = downloads(table())["numbers.csv"]
    assert list(csv.reader(io.StringIO(text))) == [
        ["Set", "Accuracy", "Accuracy low", "Accuracy high", "Images", "x_1"],
        ["held-out", "0.9712345678901234", "0.95", "0.98", "599", "1.5"],
        [HOSTILE, "0.5", "0.25", "0.75", "", "nan"],
        ["a,b", "", "", "", "12", "-2.0"],
    ]


def test_latex_escapes_what_tex_reads():
    text = downloads(table())["numbers.tex"]
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{lrrr}", "text is left, numbers right"
    assert lines[2] == r"Set & Accuracy & Images & x\_1 \\"
    assert lines[4] == r"held-out & 97.1\% [95.0, 98.0] & 599 & 1.5 \\"
    assert r"\& 50 \%" in lines[5] and lines[5].endswith(r"& -- & -- \\")
    assert not re.search(r"(?<!\\)[%$#_]", text), "a bare special character breaks the reader's document"


def test_latex_has_every_character_of_the_tables_in_ascii():
    """pdflatex stops at ρ and at U+2212, and sets | < > as other characters."""
    ours = [ROOT / "jaxclip" / f"{name}.py" for name in ("analyze", "quickstart", "report", "sections")]
    code = [file.read_text() for file in (*ours, *(ROOT / "experiments").glob("*.py"))]
    used = sorted({c for text in code for c in text if ord(c) > 127} | set("|<>"))
    text = downloads(report.table(["".join(used)], [["x"]], "", "t"))["t.tex"]
    assert text.isascii() and not set("|<>") & set(text), [c for c in used if c in text]


def test_text_of_a_user_is_printed_as_it_is(capsys):
    """Brackets and colons in a name are no markup: `[/lr]` stopped the printing, `[bold]` and `:smile:` vanished."""
    name, section = "fine-tuned[/lr] [bold]v2 :smile:", Section("A [/b]")
    section.table(["Model [/c]", "v"], [[name, 1.0]], "", "t[/u]")
    section.print()
    printed = capsys.readouterr().out
    assert name in printed and "Model [/c]" in printed and "A [/b]: t[/u]" in printed


def test_an_earlier_report_s_tables_and_figures_go(tmp_path):
    """Left there, they would pass for this report's; the user's own files stay, of whatever kind."""
    first, second = Section("One"), Section("Two")
    for section in (first, second):
        section.table(["a"], [["x"]], "", "kept")
    first.table(["a"], [["x"]], "", "old")
    first.figure(Figure(), "", "", "old")
    second.download(["a", "b"], [["x", float("nan")]], "Too long.", "long")
    mine = [tmp_path / name for name in ("tables/mine.csv", "tables/mine.txt", "figures/mine.png", "mine.csv")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    write(tmp_path, "", "", [first])
    assert (tmp_path / "tables" / "old.csv").is_file() and (tmp_path / "figures" / "old.png").is_file()
    page = write(tmp_path, "", "", [second])
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        *mine, page, tmp_path / "tables" / "kept.csv", tmp_path / "tables" / "long.csv"
    }  # fmt: skip
    assert (tmp_path / "tables" / "long.csv").read_text() == "a,b\nx,\n" == downloads(page.read_text())["long.csv"]


def activations(kurtosis: float, mean_abs: list[float]) -> Activations:
    share = [0.0] * len(mean_abs)
    return Activations(kurtosis, 0.1, 10, 0, 6.0, mean_abs, share)


def test_a_model_without_kurtosis_is_the_last():
    """As a key to sort by, NaN leaves the others in no order."""
    found = {n: activations(k, [1.0, 2.0]) for n, k in {"a": 5.0, "none": np.nan, "b": 9.0, "c": 7.0}.items()}
    section = Section("")
    kurtosis_table(section, found, dict.fromkeys(found, ()))
    _, rows, _ = section.tables["kurtosis"]
    assert [row[0] for row in rows] == ["b", "c", "a", "none"] and rows[-1][2] is None
    kurtosis_figure(section, found, dict.fromkeys(found, "supervised"))
    (ax,) = section.figures["kurtosis"].axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "a", "c", "b"]


@pytest.mark.parametrize(
    "names", [["a", "b"], ["clip-vit", "clip-vit-finetuned", "supervised-vit", "supervised-resnet"]]
)
def test_no_label_of_a_heat_map_is_cut(names: list[str]) -> None:
    """At the figure's edge a label of the scale was, as its ticks changed after the layout was made."""
    section = Section("")
    heat_map(section, names, np.eye(len(names)), "", "", "cka")
    image = io.BytesIO()
    with report.style():
        section.figures["cka"].savefig(image, dpi=200, facecolor="white")
    pixels = np.asarray(Image.open(image).convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() > 200


def test_a_model_of_mostly_dead_features_is_drawn():
    """A median of 0 would make every ratio infinite: the typical feature is one that is not always 0."""
    found = {"relu": activations(3.0, [0.0, 0.0, 0.0, 1.0, 4.0, 2.0]), "dead": activations(np.nan, [0.0] * 6)}
    section = Section("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outlier_figure(section, found, {name: name for name in found})
        outlier_table(section, found)
    left, _ = section.figures["outlier-features"].axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [2.0, 1.0, 0.5])
    assert [row[-1] for row in section.tables["outlier-features"][1]] == [0.0, None]


def rows_of(section: Section, name: str) -> list[dict[str, report.Cell]]:
    columns, rows, _ = section.tables[name]
    return [dict(zip(columns, row, strict=True)) for row in rows]


STEEP = Activations(9.0, 0.5, 200, 3, 6.0, [1.0, 8.0, 2.0, 0.0, 6.0], [0.0, 0.75, 0.1, 0.0, 0.5])
FLAT = Activations(3.0, 0.1, 200, 0, 6.0, [1.0, 2.0, 4.0, 3.0, 1.0], [0.1, 0.4, 0.2, 0.0, 0.0])


def test_each_number_of_the_activations_is_in_its_column():
    """The interval is that of a normal mean; a feature's magnitude is over the median feature's, not the mean one's."""
    section, found = Section(""), {"steep": STEEP, "flat": FLAT}
    kurtosis_table(section, found, dict.fromkeys(found, ()))
    steep, _ = rows_of(section, "kurtosis")
    assert steep.pop("Kurtosis") == pytest.approx((9.0, *norm.interval(0.95, 9.0, 0.5)), rel=1e-3)
    assert steep == {"Model": "steep", "Features": 5, "Outlier features": 2, "Images": 200, "Constant": 3}
    outlier_table(section, found)
    assert section.tables["outlier-features"][1] == [
        ["steep", 1, 0.75, 8.0, 2.0],
        ["steep", 4, 0.5, 6.0, 1.5],
        ["flat", 1, 0.4, 2.0, 1.0],  # has no outlier feature: the most frequent one
    ]
    outlier_figure(section, found, dict.fromkeys(found, "supervised"))
    _, right = section.figures["outlier-features"].axes
    np.testing.assert_allclose(right.lines[0].get_ydata(), [75, 50, 10, 0, 0])


def test_a_direction_is_shown_by_its_number_and_importance():
    """By importance, not by singular value; a star is an outlier feature; the curve is in units of the mean."""
    found = {
        "m": Directions(
            "cosine", [3.0, 2.0, 1.0], [0.5, 3.0, 1.0], [1, 2, 0], 2.0, 1.5,
            [[1, 0, 4], [2, 3, 0], [3, 2, 1]], [[0.9, -0.3, 0.25], [0.8, 0.5, -0.1], [-1.0, 0.0, 0.0]],
        )
    }  # fmt: skip
    section = Section("")
    importance_table(section, found, {"m": STEEP}, {"m": ()})
    assert rows_of(section, "importance") == [{"Model": "m", "Directions": 3, "Max / mean": 2.0, "Kurtosis": 1.5}]
    rows = section.tables["privileged-directions"][1]
    assert rows[0] == ["m", 1, 2.0, 0.75, "1 (+0.90*), 0 (-0.30), 4 (+0.25*)"]
    assert [row[1] for row in rows] == [1, 2, 0] and [row[3] for row in rows] == [0.75, 0.1, 0.0]
    assert [row[2] for row in rows] == pytest.approx([2, 2 / 3, 1 / 3])
    importance_figure(section, found, {"m": "supervised"})
    (ax,) = section.figures["importance"].axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 2 / 3, 1 / 3])


def test_pruning_is_shown_where_it_happened():
    """Shares and accuracies in percent, the mean over the shifts, and in words the median loss at 80 %."""
    fractions = [0.0, 0.5, 0.8, 0.9, 0.95, 1.0]
    found = {
        name: Pruning(
            fractions,
            {
                "imagenet2012": [0.7, 0.7, 0.7 - lost, 0.3, 0.2, 0.0],
                "a": [0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
                "b": [0.2] * 6,
            },
        )
        for name, lost in (("x", 0.01), ("y", 0.03), ("z", 0.2))
    }
    er = {"y": np.array([0.10, 0.09, 0.08, 0.07, 0.06, 0.05])}
    section = Section("")
    pruning_table(section, "imagenet2012", ["a", "b"], found, er)
    assert section.tables["pruning"][0][2:] == [f"{share} pruned" for share in ("0%", "50%", "80%", "90%", "95%")]
    rows = {(row[0], row[1]): row[2:] for row in section.tables["pruning"][1]}
    assert rows["y", "ImageNet"] == pytest.approx([0.7, 0.7, 0.67, 0.3, 0.2])
    assert rows["y", "mean of the shifts"] == pytest.approx([0.4, 0.35, 0.3, 0.25, 0.2])
    assert rows["y", "effective robustness"] == pytest.approx(er["y"][:5]) and len(rows) == 7
    pruning_figure(section, "imagenet2012", ["a", "b"], found, dict.fromkeys(found, "zero-shot"), er)
    drawn = [ax.lines[min(1, len(ax.lines) - 2)].get_xydata().T for ax in section.figures["pruning"].axes]
    for (across, up), wanted in zip(
        drawn, ([70, 70, 67, 30, 20, 0], [40, 35, 30, 25, 20, 15], 100 * er["y"]), strict=True
    ):
        np.testing.assert_allclose(across, [0, 50, 80, 90, 95, 100])
        np.testing.assert_allclose(up, wanted)
    assert "accuracy lost with 80 % pruned. zero-shot CLIP: 3 (median of 3)" in "".join(section.blocks)


def concept_summary(unique: int, over: list[int], per_direction: list[int]) -> ConceptSummary:
    kinds = ("directions", "random_directions", "permuted_labels")
    best = [
        {"concept": name, "directions": 2, "direction": 7, "sign": sign, "average_precision": 0.95, "top_images": ["p"]}
        for name, sign in (("sky", 1), ("dog", -1))
    ]
    return ConceptSummary(
        0.9, dict(zip(kinds, (unique, 4, 1), strict=True)), dict(zip(kinds, (1.5, 1.2, 1.0), strict=True)),
        [0.8, 0.9], dict.fromkeys(kinds, over), per_direction, {}, best, 60, 9, 20,
    )  # fmt: skip


def test_concepts_and_chance_are_not_taken_for_each_other():
    """What random directions find is not under what permuted labels find; the dashed line is the models' median."""
    found = {
        name: concept_summary(30, over, [3, 0, 1, 1]) for name, over in (("x", [1, 0]), ("y", [5, 2]), ("z", [90, 70]))
    }
    section = Section("")
    concept_table(section, found, dict.fromkeys(found, ()))
    row = rows_of(section, "concept-counts")[0]
    assert [row[k] for k in ("Unique concepts", "Random directions", "Permuted labels")] == [30, 4, 1]
    assert (row["Tested"], row["Skipped"]) == (60, 9)
    concept_figure(section, found, dict.fromkeys(found, "supervised"))
    left, right = section.figures["concept-counts"].axes
    np.testing.assert_array_equal(left.lines[-1].get_ydata(), [5, 2])
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[0, 100], [1, 75], [2, 25], [3, 25]])
    best_concepts_table(section, {"x": found["x"]})
    assert [row["Best direction"] for row in rows_of(section, "most-encoded-concepts")] == ["+7", "−7"]


def test_accuracy_has_its_interval_in_order():
    """Newcombe's 81 of 263: 25.5 % to 36.6 %."""
    section = Section("")
    accuracy_table(section, {"m": {"imagenet2012": Accuracy.of(81, 263)}}, {"m": ()}, {})
    (row,) = rows_of(section, "accuracy")
    assert row["ImageNet"] == pytest.approx((81 / 263, 0.2553, 0.3662), abs=1e-4) and row["ER"] is None


def test_the_cells_of_a_heat_map_are_those_of_the_matrix():
    """Row i is the i-th from the top: transposed, a number would be between the same models, and look right."""
    section = Section("")
    heat_map(section, ["a", "b"], np.array([[1.0, 0.25], [np.nan, 1.0]]), "", "cells", "cells")
    ax, _ = section.figures["cells"].axes
    assert {text.get_text(): text.get_position() for text in ax.texts if text.get_position() != (0.5, 0.5)} == {
        "0.25": (1.5, 0.5), "1.00": (1.5, 1.5),
    }  # fmt: skip
    assert ax.yaxis_inverted() and len(ax.texts) == 3


def test_a_table_shows_rounded_numbers_and_sorts_by_full_ones():
    text = table()
    assert html.escape(HOSTILE) in text and "<script>" not in text
    assert '<td class="number" data-value="0.9712345678901234">97.1% <span class="interval">[95.0, 98.0]</span>' in text
    assert text.count('data-value=""') == 3, "None and NaN sort last: they have no sort value"
    assert text.count("–</td>") == 3, "None and NaN are shown as a dash"
    assert text.count('<th scope="col"') == 4 and text.count('<th scope="row"') == 3, "screen readers need the scopes"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError):
        report.table(["a", "b"], [["x"]], "", "t")


def test_a_picture_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    (content,) = re.findall(r'src="data:image/png;base64,([^"]*)"', report.picture(pixels, "noise"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), pixels)


def test_a_figure_is_xml_that_follows_the_page_between_light_and_dark():
    (svg,) = re.findall(r"<svg.*</svg>", figure(), flags=re.DOTALL)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'Up & down, "once"'
    assert "viewBox" in root.attrib, "without it the figure does not scale on a phone"
    colors = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    assert not colors, f"{colors} stay as they are in dark mode"
    assert f"var(--ink, {report.INK})" in svg and f"var(--series-1, {report.SERIES[0]})" in svg
    css = whole_page()
    for name in set(re.findall(r"var\((--[\w-]+)", css)) - {"--n"}:
        assert css.count(f"{name}: #") == 2, f"{name} needs a value for light and one for dark"


def test_text_contrast_is_readable_in_light_and_dark():
    def luminance(color: str) -> float:
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in whole_page().split("@media", 2)[:2])
    for theme in (light, dark):
        for name in ("ink", "muted", "link", *(f"series-{i}" for i in range(1, 7))):
            a, b = sorted((luminance(theme[name]), luminance(theme["paper"])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, f"{name} is below WCAG AA on the page's paper"


@needs_browser
def test_a_browser_sorts_tables_fits_a_phone_and_prints_no_error(tmp_path):
    probe = """
    <script>
    const column = (i) => [...document.querySelector("tbody").rows].map((row) => row.cells[i].dataset.value).join("|");
    const buttons = document.querySelectorAll("thead button");
    const found = {};
    buttons[1].click(); found.down = column(1);
    buttons[1].click(); found.up = column(1);
    found.sort = buttons[1].parentNode.getAttribute("aria-sort");
    buttons[0].click(); found.names = column(0).toLowerCase();
    const link = document.querySelector("a[data-svg]");
    link.addEventListener("click", (event) => event.preventDefault());
    link.click();
    found.svg = decodeURIComponent(link.href).includes("var(") ? "unresolved" : link.href.slice(0, 18);
    found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    document.title = JSON.stringify(found);
    </script></body>"""
    (tmp_path / "page.html").write_text(whole_page().replace("</body>", probe))
    found = title_of(tmp_path / "page.html", width=500)
    assert found["down"] == "0.9712345678901234|0.5|", "a first click on numbers puts the largest first, missing last"
    assert found["up"] == "0.5|0.9712345678901234|" and found["sort"] == "ascending"
    assert found["names"].endswith("a,b|held-out"), "words are sorted from a to z"
    assert found["svg"] == "data:image/svg+xml", "a downloaded figure has the page's colours resolved"
    assert found["overflow"] <= 0, "the page scrolls sideways on a narrow screen"
