"""Pictures of a report: matplotlib's SVG, in the colours of the page, with what hovering shows.

Each is drawn with fixed margins, so that the page knows where a value is in it. Colours are names
of the page's style sheet, which has a set for light and one for dark; texts have its font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from sftpipe.runs.report.curves import Curve, Group, thin

# matplotlib wants numbers for colours; each of these stands for a name of the style sheet
TEXT, QUIET, LINE, GOOD, BAD = (f"#0000{number:02x}" for number in range(1, 6))
SERIES = tuple(f"#0000{number:02x}" for number in range(0x11, 0x19))
_NAMES = {
    **dict(
        zip((TEXT, QUIET, LINE, GOOD, BAD), ("text", "quiet", "line", "good", "bad"), strict=True)
    ),
    **{color: f"series-{number}" for number, color in enumerate(SERIES, start=1)},
}
_TITLES = {"step": "optimizer steps", "epoch": "epochs", "tokens": "training tokens"}
_GROUPS = 300  # of entries, in all curves of a picture together
_LOGARITHMIC = 8  # from the smallest to the largest value of an axis
_NAMED = 6  # values that all stand below an axis
_DOTTED = 80  # groups of lines that have a dot at each, in all curves together


@dataclass(frozen=True)
class Picture:
    """An inline SVG.

    svg: its element.
    box: left, top, right and bottom of its axes, in the units of its view box.
    """

    svg: str
    box: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Curves over one axis, for wide and for narrow pages.

    axis: of `curves.AXES`.
    pictures: {"wide" or "narrow": picture}.
    points: what hovering shows, from left to right: {x, text, dots: [[y, number of the curve],
        ...]}, with places as shares of the axes' width from the left and height from the top.
    note: what a reader has to know of how it is drawn; "" where there is nothing.
    """

    axis: str
    pictures: Mapping[str, Picture]
    points: Sequence[Mapping[str, Any]]
    note: str


# --- curves ---------------------------------------------------------------------------------------


def draw_curves(
    axes: Axes, curves: Sequence[Curve], axis: str, colors: Sequence[str], bad: str
) -> list[list[Group]]:
    """Lines of what was logged all along, points of what was measured now and then.

    Where entries are drawn in groups there is a band from the lowest to the highest of each; where
    none of a group is a number, a cross at the bottom.

    Returns:
        The groups of each curve.
    """
    drawn = []
    for curve, color in zip(curves, colors, strict=False):
        groups = thin(curve, axis, _GROUPS // len(curves))
        drawn.append(groups)
        x, mean, low, high = (
            np.array([getattr(one, name) for one in groups])
            for name in ("place", "mean", "low", "high")
        )
        dot = "o" if curve.alone else "." if len(groups) * len(curves) <= _DOTTED else ""
        line = "" if curve.alone else "-"
        axes.plot(x, mean, marker=dot, linestyle=line, color=color, lw=1.6, label=curve.name)
        if len(groups) < len(curve.values):
            axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        if len(lost := x[np.isnan(mean)]):
            bottom = [0.02] * len(lost)
            axes.plot(lost, bottom, "x", color=bad, transform=axes.get_xaxis_transform())
    return drawn


def chart(curves: Sequence[Curve], axis: str, *, small: bool = False) -> Chart:
    """Curves over one axis; both begin at zero, so that little never looks like much.

    Args:
        curves: at most as many as there are colours.
        axis: of `curves.AXES`.
        small: for a page that shows several beside each other.
    """
    sizes = {"narrow": (340, 180)} if small else {"wide": (720, 300), "narrow": (340, 240)}
    pictures = {}
    for name, size in sizes.items():
        figure, axes = _figure(size)
        drawn = draw_curves(axes, curves, axis, SERIES, BAD)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if axis == "tokens":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(
            MaxNLocator(4 if name == "narrow" else 8, integer=axis == "step")
        )
        axes.yaxis.set_major_locator(MaxNLocator(4 if small else 6))
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))
        if not small:
            axes.set_xlabel(_TITLES[axis], color=QUIET)
        pictures[name] = _inline(figure)
        limits = (*axes.get_xlim(), *axes.get_ylim())
    return Chart(axis, pictures, _points(curves, drawn, axis, limits), _note(curves, drawn))


def _short(value: float) -> str:
    """A number of at most seven characters, as far as that goes."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _points(
    curves: Sequence[Curve], drawn: Sequence[Sequence[Group]], axis: str, limits: Sequence[float]
) -> list[dict[str, Any]]:
    left, right, bottom, top = limits
    at: dict[float, dict[str, Any]] = {}
    for number, (curve, groups) in enumerate(zip(curves, drawn, strict=True)):
        for one in groups:
            share = round(float((one.place - left) / (right - left)), 4)
            point = at.setdefault(share, {"x": share, "text": _place(axis, one.place), "dots": []})
            point["text"] += f" · {curve.name} {_value(one)}"
            if math.isfinite(one.mean):
                height = float((top - one.mean) / (top - bottom))
                point["dots"].append([round(height, 4), number + 1])
    return [at[share] for share in sorted(at)]


def _place(axis: str, place: float) -> str:
    if axis == "epoch":
        return f"epoch {place:.2f}"
    return f"{axis} {place:,.0f}" if axis == "step" else f"{place:,.0f} tokens"


def _value(group: Group) -> str:
    if not math.isfinite(group.mean):
        return "no number"
    spread = f" ({group.low:.4g} to {group.high:.4g})" if group.low < group.high else ""
    return f"{group.mean:.4g}{spread}"


def _note(curves: Sequence[Curve], drawn: Sequence[Sequence[Group]]) -> str:
    notes = []
    for curve, groups in zip(curves, drawn, strict=True):
        entries, lost = len(curve.values), int(np.isnan(curve.values).sum())
        if len(groups) < entries:
            how = f"{entries:,} entries in {len(groups)} groups: their mean, and from the lowest to"
            notes.append(f"{curve.name}: {how} the highest.")
        if lost:
            entry = "1 entry is" if lost == 1 else f"{lost:,} entries are"
            notes.append(f"{curve.name}: {entry} no number (crosses mark where none is).")
    return " ".join(notes)


# --- other pictures -------------------------------------------------------------------------------


def histogram(bins: Sequence[Sequence[float]], title: str) -> dict[str, Picture]:
    """[[from, to, how many], ...] as bars; the upper end of a bin is in it."""
    figure, axes = _figure((340, 180))
    places = [one[0] for one in bins]
    widths = [one[1] - one[0] + 1 for one in bins]
    axes.bar(places, [one[2] for one in bins], widths, align="edge", color=SERIES[0], lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel(title, color=QUIET)
    return {"narrow": _inline(figure)}


def gains(values: Sequence[float], title: str) -> dict[str, Picture]:
    """What each row has won, the best first, as bars above and below zero."""
    ordered = np.sort(np.array(values, dtype=float))[::-1]
    groups = np.array_split(ordered, min(len(ordered), _GROUPS))
    heights = [float(group.mean()) for group in groups]
    ends = np.cumsum([0, *(len(group) for group in groups)])
    colors = [GOOD if height > 0 else BAD for height in heights]
    pictures = {}
    for name, size in {"wide": (720, 200), "narrow": (340, 180)}.items():
        figure, axes = _figure(size)
        axes.bar(ends[:-1], heights, np.diff(ends), align="edge", color=colors, lw=0)
        axes.axhline(0, color=QUIET, lw=1)
        axes.xaxis.set_major_locator(MaxNLocator(8 if name == "wide" else 4, integer=True))
        axes.set_xlabel(title, color=QUIET)
        pictures[name] = _inline(figure)
    return pictures


def packed_rows(rows: Sequence[Sequence[int]], limit: int | None) -> dict[str, Picture]:
    """Packed rows as bars of their sequences; what is left of a row to `limit` is empty."""
    pictures = {}
    for name, width in {"wide": 720, "narrow": 340}.items():
        figure, axes = _figure((width, 20 * len(rows) + 60))
        for number, lengths in enumerate(rows):
            starts = np.cumsum([0, *lengths[:-1]])
            colors = [SERIES[at % 2] for at in range(len(lengths))]
            axes.barh([number] * len(lengths), lengths, 0.7, starts, color=colors, lw=0)
        axes.set_xlim(0, max([limit or 0, *map(sum, rows)]))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(8 if name == "wide" else 4, integer=True))
        axes.set_xlabel("tokens", color=QUIET)
        pictures[name] = _inline(figure)
    return pictures


def scatter(points: Sequence[tuple[Any, float]]) -> tuple[dict[str, Picture], str]:
    """A metric against a parameter: (value, metric) of each job as a point.

    Numbers lie on an axis, a logarithmic one where they span a factor of 8; other values stand
    side by side.

    Returns:
        The pictures, and what the numbers below stand for; "" where they are the values.
    """
    figure, axes = _figure((340, 200))
    values, legend = [value for value, _ in points], ""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) / min(values) > _LOGARITHMIC:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        if len(set(values)) <= _NAMED:
            axes.set_xticks(sorted(set(values)))
        places = values
    else:
        kinds = sorted({str(value) for value in values})
        places = [kinds.index(str(value)) + 1 for value in values]
        legend = ", ".join(f"{at} {kind}" for at, kind in enumerate(kinds, start=1))
        axes.set_xticks(range(1, len(kinds) + 1))
        axes.set_xlim(0.5, len(kinds) + 0.5)
    axes.plot(places, [value for _, value in points], "o", color=SERIES[0], alpha=0.7)
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return {"narrow": _inline(figure)}, legend


def history(trials: Sequence[tuple[int, float]], *, lowest: bool) -> dict[str, Picture]:
    """The metric of each trial of a search, and the best so far as a line."""
    numbers, values = zip(*trials, strict=True)
    best = (np.minimum if lowest else np.maximum).accumulate(values)
    pictures = {}
    for name, size in {"wide": (720, 220), "narrow": (340, 200)}.items():
        figure, axes = _figure(size)
        axes.plot(numbers, values, "o", color=SERIES[0], alpha=0.7)
        axes.step(numbers, best, where="post", color=SERIES[1], lw=1.6)
        axes.xaxis.set_major_locator(MaxNLocator(8 if name == "wide" else 4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))
        axes.set_xlabel("trial", color=QUIET)
        pictures[name] = _inline(figure)
    return pictures


# --- matplotlib -----------------------------------------------------------------------------------


def _figure(size: tuple[int, int]) -> tuple[Figure, Axes]:
    """A figure of that many pixels with axes in the colours of the page."""
    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    left, right, bottom, top = 60 / width, 1 - 10 / width, 40 / height, 1 - 10 / height
    axes = figure.add_axes((left, bottom, right - left, top - bottom))
    axes.tick_params(colors=QUIET, labelsize=12, length=0, pad=5)
    axes.xaxis.label.set_fontsize(12)
    axes.grid(color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(QUIET)
    return figure, axes


def _inline(figure: Figure) -> Picture:
    """The SVG of a figure as an element of a page."""
    (axes,) = figure.axes
    # text as text, in the page's font; equal names for equal shapes, so that pages are equal too
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sftpipe"}):
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):
                parent.remove(child)
    for element in root.iter():
        _adopt(element)
    width, height = figure.bbox.width, figure.bbox.height
    root.attrib = {"viewBox": f"0 0 {width:g} {height:g}", "aria-hidden": "true"}
    box = axes.bbox
    sides = [box.x0, height - box.y1, box.x1, height - box.y0]
    svg = ElementTree.tostring(root, encoding="unicode")
    return Picture(svg, [round(float(side), 1) for side in sides])


_LONG = re.compile(r"\d+\.\d{2,}")  # of places: a tenth of a pixel is enough


def _adopt(element: ElementTree.Element) -> None:
    """Make an element of matplotlib's one of the page: no name space, its colours, its font."""
    element.tag = element.tag.rpartition("}")[2]
    for name in list(element.attrib):
        value = element.attrib.pop(name)
        for color, variable in _NAMES.items():
            value = value.replace(color, f"var(--{variable})")
        if name == "style":
            parts = [part.strip() for part in value.split(";")]
            value = ";".join(part for part in parts if not part.startswith("font-family"))
        value = _LONG.sub(lambda digits: f"{float(digits[0]):.1f}", " ".join(value.split()))
        # nothing is outside of the axes, and names of groups are used by nobody
        if name != "clip-path" and (name != "id" or element.tag != "g"):
            element.attrib[name.rpartition("}")[2]] = value
