"""How figures are written: the report's palette and style, and a matplotlib `Figure` as inline SVG.

Each figure comes wide, for a desk and for print, and narrow, for a phone, drawn anew rather than shrunk. In an SVG
text stays text, in the page's own font and whatever its script, and the colours are the page's variables, so that a
dark page has dark figures. Nothing here is mathematics: a `$` in a class name is a dollar.
"""

from __future__ import annotations

import functools
import io
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Drawn = ParamSpec("Drawn")

INK, MUTED, GRID, FAINT = "#1b1f24", "#59636e", "#dfe3e8", "#a9b1ba"
BLUE, RED, GREEN, ORANGE, SKY, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7"
"""Okabe and Ito's palette (2008), told apart by every kind of colour vision; RED is their vermilion."""
PAPER = "#fefefe"
"""Behind text that stands on lines; not quite white, so that white itself stays white in the dark."""
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    FAINT: "faint",
    BLUE: "blue",
    RED: "red",
    GREEN: "green",
    ORANGE: "orange",
    SKY: "sky",
    PURPLE: "purple",
    PAPER: "paper",
}
"""What each colour is called in the page's style sheet, which may give it another value in the dark."""
WIDE, NARROW = 860, 358
"""Of a figure in CSS pixels: a column of text, and a phone of 390 less its margins."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.borderaxespad": 0.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
}


@contextmanager
def _quiet() -> Generator[None]:
    """Lets nothing be said about scripts that the measuring font lacks: in an SVG the browser's fonts have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def drawn(draw: Callable[[bool], Figure], *, alt: str, key: str) -> tuple[str, str]:
    """A figure wide and narrow, as inline SVG. `draw` takes whether it is wide; `key` is unique on the page."""
    return svg(draw(True), alt=alt, prefix=f"{key}-w"), svg(draw(False), alt=alt, prefix=f"{key}-n")


def svg(figure: Figure, *, alt: str, prefix: str) -> str:
    """A figure as an `<svg>` element for an HTML page.

    matplotlib's own is a document of its own: its style would reach the whole page, its identifiers would meet those of
    other figures, and half of it is groups and digits that nobody sees. `prefix` makes the identifiers unique.
    """
    with _quiet(), mpl.rc_context(STYLE):
        target = io.StringIO()
        FigureCanvasSVG(figure).print_svg(target)
    root = ET.fromstring(target.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in ("metadata", "style"):
                parent.remove(child)
    whole = ET.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', whole))
    for element in root.iter():
        element.tag = _tag(element)
        element.attrib = {_tidy_name(name): value for name, value in element.attrib.items()}
        _tidy(element, used, prefix)
    _unwrap(root)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": alt,
        "style": f"max-width:{float(width):.0f}px;aspect-ratio:{float(width):.0f}/{float(height):.0f}",
    }
    return ET.tostring(root, encoding="unicode")


def _tag(element: ET.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _tidy_name(name: str) -> str:
    return name.rpartition("}")[2]


_NUMBER = re.compile(r"-?\d+\.\d+")
_DEFAULTS = {("text-anchor", "start"), ("stroke-linecap", "square"), ("font-weight", "400")}
"""Style rules that change nothing."""


def _tidy(element: ET.Element, used: set[str], prefix: str) -> None:
    """Shortens one element: a tenth of a pixel is enough, and colours become the page's."""
    attributes = element.attrib
    if attributes.get("id") not in used:
        attributes.pop("id", None)
    else:
        attributes["id"] = prefix + attributes["id"]
    if "href" in attributes and attributes["href"].startswith("#"):
        attributes["href"] = f"#{prefix}{attributes['href'][1:]}"
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{prefix}")
    for name in ("d", "x", "y", "transform", "width", "height", "points"):
        if name in attributes and element.tag != "svg":
            attributes[name] = " ".join(_NUMBER.sub(_shorter, attributes[name]).split())
    if re.match(r"rotate\(-?0 ", attributes.get("transform", "")):
        del attributes["transform"]
    kept: list[str] = []
    for rule in attributes.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in rule.partition(":"))
        # The page's own font, and its line caps.
        if name and name not in ("font-family", "stroke-linejoin") and (name, value) not in _DEFAULTS:
            for colour, variable in VARIABLES.items():
                value = value.replace(colour, f"var(--{variable})")
            kept.append(f"{name}:{value}")
    if kept:
        attributes["style"] = ";".join(kept)
    if element.tag not in ("text", "tspan"):
        element.text = None
    element.tail = None


def _shorter(number: re.Match[str]) -> str:
    return f"{round(float(number[0]), 1) + 0.0:.10g}"


def _unwrap(parent: ET.Element) -> None:
    """Removes groups that say nothing, and gives a group the style that all its elements share."""
    children: list[ET.Element] = []
    for child in list(parent):
        _unwrap(child)
        if child.tag == "g" and not child.attrib:
            children += list(child)
        elif child.tag not in ("g", "defs") or len(child):
            children.append(child)
    parent[:] = children
    styles = {child.get("style") for child in children}
    if (
        parent.tag == "g"
        and len(children) > 1
        and len(styles) == 1
        and None not in styles
        and "style" not in parent.attrib
    ):
        parent.set("style", styles.pop() or "")
        for child in children:
            del child.attrib["style"]


def short(text: str, length: int) -> str:
    """A name as it fits into a figure: one line, no control characters, the end of a long one cut."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if columns(line) <= length:
        return line
    while line and columns(line) > length - 1:
        line = line[:-1]
    return line.rstrip() + "…"


def columns(text: str) -> int:
    """How many letters wide a text is: those of East Asia take the place of two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def styled(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Draws in the report's style, whatever the process's own is."""

    @functools.wraps(draw)
    def drawing(*arguments: Drawn.args, **named: Drawn.kwargs) -> Figure:
        with _quiet(), mpl.rc_context(STYLE):
            return draw(*arguments, **named)

    return drawing


def number(value: float) -> str:
    """A number as a person writes it: three digits, and powers of ten only where there are many zeros."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.3g}"
    if abs(value) >= 1e-5:
        return np.format_float_positional(float(f"{value:.3g}"), trim="-")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
