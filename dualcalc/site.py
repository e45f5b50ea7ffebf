"""The browsable catalog: an index and a page per entry, as static files that open without a server or a network.

`facts` gathers what a page says of one entry, as plain data that is also its JSON file, `summary` what the index says
of one that is not derived yet; `build` renders the Jinja2 templates in `templates/`, autoescape on, and copies the
style sheet, the script and uPlot beside them. The command line (`dualcalc catalog site`) and `serve.py` are the
callers. Needs the extra `dualcalc[site]`.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import sympy as sp
from latex2mathml.converter import convert
from markupsafe import Markup

from . import codegen
from .adapters import with_layer
from .atoms import NoClosedForm
from .catalog import Entry, Reference
from .dual import Dual, from_entry, resolve
from .expansions import hermite, second_moment
from .parsing import q11, q12, q22
from .plots import REACH, RESOLVED, activation_panel
from .quadrature import Profile, profile
from .verify import LAWS, Report, verify

__all__ = ["Site", "build", "facts", "is_site", "summary"]

TEMPLATES = Path(__file__).resolve().parent / "templates"
ASSETS = ("site.css", "site.js", "theme.js", "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css", "vendor/uPlot.LICENSE")
FONTS = sorted(f"vendor/fonts/{path.name}" for path in TEMPLATES.glob("vendor/fonts/*.woff2"))
KATEX = ("vendor/katex.min.css", "vendor/KaTeX.LICENSE", *FONTS)  # beside them, where KaTeX typesets
NORMS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)  # q11 and q22 of the sliders
ANGLES = 121  # cosines of equidistant angles: dense at c = +-1, where kernels are steep
DIAGONAL = np.geomspace(1e-3, 50.0, 97)  # q, for the phase diagram
GAP = 0.02  # of t, on both sides of a jump: a pixel or two
INSIDE = 0.9  # of the domain of the norms
TRUTHS = ("recorded", "fresh", "quadrature", "diagonal")  # laws against other sources; the badge has their worst error
DEGREES = 40
DIGITS = 7
PATIENCE = 10.0  # seconds for one formula
LONG = 300  # characters of LaTeX that KaTeX typesets
ROUNDING = 1e-14  # what is below this share of the largest value is zero
WIDE = 60  # characters of an exact value that is shown beside its number

C = sp.Symbol("c", real=True)
UNIT = {q11: sp.Integer(1), q22: sp.Integer(1), q12: C}
Facts = dict[str, Any]


class Site(NamedTuple):
    """What was written."""

    home: Path  # index.html
    pages: int
    size: int  # bytes
    seconds: float


# Facts ------------------------------------------------------------------------------------------------------------


def _names(entry: Entry) -> Facts:
    return {
        "id": entry.id,
        "title": entry.title,
        "names": list(entry.names),
        "expression": entry.expression,
        "kernel": entry.kernel,
        "table1": entry.table1,
        "notes": entry.notes,
    }


def summary(entry: Entry) -> Facts:
    """What the index shows of an entry, in milliseconds: its badge says what the entry declares, nothing is checked."""
    says = "no closed form" if not entry.closed_form else "k only" if entry.jumps else "closed form"
    found = _names(entry) | {"status": {"kind": "declared", "text": says}, "properties": {}}
    try:
        dual = from_entry(entry)
        shape = _shape(_at_defaults(dual))
        return found | {"properties": _properties(entry, dual, shape), "curve": shape and _curve(shape)}
    except ValueError as error:
        return found | {"status": {"kind": "broken", "text": "cannot be read", "detail": str(error)}}


def facts(entry: Entry, references: Mapping[str, Reference], record: str = "") -> Facts:
    """All that a page shows of an entry, as JSON can hold it. Never raises for what is wrong with an entry.

    record   its YAML where it is in no file, and so has no id by which code could call it
    """
    found = _names(entry) | {
        "parameters": {name: p.model_dump(mode="json") for name, p in entry.parameters.items()},
        "references": [
            {"role": role, "key": key, **references[key].model_dump(mode="json")}
            for role, keys in entry.references
            for key in keys
        ],
        "code": {"YAML": record or _yaml(entry)},
    }
    if cited := _bibtex(references, dict.fromkeys(key for _, keys in entry.references for key in keys)):
        found["code"]["BibTeX"] = cited
    try:
        more = _derived(entry, entry.formula if record else entry.id)
    except ValueError as error:
        status = {"kind": "broken", "text": "cannot be read", "detail": str(error), "laws": []}
        return found | {"status": status, "properties": {}}
    return found | more | {"code": more["code"] | found["code"]}


def _derived(entry: Entry, source: str) -> Facts:
    """What follows from the formula; ValueError where it cannot be read."""
    dual = from_entry(entry)
    report = verify(entry)
    at = _at_defaults(dual)
    shape = _shape(at)
    numeric = at.activation if report.reason else at  # an expression is read anew: refused, then approximated
    kernel, diagonal = _sampled(numeric, shape)
    return {
        "formulas": None if report.reason else _formulas(dual),
        "refused": report.reason or None,
        "activation_latex": None if dual.activation is None else _latex(dual.activation),
        "status": _status(entry, at, report),
        "properties": _properties(entry, dual, shape),
        "derivation": None if report.reason else _steps(dual.derivation.root),
        "curve": None if shape is None else _curve(shape),
        "spectrum": None if shape is None else _spectrum(shape),
        "dual": kernel,
        "diagonal": diagonal,
        "code": _code(source, dual, numeric, report, shape),
    }


def _shape(dual: Dual) -> Profile | None:
    """The activation as numbers, where there is one and it can be had."""
    try:
        return None if dual.activation is None else profile(dual)
    except ValueError:
        return None


def _at_defaults(dual: Dual) -> Dual:
    """With numbers for its parameters; still unevaluated, so that it need not have a closed form."""
    values = {s.name: v for s, v in codegen.default_values(dual).items()}
    if not values:
        return dual
    return dual.given(**values) if dual.activation is None else resolve(dual.activation, **values)


def _status(entry: Entry, dual: Dual, report: Report) -> Facts:
    """The badge, with the worst float64 error against values of another source, and the table of laws."""
    says = {law.name: law.says for law in LAWS}
    laws = [
        {"law": r.law, "says": says.get(r.law, ""), "error": _number(r.error), "tolerance": r.tolerance}
        | {"passed": r.passed, "note": r.note}
        for r in report.results
    ]
    if not report.passed:
        first = report.failures[0]
        detail = f"{first.law}: error {first.error:.2g}, tolerance {first.tolerance:.0e}. {first.note}".rstrip()
        return {"kind": "failed", "text": "verification failed", "detail": detail, "laws": laws}
    if report.reason:
        try:
            tables = codegen.approximation(dual, codegen.TOL, codegen.NORMS)
        except ValueError as error:
            return {"kind": "open", "text": "no closed form", "detail": str(error), "laws": []}
        worst = max(error for error in tables.error_bound if error is not None and math.isfinite(error))
        detail = f"{tables.method}, norms {tables.norms[0]:g} to {tables.norms[1]:g}; the bound is numerical, no proof"
        text = f"no closed form, approximated to {worst:.0e}"
        return {"kind": "open", "text": text, "detail": detail, "worst": _number(worst), "laws": []}
    worst = max((r.error for r in report.results if r.law in TRUTHS), default=0.0)
    what = "k verified, no kdot" if entry.kernel is None and dual.jumps else "verified"
    return {
        "kind": "verified",
        "text": f"{what}, worst error {worst:.0e} against other sources",
        "detail": f"{len(laws)} laws hold; errors are relative to sqrt(k11 k22), those of kdot to sqrt(kdot11 kdot22)",
        "worst": _number(worst),
        "laws": laws,
    }


def _properties(entry: Entry, dual: Dual, shape: Profile | None) -> dict[str, bool]:
    """What the index filters by."""
    try:
        homogeneous = dual.homogeneity is not None
    except NoClosedForm:
        homogeneous = False
    return {
        "closed": entry.closed_form,
        "homogeneous": homogeneous,
        "smooth": shape is not None and not shape.breaks,
        "bounded": shape is not None and _bounded(shape),
        "table1": entry.table1 is not None,
    }


def _bounded(shape: Profile) -> bool:
    """By values: nothing out to 1e8 exceeds what is seen within 100."""
    near, far = np.linspace(0, 100, 20001), np.geomspace(100, 1e8, 4001)
    inner, outer = (np.abs(np.concatenate([shape(x), shape(-x)])) for x in (near, far))
    return bool(np.isfinite(outer).all() and outer.max() <= 1.001 * inner.max())


def _formulas(dual: Dual) -> Facts:
    """k and kdot: in general, at q11 = q22 = 1, and there at c = -1, 0, 1."""
    both: dict[str, sp.Expr | None] = {"k": dual.k}
    reason = None
    try:
        both["kdot"] = dual.kdot
    except NoClosedForm as refused:
        both["kdot"], reason = None, str(refused)
    out: Facts = {"domain": dual.domain, "kdot_refused": reason}
    for name, general in both.items():
        if general is not None:
            unit = general.xreplace(UNIT).doit()
            out[name] = {"text": str(general), "latex": _latex(general), "lines": _lines(general)}
            out[name] |= {"unit": {"text": str(unit), "latex": _latex(unit), "lines": _lines(unit)}}
            out[name] |= {"limits": {str(c): _limit(unit, c) for c in (-1, 0, 1)}}
    return out


def _limit(unit: sp.Expr, c: int) -> Facts | None:
    """The exact value where substitution gives a short one."""
    value = unit.xreplace({C: sp.Integer(c)})
    if value.has(sp.nan, sp.zoo, sp.oo) or len(str(value)) > WIDE:
        return None
    return {"text": str(value), "latex": _latex(value)}


def _latex(e: sp.Expr) -> str:
    return sp.latex(e).replace(r"\operatorname{Phi}_{2}", r"\Phi_{2}").replace(r"\operatorname{Phi2}", r"\Phi_{2}")


def _lines(e: sp.Expr) -> list[str]:
    """A long sum as one line per summand, signs first."""
    if not e.is_Add or len(str(e)) < 2 * WIDE:
        return [_latex(e)]
    rows = [_latex(term) for term in e.as_ordered_terms()]
    return [rows[0], *(f"{{}} {row}" if row.startswith("-") else f"{{}} + {row}" for row in rows[1:])]


def _steps(step: Any) -> Facts:
    return {"rule": step.rule, "says": step.statement, "steps": [_steps(child) for child in step.children]}


# Numbers ----------------------------------------------------------------------------------------------------------


def _number(x: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(float(x)) for x in values]


def _curve(shape: Profile) -> Facts:
    """s and s' on one grid, None at their jumps."""
    curves = activation_panel(shape).curves
    jumps = np.unique(np.concatenate([curve.x[~np.isfinite(curve.y)] for curve in curves]))
    x = np.linspace(-REACH, REACH, 241)
    near = np.abs(x[:, None] - jumps).min(axis=1, initial=math.inf)
    x = np.unique(np.concatenate([x[near > GAP], jumps, *(np.clip(jumps + d, -REACH, REACH) for d in (-GAP, GAP))]))
    out: Facts = {"t": _numbers(x)}
    for curve in curves:
        known = np.isfinite(curve.y)
        y = np.interp(x, curve.x[known], curve.y[known])
        y[np.isin(x, curve.x[~known])] = np.nan
        out[curve.label] = _numbers(y)
    return out


def _spectrum(shape: Profile) -> list[float | None]:
    """chat_j^2 / E[s^2] at norm 1; None where it is rounding, [] where s is not square-integrable there."""
    try:
        squares = hermite(shape, DEGREES, 1.0) ** 2 / second_moment(shape, 1.0)
    except ValueError:
        return []
    return [_number(x) if x > RESOLVED else None for x in squares]


def _sampled(dual: Dual | sp.Expr, shape: Profile | None) -> tuple[Facts | None, Facts | None]:
    """k and kdot over c for pairs of norms (k is symmetric in them), and over q at c = 1, by the NumPy code."""
    try:
        module = codegen.load(codegen.emit(dual, "numpy"), "numpy")
    except ValueError:
        return None, None
    ntk = shape is None or not shape.jumps
    members: dict[str, Callable] = {"k": module.k} | ({"kdot": module.kdot} if ntk else {})
    greatest = math.inf
    if shape is not None and shape.rate > 0:
        greatest = INSIDE / (4 * shape.rate)
    norms = [q for q in NORMS if q <= greatest]
    c = np.round(np.cos(np.linspace(math.pi, 0, ANGLES)), DIGITS)
    kernel: Facts = {"c": _numbers(c), "q": norms} | {name: [] for name in members}
    diagonal: Facts = {"q": _numbers(q for q in DIAGONAL if q <= greatest)}
    with np.errstate(all="ignore"):
        for name, f in members.items():
            for a, b in combinations_with_replacement(norms, 2):
                row = _values(f, c * math.sqrt(a * b), np.full_like(c, a), np.full_like(c, b))
                row[np.abs(row) < ROUNDING * np.nanmax(np.abs(row), initial=0.0)] = 0.0
                kernel[name].append(_numbers(row))
            q = np.array(diagonal["q"], dtype=float)
            diagonal[name] = _numbers(_values(f, q, q, q))
    return kernel if norms else None, diagonal if ntk and norms else None


def _values(f: Callable, *q: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(f(*q), dtype=float) * np.ones_like(q[0])
    except ValueError:  # generated code raises where it has a NaN
        return np.full_like(q[0], np.nan)


# Code to copy -----------------------------------------------------------------------------------------------------

SYMPY = """from sympy import *

q11, q12, q22 = symbols("q11 q12 q22")
{symbols}{phi2}k = {k}
{kdot}
"""
PHI2 = 'Phi2 = Function("Phi2")  # the distribution function of the bivariate normal, Phi2(h, k, rho)\n'
SKLEARN = """import dualcalc as dc
from dualcalc.estimators import ExactKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.pipeline import make_pipeline

net = dc.serial(dc.Dense(W_std=1.5, b_std=0.1), dc.Activation({source}), dc.Dense())
model = make_pipeline(ExactKernel(net, get="{get}"), KernelRidge(kernel="precomputed", alpha=1e-3))
# model.fit(X, y).predict(X_new)
"""


def _code(source: str, dual: Dual, numeric: Dual | sp.Expr, report: Report, shape: Profile | None) -> dict[str, str]:
    """Tab -> text."""
    out: dict[str, str] = {}
    if not report.reason:
        out["LaTeX"] = codegen.emit(dual, "latex")
        refused = codegen.refusal(dual)
        kdot = f"# kdot: {refused}" if refused else f"kdot = {dual.kdot}"
        names = [s.name for s in dual.parameters]
        positive = ", positive=True" if names and all(s.is_positive for s in dual.parameters) else ", real=True"
        left = f'{", ".join(names)} = symbols("{" ".join(names)}"{positive})\n' if names else ""
        text = SYMPY.format(symbols=left, phi2="", k=dual.k, kdot=kdot)
        out["SymPy"] = SYMPY.format(symbols=left, phi2=PHI2, k=dual.k, kdot=kdot) if "Phi2" in text else text
    try:
        out["JAX"] = codegen.emit(numeric if report.reason else dual, "jax")
        out["neural-tangents"] = with_layer(out["JAX"])
    except ValueError as error:
        out["JAX"] = f"# {error}\n"
    out["scikit-learn"] = SKLEARN.format(
        source=json.dumps(source), get="nngp" if shape is not None and shape.jumps else "ntk"
    )
    return out


def _yaml(entry: Entry) -> str:
    """The record as its file has it: from its first line to the next record, outdented."""
    lines = entry.path.read_text(encoding="utf-8").splitlines()[entry.line - 1 :]
    indent = len(lines[0]) - len(lines[0].lstrip(" "))
    kept = lines[:1]
    for line in lines[1:]:
        if line.strip() and not line.startswith(" " * (indent + 1)):
            break
        kept.append(line)
    return "\n".join(line[indent:] for line in kept).rstrip() + "\n"


def _bibtex(references: Mapping[str, Reference], keys: Iterable[str]) -> str:
    records = []
    for key in keys:
        r = references[key]
        authors = " and ".join("others" if a.strip() == "et al." else a.strip() for a in r.author.split(","))
        fields = {"author": authors, "title": f"{{{r.title}}}", "journal": r.venue, "year": str(r.year)}
        fields |= {"doi": r.doi} if r.doi else {}
        fields |= {"eprint": r.arxiv, "archivePrefix": "arXiv"} if r.arxiv else {}
        rows = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        records.append(f"@article{{{key},\n{rows}\n}}\n")
    return "\n".join(records)


# Pages ------------------------------------------------------------------------------------------------------------

BOX, FLOOR = (440.0, 150.0), -12  # of the spectrum's picture; the lowest power of ten in it
SPARK = (120.0, 60.0)


def mathml(latex: str) -> Markup:
    """LaTeX of our own printers as MathML; escaped text where the converter gives up."""
    try:
        return Markup(convert(latex))
    except Exception:  # of any kind: a page must not fail for one formula
        return Markup("<code>{}</code>").format(latex)


class Katex:
    """LaTeX as HTML and MathML by KaTeX, in a process of node's; what is too long for it, by `mathml`.

    KaTeX needs some 80 bytes for one of LaTeX, `mathml` 7.
    """

    def __init__(self, node: str):
        command = [node, str(TEMPLATES / "katex.cjs")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.turn = threading.Lock()

    def __call__(self, latex: str) -> Markup:
        if len(latex) > LONG:
            return mathml(latex)
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


def spark(curve: Facts | None) -> str:
    """s as the path of a small SVG, in its own scale; jumps and what leaves the box are gaps."""
    if curve is None:
        return ""
    points = [(x, y) for x, y in zip(curve["t"], curve["s"], strict=True) if abs(x) <= 3]
    known = sorted(y for _, y in points if y is not None)
    low, high = min(known, default=0.0), max(known, default=1.0)
    low, high = max(low, -6.0), min(high, 6.0)
    span, (w, h) = (high - low) or 1.0, SPARK
    out, pen = [], "M"
    for x, y in points:
        if y is None or not low - span <= y <= high + span:
            pen = "M"
            continue
        out.append(f"{pen}{(x + 3) / 6 * w:.1f} {h - 4 - (y - low) / span * (h - 8):.1f}")
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


PHASE = (4.0, 2.0, 320.0, 200.0)  # the greatest W_std^2 and b_std^2 that are drawn, and the picture's size


def critical(diagonal: Facts) -> list[str]:
    """Points of the critical line chi_1 = W_std^2 kdot(q, q, q) = 1 with q = W_std^2 k(q, q, q) + b_std^2, for an SVG
    path; one point where all are the same."""
    right, top, w, h = PHASE
    out, pen = [], "M"
    for q, k, kdot in zip(diagonal["q"], diagonal["k"], diagonal["kdot"], strict=True):
        if k is None or not kdot:
            continue
        weight, bias = 1 / kdot, q - k / kdot
        if not (0 <= weight <= right and -1e-5 * q <= bias <= top):
            pen = "M"
            continue
        out.append(f"{pen}{weight / right * w:.1f} {h - bias / top * h:.1f}")
        pen = "L"
    return out if len({point[1:] for point in out}) > 1 else [f"{point}h0" for point in out[:1]]


def crossed(diagonal: Facts) -> bool:
    """Whether the critical line has a point anywhere: chi_1 = 1 with b_std^2 >= 0."""
    rows = zip(diagonal["q"], diagonal["k"], diagonal["kdot"], strict=True)
    return any(kdot and k is not None and q - k / kdot >= -1e-5 * q for q, k, kdot in rows)


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
        "spark": spark,
        "stems": stems,
        "critical": critical,
        "crossed": crossed,
        "short": short,
    }
    env.globals |= {
        "live": live,
        "katex": typeset is not mathml,
        "version": version("dualcalc"),
        "BOX": BOX,
        "FLOOR": FLOOR,
        "PHASE": PHASE,
    }
    return env


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


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


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
        return (folder / "assets" / "site.js").is_file() and all("properties" in entry for entry in listed)
    except (OSError, ValueError, TypeError):
        return False


def _put(path: Path, content: bytes) -> None:
    """A file in the place of what had its name; a link is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)


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
    with ProcessPoolExecutor(min(workers, len(entries)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, entries.values())
