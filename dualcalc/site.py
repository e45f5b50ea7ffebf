"""The browsable catalog: an index and a page per entry, as static files that open without a server or a network.

`build` renders what `facts.py` gathers by the Jinja2 templates in `templates/`, autoescape on, and copies the style
sheet, the script and uPlot beside them. The command line (`dualcalc catalog site`) and `serve.py` are the callers.
Needs the extra `dualcalc[site]`.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from latex2mathml.converter import convert
from markupsafe import Markup
from PIL import Image

from .catalog import Entry, Reference
from .facts import Facts, facts

__all__ = ["Site", "build", "is_site"]

TEMPLATES = Path(__file__).resolve().parent / "templates"
ASSETS = ("site.css", "site.js", "theme.js", "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css", "vendor/uPlot.LICENSE")
FONTS = sorted(f"vendor/fonts/{path.name}" for path in TEMPLATES.glob("vendor/fonts/*.woff2"))
KATEX = ("vendor/katex.min.css", "vendor/KaTeX.LICENSE", *FONTS)  # beside them, where KaTeX typesets
PATIENCE = 10.0  # seconds for one formula
LONG = 1500  # characters of LaTeX: a longer formula is folded, and not by KaTeX


class Site(NamedTuple):
    """What was written."""

    home: Path  # index.html
    pages: int
    size: int  # bytes
    seconds: float


BOX, FLOOR = (440.0, 150.0), -12  # of the spectrum's picture; the lowest power of ten in it
SPARK, SPAN = (120.0, 60.0), 4.0  # the size of a small curve, for |t| up to this


def mathml(latex: str) -> Markup:
    """LaTeX of our own printers as MathML; escaped text where the converter gives up."""
    try:
        return Markup(convert(latex))
    except Exception:  # of any kind: a page must not fail for one formula
        return Markup("<code>{}</code>").format(latex)


class Katex:
    """LaTeX as HTML and MathML by KaTeX, in a process of node's; by `mathml` where that fails."""

    def __init__(self, node: str):
        command = [node, str(TEMPLATES / "katex.cjs")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.turn = threading.Lock()

    def __call__(self, latex: str) -> Markup:
        with self.turn:
            assert self.process.stdin is not None and self.process.stdout is not None
            clock = threading.Timer(PATIENCE, self.process.kill)
            clock.start()
            try:
                self.process.stdin.write(f"{json.dumps(latex)}\n")
                self.process.stdin.flush()
                html = json.loads(self.process.stdout.readline())
            except (OSError, ValueError):  # node has ended, or is none
                html = None
                self.process.kill()
            clock.cancel()
        return Markup(html) if isinstance(html, str) else mathml(latex)

    def close(self) -> None:
        with suppress(OSError):  # what was not sent to one that has ended
            self.process.kill()
            self.process.communicate()


def spark(found: Facts) -> str:
    """s as the path of a small SVG, in its own scale; jumps and what leaves the box are gaps. Of a kernel k(c)."""
    if curve := found.get("curve"):
        points = [(x / SPAN, y) for x, y in zip(curve["t"], curve["s"], strict=True) if abs(x) <= SPAN]
    elif (dual := found.get("dual")) and 1.0 in dual["q"]:
        n, i = len(dual["q"]), dual["q"].index(1.0)
        points = list(zip(dual["c"], dual["k"][i * n - i * (i - 1) // 2], strict=True))
    else:
        return ""
    known = sorted(y for _, y in points if y is not None)
    low, high = min(known, default=0.0), max(known, default=1.0)
    low, high = max(low, -6.0), min(high, 6.0)
    span, (w, h) = (high - low) or 1.0, SPARK
    out, pen = [], "M"
    for x, y in points:
        if y is None or not low - span <= y <= high + span:
            pen = "M"
            continue
        out.append(f"{pen}{(x + 1) / 2 * w:.1f} {h - 4 - (y - low) / span * (h - 8):.1f}")
        pen = "L"
    return "".join(out)


def stems(squares: list[float | None]) -> list[dict[str, Any]]:
    """The spectrum as stems in BOX, logarithmic from 1e-12 to 1."""
    w, h = BOX
    out = []
    for j, x in enumerate(squares):
        if x is not None and x > 10.0**FLOOR:
            y = h * math.log10(min(x, 1.0)) / FLOOR
            out.append({"x": round((j + 0.5) * w / len(squares), 1), "y": round(y, 1), "j": j, "value": f"{x:.3g}"})
    return out


FRAME = (320.0, 200.0)  # of the phase diagram's picture
SHADES = {"ordered": (0, 114, 178), "chaotic": (213, 94, 0), "diverging": (128, 128, 128)}


def critical(phases: Facts) -> list[str]:
    """The critical line as points of an SVG path in FRAME; one point where all are the same."""
    (right, top), (w, h) = (phases["W_std"][-1], phases["b_std"][-1]), FRAME
    out, pen = [], "M"
    for point in phases["line"]:
        if point is None or point[0] > right or point[1] > top:
            pen = "M"
            continue
        out.append(f"{pen}{point[0] / right * w:.1f} {h - point[1] / top * h:.1f}")
        pen = "L"
    return out if len({point[1:] for point in out}) > 1 else [f"{point}h0" for point in out[:1]]


def shading(phases: Facts) -> str:
    """The phases as a picture of a pixel per point, an address of its data: the deeper the scale, the darker."""
    pixels = np.zeros((len(phases["b_std"]), len(phases["W_std"]), 4), np.uint8)
    for i, rows in enumerate(zip(phases["q"], phases["chi_1"], phases["depth_scale"], strict=True)):
        for j, (q, chi_1, depth) in enumerate(zip(*rows, strict=True)):
            name = "diverging" if q is None else "ordered" if (chi_1 or 0.0) < 1 else "chaotic"
            strength = 0.5 if q is None or depth is None else depth / (depth + 6)
            pixels[-1 - i, j] = *SHADES[name], round(30 + 150 * strength)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def short(x: float | None, digits: int = 6) -> str:
    return "–" if x is None else f"{x:.{digits}g}".replace("-", "−")


def environment(typeset: Callable[[str], Markup] = mathml, live: bool = False) -> jinja2.Environment:
    """The templates; `live` where a server makes the pages."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "typeset": typeset,
        "displayed": partial(displayed, typeset=typeset),
        "spark": spark,
        "stems": stems,
        "critical": critical,
        "shading": shading,
        "short": short,
    }
    env.policies["json.dumps_kwargs"] = COMPACT
    env.globals |= {
        "live": live,
        "katex": typeset is not mathml,
        "version": version("dualcalc"),
        "BOX": BOX,
        "FLOOR": FLOOR,
        "FRAME": FRAME,
        "LONG": LONG,
    }
    return env


def displayed(rows: list[str], typeset: Callable[[str], Markup]) -> list[Markup]:
    """The lines of one formula. KaTeX needs some 80 bytes for one of LaTeX, `mathml` 7, which sets what is long."""
    one = mathml if sum(map(len, rows)) > LONG else typeset
    return [one(rf"\displaystyle {row}") for row in rows]


FILTERS = (
    ("closed", "Closed form"),
    ("homogeneous", "Homogeneous"),
    ("smooth", "Smooth"),
    ("bounded", "Bounded"),
    ("table1", "In Table 1"),
)


def index_page(env: jinja2.Environment, found: list[Facts]) -> str:
    """The list of these entries, of `facts` or `summary`."""
    return env.get_template("index.html").render(entries=found, filters=FILTERS)


def entry_page(env: jinja2.Environment, found: Facts, before: Facts | None = None, after: Facts | None = None) -> str:
    """The page of one entry; the two beside it are linked to."""
    return env.get_template("entry.html").render(e=found, filters=FILTERS, before=before, after=after)


def listing(found: list[Facts]) -> list[Facts]:
    return [{key: f[key] for key in ("id", "title", "expression", "kernel", "table1", "properties")} for f in found]


COMPACT: dict[str, Any] = {"separators": (",", ":")}


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, **COMPACT)


def build(
    entries: Mapping[str, Entry],
    references: Mapping[str, Reference],
    out: Path,
    *,
    workers: int = 1,
    node: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Site:
    """Write the site of these entries into the folder `out`, which is made; files of the same names are replaced.

    workers    processes; more than one only from a program whose main module can be imported again
    node       the program node, with which KaTeX typesets the formulas; without it they are MathML
    progress   is told every id as it is done
    """
    start = time.perf_counter()
    if "index" in entries:
        raise ValueError("the id 'index' came; it is the name of the list's own page; choose another")
    known = {}
    for found in _gathered(entries, references, workers):
        known[found["id"]] = found
        if progress:
            progress(found["id"])
    ordered = [known[id] for id in entries]
    with typesetting(node) as typeset:
        files = _rendered(environment(typeset), ordered)
    assets = {name: out / "assets" / name.removeprefix("vendor/") for name in (*ASSETS, *(KATEX if node else ()))}
    (out / "assets" / "fonts").mkdir(parents=True, exist_ok=True)
    for name, path in assets.items():
        _put(path, (TEMPLATES / name).read_bytes())
    for name, text in files.items():
        _put(out / name, text.encode())
    written = [*(out / name for name in files), *assets.values()]
    size = sum(path.stat().st_size for path in written)
    return Site(out / "index.html", len(ordered) + 1, size, time.perf_counter() - start)


def is_site(folder: Path) -> bool:
    """Whether it holds pages of ours, which may be replaced."""
    try:
        listed = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return (folder / "assets" / "site.js").is_file() and bool(listed) and all("properties" in x for x in listed)
    except (OSError, ValueError, TypeError):
        return False


def _put(path: Path, content: bytes) -> None:
    """A file, whole or not at all, in the place of what had its name; a link is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def typesetting(node: str | None) -> Iterator[Callable[[str], Markup]]:
    """What makes formulas of LaTeX: KaTeX where there is node, else MathML."""
    if node is None:
        yield mathml
        return
    katex = Katex(node)
    try:
        yield katex
    finally:
        katex.close()


def _rendered(env: jinja2.Environment, ordered: list[Facts]) -> dict[str, str]:
    """Name -> text of every file of its own."""
    files = {"index.html": index_page(env, ordered), "index.json": as_json(listing(ordered))}
    for i, found in enumerate(ordered):
        before, after = ordered[i - 1] if i else None, ordered[i + 1] if i + 1 < len(ordered) else None
        files[f"{found['id']}.html"] = entry_page(env, found, before, after)
        files[f"{found['id']}.json"] = as_json(found)
    return files


def _gathered(entries: Mapping[str, Entry], references: Mapping[str, Reference], workers: int) -> Iterator[Facts]:
    one = partial(facts, references=references)
    if min(workers, len(entries)) <= 1:
        yield from map(one, entries.values())
        return
    spawn, hear = (
        multiprocessing.get_context("spawn"),
        (signal.SIGINT, signal.SIG_IGN),
    )  # Ctrl-C is for us, who end them
    with ProcessPoolExecutor(min(workers, len(entries)), spawn, signal.signal, hear) as pool:
        yield from pool.map(one, entries.values())
