"""Figures: an activation at a glance, and curves of errors against degree, norm or time.

A figure is a list of panels, and a panel a table of curves: `draw` lays them out, `overview` fills four of them for one
activation. Everything is drawn on a canvas of its own: no window, no global state, nothing of pyplot. The command line
loads this module when it draws; the notebook, whose figures are panels too, is the other caller. Needs matplotlib: the
extra `dualcalc[plots]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .codegen import emit, load
from .expansions import hermite, second_moment
from .quadrature import Profile, profile

__all__ = ["Curve", "Panel", "activation_panel", "draw", "overview", "save"]

# ---- style ----------------------------------------------------------------------------------------------------------

# Colours of Okabe and Ito (2008), which colour-blind readers tell apart. Dash and marker say the same once more, for
# print in grey.
CURVES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#000000", (0, (1, 1)), "x"),
    ("#56B4E9", (0, (8, 2)), "P"),
)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "standard",
    "svg.hashsalt": "dualcalc",  # ids of SVG elements: the same in every run
}
PANEL_SIZE = (3.5, 2.9)  # inches
SHORT = 100  # a logarithmic axis below this ratio is labelled 1, 2, 5 within the decade
FORMATS = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # metadata: no dates

# ---- panels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Points to join, or to mark.

    x, y     (n,); where a number is not finite, or not positive on a logarithmic axis, the line has a gap
    label    for the legend; none where empty
    style    row of CURVES; the next free one unless given
    kind     "line", "marked" (its points marked, joined thinly), "bound" (thin dashes) or "spectrum" (stems)
    """

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    style: int | None = None
    kind: str = "line"


@dataclass(frozen=True)
class Panel:
    """Curves in one pair of axes; `xscale` and `yscale` are matplotlib's, `ylim` is (least, greatest) or free."""

    title: str
    curves: Sequence[Curve]
    xlabel: str = ""
    ylabel: str = ""
    xscale: str = "linear"
    yscale: str = "linear"
    ylim: tuple[float | None, float | None] = (None, None)
    legend: bool | str = True  # "below": where curves fill the axes


LEGENDS: dict[bool | str, dict[str, Any]] = {
    True: {},
    "below": {"loc": "upper center", "bbox_to_anchor": (0.45, -0.18), "ncols": 2},
}


def _line(ax: Axes, x, y, label, colour, dash, marker) -> None:
    ax.plot(x, y, color=colour, linestyle=dash, label=label)


def _marked(ax: Axes, x, y, label, colour, dash, marker) -> None:
    ax.plot(x, y, color=colour, linewidth=1.0, marker=marker, label=label)


def _bound(ax: Axes, x, y, label, colour, dash, marker) -> None:
    ax.plot(x, y, color=colour, linestyle=(0, (4, 2)), linewidth=0.9, label=label)


def _spectrum(ax: Axes, x, y, label, colour, dash, marker) -> None:
    seen = np.isfinite(y)
    low = y[seen].min() / 10 if seen.any() else 1.0
    ax.vlines(x[seen], low, y[seen], color=colour, linewidth=1.0, alpha=0.6)
    ax.plot(x[seen], y[seen], color=colour, linestyle="none", marker=marker, label=label)
    ax.set_ylim(bottom=low)


KINDS = {"line": _line, "marked": _marked, "bound": _bound, "spectrum": _spectrum}


def _fill(ax: Axes, panel: Panel) -> None:
    ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel, xscale=panel.xscale, yscale=panel.yscale)
    ax.set_title(panel.title)
    for i, curve in enumerate(panel.curves):
        x, y = (np.asarray(v, dtype=float) for v in (curve.x, curve.y))
        least = (0 if scale == "log" else -np.inf for scale in (panel.xscale, panel.yscale))
        x, y = (np.where((v > low) & (v < np.inf), v, np.nan) for v, low in zip((x, y), least, strict=True))
        row = CURVES[(i if curve.style is None else curve.style) % len(CURVES)]
        KINDS[curve.kind](ax, x, y, curve.label, *row)
    left, right = ax.get_xlim()
    if panel.xscale == "log" and right < SHORT * left:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    low, high = panel.ylim
    if low is not None or high is not None:
        ax.set_ylim(low, high)
    if panel.legend and any(curve.label for curve in panel.curves):
        ax.legend(**LEGENDS[panel.legend])


def draw(panels: Sequence[Panel], columns: int = 2, title: str = "", shared_legend: bool = False) -> Figure:
    """The panels row by row; `shared_legend` puts one legend below them, of every label once."""
    rows, columns = -(-len(panels) // columns), min(columns, len(panels))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * PANEL_SIZE[0], rows * PANEL_SIZE[1]), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            _fill(ax, panel)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        if title:
            figure.suptitle(title, x=0.01, ha="left", weight="bold")
        if shared_legend:
            entries: dict[str, Any] = {}
            for ax in axes:
                handles, labels = ax.get_legend_handles_labels()
                entries = dict(zip(labels, handles, strict=True)) | entries
            figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 4))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # a second layout, with a legend below, would differ from the first
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, SVG or PDF, as the suffix of the path says: the same bytes in every run."""
    Path(path).write_bytes(rendered(figure, Path(path).name))


def rendered(figure: Figure, name: str) -> bytes:
    """What `save` writes into a file of that name."""
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{name} came; expected a file name that ends in {', '.join(FORMATS)}")
    drawn = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(drawn, format=suffix[1:], metadata=FORMATS[suffix])
    return drawn.getvalue()


# ---- an activation at a glance --------------------------------------------------------------------------------------

REACH = 4.0  # of t, in the panel of the activation
SPECTRUM, ERRORS = 60, 30  # degrees that are shown
SERIES = 600  # degrees that are summed: 0.9^600 = 4e-28
COSINES = (1.0, 0.9, 0.5)
RESOLVED = 4e-30  # chat_j^2 below this share of E[s^2] is rounding: the error of chat_j is 2e-15 of ||s||


def overview(activation, **parameters) -> Figure:
    """Four panels: s and s', the dual and kdot at unit norm, the Hermite spectrum, and the error against the degree.

    activation   text, catalog id, SymPy expression, Dual or Profile, with the values of its `parameters`
    ValueError where there is no activation (a bare kernel), or it is not square-integrable at norm 1.
    """
    p = profile(activation, **parameters)
    coefficients, moment = hermite(p, SERIES, 1.0), second_moment(p, 1.0)
    if not moment > 0:
        raise ValueError(f"{p.activation} is zero: there is nothing to draw")
    squares = coefficients**2 / moment
    panels = (activation_panel(p), _dual(p), _of_spectrum(squares), _errors(squares))
    return draw(panels, title=f"s(t) = {_short(str(p.activation))}")


def _short(text: str, most: int = 72) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def activation_panel(p: Profile) -> Panel:
    """s and s', with gaps at their jumps."""
    grid = np.linspace(-REACH, REACH, 801)
    curves = []
    for order in (0, 1):
        jumps = np.array(p.jumps_of(order))
        x = np.unique(np.concatenate([grid, jumps, jumps - 1e-9, jumps + 1e-9]))
        curves.append(Curve(x, np.where(np.isin(x, jumps), np.nan, p(x, order)), "s" + "'" * order))
    return Panel("Activation", curves, "t")


def _dual(p: Profile) -> Panel:
    """k/sqrt(k11 k22) and kdot at q11 = q22 = 1, from the NumPy code: float64 whatever JAX is set to."""
    c = np.linspace(-1, 1, 401)
    one = np.ones_like(c)
    module = load(emit(p.activation, "numpy", norms=(0.5, 2.0)), "numpy")
    k = module.k(c, one, one)
    curves = [Curve(c, k / k[-1], "k / k(1)")]
    if not p.jumps:
        curves.append(Curve(c, module.kdot(c, one, one), "kdot"))
    return Panel(f"Dual at unit norm, k(1) = {k[-1]:.4g}", curves, "cosine c")


def _of_spectrum(squares: np.ndarray) -> Panel:
    j = np.arange(SPECTRUM + 1)
    seen = np.where(squares[: SPECTRUM + 1] > RESOLVED, squares[: SPECTRUM + 1], np.nan)
    return Panel(
        "Hermite spectrum", [Curve(j, seen, kind="spectrum")], "degree j", r"$\hat c_j^2\,/\,E[s^2]$", yscale="log"
    )


def _errors(squares: np.ndarray) -> Panel:
    """The sum of what is left out, and the Parseval bound of it; both over k(1)."""
    q, j = np.arange(ERRORS + 1), np.arange(SERIES + 1)
    beyond = np.maximum(1 - np.cumsum(squares), 0)[: ERRORS + 1]
    beyond[beyond < 2e-15] = np.nan  # 1 - sum is rounding
    curves = []
    for style, c in enumerate(COSINES):
        left_out = np.cumsum((squares * c**j)[::-1])[::-1][1 : ERRORS + 2]
        error = beyond if c == 1 else np.where(left_out > RESOLVED, left_out, np.nan)
        label = f"error, c = {c:g}" if c != 1 else "error = Parseval bound, c = 1"
        curves.append(Curve(q, error, label, style, "marked"))
        if c != 1:
            curves.append(Curve(q, beyond * c ** (q + 1), f"Parseval bound, c = {c:g}", style, "bound"))
    return Panel("Error of the truncated dual", curves, "degree q", "relative error", yscale="log", legend="below")
