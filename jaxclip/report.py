"""Reports: HTML pages that are whole in themselves, put together from strings, with figures in one matplotlib style.

Every function returns HTML; :func:`page` joins it. Nothing outside the page is loaded; equal input
gives equal bytes. ``caption``, ``note``, ``text``, ``lead`` and blocks are HTML: escape data that goes into them with
:func:`html.escape`. Everything else is plain text.
"""

import base64
import contextlib
import csv
import hashlib
import html
import importlib.metadata
import io
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from cycler import cycler
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

import jaxclip
from jaxclip.data import read_bytes

COLUMN, WIDE = 3.4, 7.0
"""Widths of a figure in inches: one column, which a phone shows at full size, and the whole text."""

_CSS = read_bytes("report.css").decode()
_COLORS = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", _CSS.partition("@media")[0]))
INK, MUTED, GRID, PAPER = (_COLORS[name] for name in ("ink", "muted", "grid", "paper"))
SERIES = tuple(_COLORS[f"series-{i}"] for i in range(1, 7))
"""Colours of figures; drawn in these, a figure follows the page between light and dark."""


class Estimate(NamedTuple):
    """A number with its interval: a table shows all three, sorts by the value, and gives three columns of CSV."""

    value: float
    low: float
    high: float


Cell = str | int | float | Estimate | None


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for figures as papers print them: make, draw and show figures inside this context."""
    settings: Any = {
        "figure.figsize": (COLUMN, 2.4),
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.linewidth": 0.7,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "axes.prop_cycle": cycler(color=SERIES),
        "lines.linewidth": 1.5,
        "lines.markersize": 4.5,
        "svg.fonttype": "path",
        "svg.hashsalt": "jaxclip",
        "text.parse_math": False,  # a name with two dollar signs is a name
    }
    with matplotlib.rc_context(settings):
        yield


def figure(fig: Figure, caption: str, alt: str, name: str) -> str:
    """A matplotlib figure, inlined as SVG.

    Args:
        fig: Made within :func:`style`; ``COLUMN`` or ``WIDE`` inches wide.
        caption: What it shows.
        alt: What a reader who cannot see it needs to know: the finding, rather than the picture.
        name: The download's file name, without extension.
    """
    buffer = io.StringIO()
    with style():
        fig.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8] + "-"
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    for key, color in _COLORS.items():
        svg = svg.replace(f": {color}", f": var(--{key}, {color})")
    pixels = 96 * fig.get_size_inches()[0]
    size = f'style="width: 100%; min-width: {0.85 * pixels:.0f}px; max-width: {1.4 * pixels:.0f}px"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', size, svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
    download = f'<span class="downloads"><a href="#" data-svg download="{html.escape(name)}.svg" hidden>SVG</a></span>'
    return (
        f'<figure class="plot"><div class="scroll" tabindex="0">{svg}</div>'
        f"<figcaption>{caption} {download}</figcaption></figure>"
    )


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    caption: str,
    name: str,
    formats: Mapping[str, str] | None = None,
) -> str:
    """A table that the reader can sort and take away as CSV and LaTeX (with booktabs).

    Args:
        columns: The head. A column whose cells are all numbers, estimates or None is set as numbers.
        rows: One cell for each column; the first names the row. None and NaN are shown as a dash.
        caption: What it shows.
        name: The downloads' file name, without extension.
        formats: Format specifications for columns of numbers, as in ``{"accuracy": ".1%"}``; CSV has all digits.
    """
    specs = [(formats or {}).get(column, "") for column in columns]
    cells = [[shown(cell, spec) for cell, spec in zip(row, specs, strict=True)] for row in rows]
    numeric = [not any(isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    kinds = ["number" if is_numeric else "text" for is_numeric in numeric]
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{html.escape(column)}</button></th>'
        for column, kind in zip(columns, kinds, strict=True)
    )
    body = ""
    for row, texts in zip(rows, cells, strict=True):
        body += "<tr>"
        for i, (cell, (value, interval), kind) in enumerate(zip(row, texts, kinds, strict=True)):
            tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
            text = html.escape(value) + (f' <span class="interval">{html.escape(interval)}</span>' if interval else "")
            body += f'<{tag}{scope} class="{kind}" data-value="{html.escape(_sort_key(cell))}">{text}</{tag}>'
        body += "</tr>\n"
    return (
        f'<figure class="data"><div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div><figcaption>{caption} "
        f'<span class="downloads">{_download(csv_text(columns, rows), "text/csv", f"{name}.csv", "CSV")}'
        f"{_download(_latex(columns, cells, numeric), 'application/x-tex', f'{name}.tex', 'LaTeX')}</span>"
        "</figcaption></figure>"
    )


def download(columns: Sequence[str], rows: Sequence[Sequence[Cell]], text: str, name: str) -> str:
    """A table that is too long to show, as CSV behind a line of HTML; arguments as for :func:`table`."""
    link = _download(csv_text(columns, rows), "text/csv", f"{name}.csv", "CSV")
    return f'<p>{text} <span class="downloads">{link}</span></p>'


def picture(pixels: UInt8[np.ndarray, "H W 3"], alt: str, note: str = "") -> str:
    """A picture as a lossless PNG, for :func:`gallery`, with a short note (HTML) under it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    note = f'<span class="note">{note}</span>' if note else ""
    return f'<img src="{_data_uri(buffer.getvalue(), "image/png")}" alt="{html.escape(alt)}">{note}'


def gallery(rows: Mapping[str, Sequence[str]], caption: str) -> str:
    """Rows of :func:`picture`, each under its title."""
    strips = ""
    for title, pictures in rows.items():
        items = "".join(f"<li>{item}</li>" for item in pictures)
        strips += (
            f'<div><h3>{html.escape(title)}</h3><ul class="strip" style="--n: {len(pictures)}">{items}</ul></div>\n'
        )
    return f'<figure><div class="gallery">{strips}</div><figcaption>{caption}</figcaption></figure>'


def side_by_side(*blocks: str) -> str:
    """Blocks side by side where there is room, one below the other on a phone."""
    return f'<div class="columns">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def notice(text: str) -> str:
    """HTML that nobody may miss."""
    return f'<p class="notice" role="note">{text}</p>'


def provenance(facts: Mapping[str, object]) -> str:
    """What the page's numbers come from: names and values, as a list."""
    items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts.items())
    return f'<dl class="provenance">{items}</dl>'


def environment() -> dict[str, str]:
    """The software and the device, for :func:`provenance`."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "pillow")
    versions = {"jaxclip": jaxclip.__version__} | {name: importlib.metadata.version(name) for name in packages}
    return {
        "Device": f"{jax.device_count()} × {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "Platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "Packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def page(title: str, lead: str, sections: Mapping[str, Sequence[str]]) -> str:
    """The whole document.

    Args:
        title: Of the page.
        lead: What stands above the list of contents.
        sections: From each section's title, its blocks.
    """
    ids = {name: re.sub(r"\W+", "-", name.lower()).strip("-") for name in sections}
    contents = "".join(f'<li><a href="#{ids[name]}">{html.escape(name)}</a></li>' for name in sections)
    body = "".join(
        f'<section aria-labelledby="{ids[name]}"><h2 id="{ids[name]}">{html.escape(name)}</h2>\n'
        f"{''.join(blocks)}</section>\n"
        for name, blocks in sections.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_CSS}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
{lead}
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main>
{body}</main>
<script>
{read_bytes("report.js").decode()}</script>
</body>
</html>
"""


def shown(cell: Cell, spec: str) -> tuple[str, str]:
    """A cell's text in a format, and its interval's: a dash for what is missing."""
    match cell:
        case None:
            return "–", ""
        case str():
            return cell, ""
        case float() if cell != cell:
            return "–", ""
        case Estimate():
            low, high = (format(bound, spec).removesuffix("%") for bound in (cell.low, cell.high))
            return format(cell.value, spec), f"[{low}, {high}]"
    return format(cell, spec), ""


def _sort_key(cell: Cell) -> str:
    cell = cell.value if isinstance(cell, Estimate) else cell
    return "" if cell is None or cell != cell else str(cell)


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The table with every digit; an estimate has its bounds in columns of their own."""
    estimates = [any(isinstance(row[i], Estimate) for row in rows) for i in range(len(columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")

    def write(cells: Sequence[Sequence[object]]) -> None:
        writer.writerow([part for parts in cells for part in parts])

    write([(c, f"{c} low", f"{c} high") if e else (c,) for c, e in zip(columns, estimates, strict=True)])
    for row in rows:
        write(
            [
                cell if isinstance(cell, Estimate) else (cell, None, None) if e else (cell,)
                for cell, e in zip(row, estimates, strict=True)
            ]
        )
    return buffer.getvalue()


def _latex(columns: Sequence[str], cells: Sequence[Sequence[tuple[str, str]]], numeric: Sequence[bool]) -> str:
    lines = [" & ".join(_tex(" ".join(filter(None, cell))) for cell in row) + r" \\" for row in cells]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{''.join('r' if n else 'l' for n in numeric)}}}",
            r"\toprule",
            " & ".join(map(_tex, columns)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "√": r"$\surd$",
    "²": "$^2$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "κ": r"$\kappa$",
    "‖": r"$\Vert$",
    "→": r"$\to$",
    "⟨": r"$\langle$",
    "⟩": r"$\rangle$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _download(content: str, media_type: str, filename: str, label: str) -> str:
    uri = _data_uri(content.encode(), f"{media_type};charset=utf-8")
    return f'<a href="{uri}" download="{html.escape(filename)}">{label}</a>'


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
