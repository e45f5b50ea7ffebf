"""What the catalog's pages say of an entry, as plain data that JSON can hold; it is also an entry's JSON file.

`facts` derives, verifies and samples one entry, which takes about a second; `summary` is what a list shows of one, in
milliseconds. `site.py` makes pages of them, `serve.py` calls both. Needs the extra `dualcalc[site]` for the panels of
`plots.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import sympy as sp

from . import codegen
from .adapters import with_layer
from .atoms import NoClosedForm
from .catalog import Entry, Reference
from .dual import Dual, from_entry, resolve
from .expansions import hermite, second_moment
from .gaussian import Phi2
from .parsing import q11, q12, q22
from .phases import diagram
from .plots import REACH, RESOLVED, activation_panel
from .quadrature import Profile, profile
from .verify import LAWS, Report, verify

__all__ = ["Facts", "facts", "summary"]

NORMS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)  # q11 and q22 of the sliders
ANGLES = 91  # cosines of equidistant angles: dense at c = +-1, where kernels are steep
WEIGHTS, BIASES = np.linspace(0, 3, 61), np.linspace(0, 1.5, 31)  # W_std and b_std of the phase diagram
GREATEST = 99.0  # q of the phase diagram: tables end at 100
GAP = 0.02  # of t, on both sides of a jump: a pixel or two
INSIDE = 0.9  # of the domain of the norms
TRUTHS = ("recorded", "fresh", "quadrature", "diagonal")  # laws against other sources; the badge has their worst error
DEGREES = 40
DIGITS, FEW = 7, 4  # of numbers, and of the many in a phase diagram
ROUNDING = 1e-14  # what is below this share of the largest value is zero
WIDE = 60  # characters of an exact value that is shown beside its number

C = sp.Symbol("c", real=True)
UNIT = {q11: sp.Integer(1), q22: sp.Integer(1), q12: C}
Facts = dict[str, Any]


# What a page says --------------------------------------------------------------------------------------------------


def _names(entry: Entry) -> Facts:
    return {
        "id": entry.id,
        "title": entry.title,
        "names": list(entry.names),
        "expression": entry.expression,
        "kernel": entry.kernel,
        "table1": entry.table1,
        "jumps": entry.jumps,
        "notes": entry.notes,
    }


def summary(entry: Entry) -> Facts:
    """What the index shows of an entry, in milliseconds: its badge says what the entry declares, nothing is checked."""
    says = "no closed form" if not entry.closed_form else "k only" if entry.jumps else "closed form"
    found = _names(entry) | {"status": {"kind": "declared", "text": says}, "properties": {}}
    try:
        dual = from_entry(entry)
        at = _at_defaults(dual)
        shape = _shape(at)
        drawn = {"curve": _curve(shape)} if shape else {"dual": _sampled(*_members(at, None))}
        return found | {"properties": _properties(entry, dual, shape)} | drawn
    except Exception as error:
        return found | {"status": _broken(error)}


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
    except Exception as error:
        return found | {"status": _broken(error), "properties": {}}
    return found | more | {"code": more["code"] | found["code"]}


def _broken(error: Exception) -> Facts:
    """The badge of an entry that has no page of its own; a fault of ours is no end of the others either."""
    ours = "" if isinstance(error, ValueError) else f"internal error, {type(error).__name__}, please report it: "
    return {"kind": "broken", "text": "cannot be read", "detail": f"{ours}{error}", "laws": []}


def _derived(entry: Entry, source: str) -> Facts:
    """What follows from the formula; ValueError where it cannot be read."""
    dual = from_entry(entry)
    report = verify(entry)
    at = _at_defaults(dual)
    shape = _shape(at)
    numeric = at.activation if report.reason else at  # an expression is read anew: refused, then approximated
    members, greatest = _members(numeric, shape)
    return {
        "formulas": None if report.reason else _formulas(dual),
        "refused": report.reason or None,
        "activation_latex": None if dual.activation is None else _latex(dual.activation),
        "status": _status(entry, at, report),
        "properties": _properties(entry, dual, shape),
        "derivation": None if report.reason else _steps(dual.derivation.root),
        "curve": None if shape is None else _curve(shape),
        "spectrum": None if shape is None else _spectrum(shape),
        "dual": _sampled(members, greatest),
        "phases": _phases(members, greatest),
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
        bounds = {
            f"k{dot}": e for dot, e in zip(("", "dot"), tables.error_bound, strict=True) if e and math.isfinite(e)
        }
        worst = max(bounds.values())
        detail = f"{tables.method}, norms {tables.norms[0]:g} to {tables.norms[1]:g}; the bound is numerical, no proof"
        text = f"no closed form, approximated to {worst:.0e}"
        laws = [
            {
                "law": f"bound of {name}",
                "says": f"|error of {name}| over sqrt({name}11 {name}22), on these norms",
                "error": _number(e),
                "tolerance": codegen.TOL,
                "passed": e <= codegen.TOL,
                "note": "",
            }
            for name, e in bounds.items()
        ]
        return {"kind": "open", "text": text, "detail": detail, "worst": _number(worst), "laws": laws}
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
    value = unit.xreplace({C: sp.Integer(c)}).replace(Phi2, _degenerate)
    if value.has(sp.nan, sp.zoo, sp.oo) or len(str(value)) > WIDE:
        return None
    return {"text": str(value), "latex": _latex(value)}


def _degenerate(h: sp.Expr, k: sp.Expr, rho: sp.Expr) -> sp.Expr:
    """Phi2 where X and Y are independent, equal or opposite."""
    normal = [(1 + sp.erf(x / sp.sqrt(2))) / 2 for x in (h, k)]
    if rho == 0:
        return normal[0] * normal[1]
    if rho == 1 and h.is_number and k.is_number:
        return normal[0] if h <= k else normal[1]
    if rho == -1 and h.is_number and k.is_number:
        return normal[0] + normal[1] - 1 if h + k > 0 else sp.Integer(0)
    return Phi2(h, k, rho)


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


def _number(x: float, digits: int = DIGITS) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def _numbers(values: Iterable[float], digits: int = DIGITS) -> list[float | None]:
    return [_number(float(x), digits) for x in values]


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


def _members(dual: Dual | sp.Expr, shape: Profile | None) -> tuple[dict[str, Callable], float]:
    """k and, where it has values, kdot as the NumPy code, and the greatest q that they are asked for."""
    try:
        module = codegen.load(codegen.emit(dual, "numpy"), "numpy")
    except ValueError:
        return {}, 0.0
    greatest = INSIDE / (4 * shape.rate) if shape is not None and shape.rate > 0 else math.inf
    names = ("k", "kdot") if shape is None or not shape.jumps else ("k",)
    return {name: partial(_values, getattr(module, name)) for name in names}, greatest


def _sampled(members: Mapping[str, Callable], greatest: float) -> Facts | None:
    """k and kdot over c for pairs of norms, in which they are symmetric."""
    norms = [q for q in NORMS if q <= greatest]
    if not norms:
        return None
    c = np.round(np.cos(np.linspace(math.pi, 0, ANGLES)), DIGITS)
    kernel: Facts = {"c": _numbers(c), "q": norms} | {name: [] for name in members}
    with np.errstate(all="ignore"):
        for name, f in members.items():
            for a, b in combinations_with_replacement(norms, 2):
                row = f(c * math.sqrt(a * b), np.full_like(c, a), np.full_like(c, b))
                row[np.abs(row) < ROUNDING * np.nanmax(np.abs(row), initial=0.0)] = 0.0
                kernel[name].append(_numbers(row))
    return kernel


def _phases(members: Mapping[str, Callable], greatest: float) -> Facts | None:
    """The phase diagram, a row for each b_std; None where the variance grows, or a depth scale is infinite or none."""
    if "kdot" not in members:
        return None
    try:
        with np.errstate(all="ignore"):
            found = diagram(members["k"], members["kdot"], WEIGHTS, BIASES, min(greatest, GREATEST))
    except ValueError:
        return None
    out: Facts = {"W_std": _numbers(WEIGHTS), "b_std": _numbers(BIASES), "greatest": min(greatest, GREATEST)}
    for name in ("q", "chi_1", "depth_scale"):
        out[name] = [_numbers(row, FEW) for row in np.where(found.q < np.inf, getattr(found, name), np.nan)]
    return out | {"line": [None if np.isnan(point).any() else _numbers(point, FEW) for point in found.line]}


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


def _tex(text: str) -> str:
    """Plain text, of which LaTeX reads no character as its own."""
    return re.sub(r"[\\{}&%$#_]", lambda m: r"\textbackslash{}" if m[0] == "\\" else f"\\{m[0]}", text)


def _bibtex(references: Mapping[str, Reference], keys: Iterable[str]) -> str:
    records = []
    for key in keys:
        r = references[key]
        authors = " and ".join("others" if a.strip() == "et al." else _tex(a.strip()) for a in r.author.split(","))
        fields = {"author": authors, "title": f"{{{_tex(r.title)}}}", "journal": _tex(r.venue), "year": str(r.year)}
        fields |= {"doi": _tex(r.doi)} if r.doi else {}
        fields |= {"eprint": r.arxiv, "archivePrefix": "arXiv"} if r.arxiv else {}
        rows = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        records.append(f"@article{{{key},\n{rows}\n}}\n")
    return "\n".join(records)
