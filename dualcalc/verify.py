"""The law table: what must hold of every catalog entry, each law a value that measures its worst error.

`verify` runs it for one entry, `verify_all` for a catalog; `dualcalc catalog verify` prints the outcome. What is
measured is the generated NumPy code, against four sources that share nothing with it: values recorded by
`tests/oracle.py`, balls, quadrature of the activation itself (only SymPy reads it), and identities between its own
values. Errors are relative to sqrt(k11 k22), those of kdot to sqrt(kdot11 kdot22).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
import numpy as np
import sympy as sp

from . import balls, catalog, codegen
from .atoms import NoClosedForm
from .catalog import Entry
from .dual import Dual, from_entry
from .gaussian import Phi2, phi2_value
from .parsing import q11, q12, q22, t

Point = tuple[float, float, float]  # q12, q11, q22
Kernel = Callable[..., Any]
PRECISIONS = ("float64", "float32")
EPS, EPS32 = 2.0**-52, 2.0**-23


# What is verified -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One dual, its parameters' values, and the code that was generated from it.

    activation   what the dual claims to belong to, in t alone; None for a bare kernel
    k, kdot      the code, `(q12, q11, q22, **parameters)`, by default at `values`; kdot is None without an NTK
    points       fresh random points
    """

    entry: Entry
    dual: Dual
    values: Mapping[sp.Symbol, sp.Expr]
    activation: sp.Expr | None
    k: Kernel
    kdot: Kernel | None
    points: tuple[Point, ...]

    @cached_property
    def largest(self) -> float:
        """The largest norm at which the laws look: well inside the domain."""
        growth = float(self.dual.growth.subs(self.values))
        return min(2.0, 0.075 / growth) if growth > 0 else 2.0

    @cached_property
    def members(self) -> tuple[tuple[int, Kernel], ...]:
        """(m, code) of E[s^(m)(u) s^(m)(v)], for those that there are."""
        return tuple((m, f) for m, f in ((0, self.k), (1, self.kdot)) if f is not None)

    def ball(self, m: int, point: tuple[Any, Any, Any], bits: int = balls.BITS) -> Any:
        """The formula's value in balls."""
        with balls.precision(bits):
            env = balls.environment(*point, self.values)
            if self.dual.activation is None:
                return balls.product([self.dual.kdot if m else self.dual.k], env)
            return balls.value(self.dual.member(m, m), env)

    @cached_property
    def truths(self) -> dict[tuple[int, Point], tuple[float, float]]:
        """(m, point) -> the value of the formula at a fresh point, and its scale."""
        found = {}
        for m, _ in self.members:
            for point in self.points:
                _, a, b = point
                value, first, second = (_number(self.ball(m, p)) for p in (point, (a, a, a), (b, b, b)))
                found[m, point] = value, math.sqrt(first * second)
        return found

    @cached_property
    def gram(self) -> tuple[np.ndarray, np.ndarray]:
        """Covariances and norms of 40 random points, two of them opposite and parallel to the first."""
        x = _generator(self.entry.id, 1).standard_normal((40, 5))
        norms = np.linspace(self.largest / 40, self.largest, 40)
        x *= np.sqrt(norms / np.sum(x * x, axis=1))[:, None]
        x[1:3] = -x[0], 2 * x[0]
        q = np.sum(x * x, axis=1)
        covariance = x @ x.T
        covariance = (covariance + covariance.T) / 2
        np.fill_diagonal(covariance, q)
        return covariance, q

    @cached_property
    def slopes(self) -> tuple[Kernel, ...]:
        """The activation and its derivative as NumPy functions, by SymPy alone; only the first where it jumps."""
        assert self.activation is not None
        smooth = sp.diff(self.activation, t).replace(sp.DiracDelta, lambda *_: sp.Integer(0))
        both = (self.activation, smooth)[: 2 if self.kdot else 1]
        return tuple(sp.lambdify(t, e, ["scipy", "numpy"]) for e in both)

    @cached_property
    def kinks(self) -> tuple[float, ...]:
        return tuple(sorted(float(b.subs(self.values)) for b in self.dual.pieces.breaks))


def _number(ball: Any) -> float:
    """The middle of a ball; NaN, which fails every law, where it is not known to better than float64."""
    middle, radius = float(ball.mid()), float(ball.rad())
    return middle if radius <= max(EPS / 256 * abs(middle), 1e-30) else math.nan


def _generator(id: str, *more: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(id.encode()), *more])


def subject(entry: Entry, *, points: int = 3, seed: int = 0, **parameters: Any) -> Subject:
    """Derive an entry at its default parameters, generate its code, and choose the fresh points."""
    dual = from_entry(entry, **parameters)
    values = codegen.default_values(dual)
    module = codegen.load(codegen.emit(dual, "numpy"), "numpy")
    keywords = {s.name: float(v) for s, v in values.items()}

    k, kdot = (partial(f, **keywords) for f in (module.k, module.kdot))
    activation = None if dual.activation is None else dual.activation.subs(values)
    made = Subject(entry, dual, values, activation, k, None if dual.jumps else kdot, ())
    rng = _generator(entry.id, seed)
    norms = np.exp(rng.uniform(math.log(min(0.1, made.largest / 4)), math.log(made.largest), (points, 2)))
    cosines = rng.uniform(-0.95, 0.95, points)
    rows = zip(cosines * np.sqrt(norms.prod(axis=1)), norms[:, 0], norms[:, 1], strict=True)
    return replace(made, points=tuple((float(c), float(a), float(b)) for c, a, b in rows))


# Quadrature of the activation -------------------------------------------------------------------------------------

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def _line(s: Subject, norm: float, width: float = 0.5) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Nodes z, their weights, and s^(m)(sqrt(norm) z): panels cut at the kinks.

    They reach to where E[s^2; |z| > reach] is below 1e-26 of its whole, which leaves 1e-13 of sqrt(k11 k22).
    """
    scale = math.sqrt(norm)
    z = np.arange(-38.0, 38.01, 0.125)
    profile = np.max([_apply(f, scale * z) ** 2 * np.exp(-z * z / 2) for f in s.slopes], axis=0)
    reach = min(float(np.max(np.abs(z[profile > 1e-26 * profile.max()]))) + 0.5, 38.0)
    cuts = np.unique([*np.arange(-reach, reach, width), reach, *(x / scale for x in s.kinks if abs(x) < reach * scale)])
    half = np.diff(cuts)[:, None] / 2
    z = (cuts[:-1, None] + half + half * NODES).ravel()
    return z, (half * WEIGHTS).ravel(), [_apply(f, scale * z) for f in s.slopes]


def _apply(f: Kernel, x: np.ndarray) -> np.ndarray:
    return np.asarray(f(x), dtype=float) * np.ones_like(x)


def quadrature(s: Subject, point: Point) -> list[float]:
    """E[s^(m)(u) s^(m)(v)] for m = 0 and, where there is an NTK, 1: a tensor rule, |c| <= 0.95."""
    c = point[0] / math.sqrt(point[1] * point[2])
    (x, wx, fx), (y, wy, fy) = (_line(s, norm) for norm in point[1:])
    rest = 1 - c * c
    density = np.exp(-(x[:, None] ** 2 - 2 * c * x[:, None] * y + y**2) / (2 * rest)) / (2 * math.pi * math.sqrt(rest))
    return [float((wx * a) @ density @ (wy * b)) for a, b in zip(fx, fy, strict=True)]


def second_moments(s: Subject, norm: float) -> list[float]:
    """E[s^(m)(u)^2]."""
    z, w, values = _line(s, norm, 0.125)  # one-dimensional, and held to 1e-12
    return [float(np.sum(w * f * f * np.exp(-z * z / 2)) / math.sqrt(2 * math.pi)) for f in values]


# Recorded values --------------------------------------------------------------------------------------------------

# entry -> the recordings of tests/oracle.py that belong to it, with their parameters; all others go by their own id
RECORDINGS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "abrelu": (("abrelu", {"A": "0.3", "B": "1.1"}),),
    "exp": (("exp", {"A": "0.6"}),),
    "gaussian": (("gaussian", {"A": "0.8"}),),
    "rbf": (("rbf", {"A": "0.9"}),),
    "rectified_monomial": tuple((f"rectified_monomial{x}", {"q": q}) for x, q in (("", 2), ("_3", 3), ("_5", 5))),
    "ricker": (("mexican_hat", {}),),
    "sin": (("sin", {"A": "1.3", "B": "0.4"}),),
}


@cache
def recorded() -> dict[str, Any]:
    """The values that the oracle recorded, by its names: inside the wheel, or in the checkout's tests."""
    here = Path(__file__).resolve().parent
    for path in (here / "oracle.json", here.parent / "tests" / "data" / "oracle.json"):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))["activations"]
    raise FileNotFoundError(f"{here / 'oracle.json'}: the recorded values are missing; reinstall dualcalc")


def recordings(entry: Entry) -> list[tuple[list[dict[str, str]], dict[str, Any]]]:
    """(rows, parameters) of the recordings of a built-in entry."""
    if entry.path.parent != catalog.builtin_folder():
        return []
    named = RECORDINGS.get(entry.id, ((entry.id, {}),))
    return [(recorded()[name]["rows"], parameters) for name, parameters in named if name in recorded()]


# The laws ---------------------------------------------------------------------------------------------------------


class Law(NamedTuple):
    """A statement about every entry.

    measure   its worst error on a subject, None where it does not apply
    """

    name: str
    says: str
    tolerance: float
    measure: Callable[[Subject], float | None]


def _worst(errors: Iterable[Any]) -> float:
    """The largest error; NaN if one is NaN."""
    return float(np.max(np.asarray([*errors, 0.0], dtype=float)))


def _code(f: Kernel, point: Point, dtype: str = "float64") -> float:
    return float(f(*(np.asarray(x, dtype) for x in point)))


def _recorded(s: Subject) -> float | None:
    errors = []
    symbols = {symbol.name for symbol in s.dual.parameters}
    for rows, parameters in recordings(s.entry):
        shaped = {name: value for name, value in parameters.items() if name not in symbols}  # a degree: other code
        of = subject(s.entry, points=0, **shaped) if shaped else s
        keywords = {name: float(value) for name, value in parameters.items() if name in symbols}
        for row in rows:
            point = (float.fromhex(row["q12"]), float.fromhex(row["q11"]), float.fromhex(row["q22"]))
            for m, f in of.members:
                truth, first, second = (float(row[("k", "kdot")[m] + at]) for at in ("", "11", "22"))
                errors.append(abs(_code(partial(f, **keywords), point) - truth) / math.sqrt(first * second))
    return _worst(errors) if errors else None


def _declared(s: Subject) -> float | None:
    errors = []
    for e in s.entry.expected:
        for m, value in enumerate((e.k, e.kdot)):
            if value is not None:
                point, f = (e.q12, e.q11, e.q22), (s.k, s.kdot)[m]
                scale = math.sqrt(math.prod(float(s.ball(m, (q, q, q)).mid()) for q in (e.q11, e.q22)))
                errors.append(abs(_code(f, point) - value) / scale if f else math.inf)
    return _worst(errors) if errors else None


def _fresh(s: Subject, dtype: str = "float64") -> float:
    """Code against balls; in float32 at the points rounded to it."""
    codes = dict(s.members)
    return _worst(abs(_code(codes[m], p, dtype) - v) / scale for (m, p), (v, scale) in s.truths.items())


def _quadrature(s: Subject) -> float | None:
    if s.activation is None:
        return None
    errors = []
    for point in s.points:
        values = quadrature(s, point)
        first, second = (second_moments(s, norm) for norm in point[1:])
        errors += [abs(_code(f, point) - values[m]) / math.sqrt(first[m] * second[m]) for m, f in s.members]
    return _worst(errors)


def _diagonal(s: Subject) -> float | None:
    if s.activation is None:
        return None
    norms = {s.largest / 40, s.largest, *(q for point in s.points for q in point[1:])}
    moments = {q: second_moments(s, q) for q in norms}
    return _worst(abs(_code(f, (q, q, q)) / moments[q][m] - 1) for q in norms for m, f in s.members)


def _formula(s: Subject) -> float:
    """What `derive` prints, Phi2 by another integral than the code's, at the first fresh point."""
    errors, point = [], s.points[0]
    for m, _ in s.members:
        printed = (s.dual.kdot if m else s.dual.k).subs(s.values)
        f = sp.lambdify((q12, q11, q22), printed, [{Phi2.__name__: phi2_value}, "mpmath"])
        with mpmath.workdps(30):
            value = complex(f(*map(mpmath.mpf, point)))
        truth, scale = s.truths[m, point]
        errors.append(abs(value - truth) / scale)
    return _worst(errors)


def _slope(s: Subject) -> float | None:
    if s.kdot is None:
        return None
    step, errors = Fraction(1, 2**50), []
    for point in s.points:
        above, below = (s.ball(0, (Fraction(point[0]) + h, *point[1:]), 220) for h in (step, -step))
        with balls.precision(220):
            difference = (above - below) / balls.exact(2 * step)
        errors.append(abs(_code(s.kdot, point) - float(difference.mid())) / s.truths[1, point][1])
    return _worst(errors)


def _gram(s: Subject, f: Kernel) -> np.ndarray:
    covariance, q = s.gram
    gram = np.asarray(f(covariance, q[:, None], q[None, :]))
    if gram.shape != covariance.shape:
        raise ValueError(f"the code gave shape {gram.shape} for arguments of shapes (40, 40), (40, 1) and (1, 40)")
    return gram


def _symmetric(s: Subject) -> float:
    errors = []
    for _, f in s.members:
        gram = _gram(s, f)
        diagonal = np.sqrt(np.abs(np.diag(gram)))
        errors.append(np.max(np.abs(gram - gram.T) / np.outer(diagonal, diagonal)))
    return _worst(errors)


def _semidefinite(s: Subject) -> float:
    errors = []
    for _, f in s.members:
        gram = _gram(s, f)
        diagonal = np.sqrt(np.diag(gram))
        errors.append(-np.linalg.eigvalsh(gram / np.outer(diagonal, diagonal))[0])
    return _worst(errors)


def _homogeneous(s: Subject) -> float | None:
    degree = s.dual.homogeneity
    if degree is None:
        return None
    errors = []
    for (m, p), (value, scale) in s.truths.items():
        factor = 4.0 ** (degree - m)  # k of norms q grows as q^degree
        larger = _code(s.members[m][1], (4 * p[0], 4 * p[1], 4 * p[2]))
        errors.append(abs(larger / factor - value) / scale)
    return _worst(errors)


def _parity(s: Subject) -> float | None:
    parity = s.dual.parity
    if parity is None:
        return None
    errors = []
    for (m, p), (value, scale) in s.truths.items():
        mirrored = _code(s.members[m][1], (-p[0], p[1], p[2]))
        errors.append(abs(mirrored - (-1) ** m * parity * value) / scale)
    return _worst(errors)


def _finite(s: Subject) -> float:
    q = min(1.0, s.largest)
    above = math.nextafter(q, 3.0)
    edges = [(q, q, q), (-q, q, q), (above, q, q), (0.0, 0.0, q), (0.0, q, 0.0), (0.0, 0.0, 0.0), (1e-9, 1e-9, 1e-9)]
    for _, f in s.members:
        for p in edges:
            try:
                finite = math.isfinite(_code(f, p))
            except ValueError as refused:  # generated code raises where it has a NaN
                raise ValueError(f"at (q12, q11, q22) = {p}: {refused}") from None
            if not finite:
                return math.inf
    return 0.0


def _zero(s: Subject) -> float | None:
    """k(0, 0, q) = s(0) E[s]; where s jumps, s(0) is a convention."""
    if s.activation is None or s.dual.jumps:
        return None
    q, start = s.points[0][2], float(s.activation.subs(t, 0))
    z, w, (values, _) = _line(s, q)
    mean = float(np.sum(w * values * np.exp(-z * z / 2)) / math.sqrt(2 * math.pi))
    scale = abs(start) * math.sqrt(second_moments(s, q)[0]) or 1.0
    return abs(_code(s.k, (0.0, 0.0, q)) - start * mean) / scale


def _no_ntk(s: Subject) -> float | None:
    """0 where the code and the dual both refuse kdot, else infinite."""
    if s.dual.activation is None or not s.dual.jumps:
        return None
    try:
        s.dual.kdot  # noqa: B018
    except NoClosedForm as reason:
        return 0.0 if "jump" in str(reason) and s.kdot is None else math.inf
    return math.inf


LAWS = (
    Law("recorded", "the code agrees with the values that an independent oracle recorded", 1e-12, _recorded),
    Law("declared", "the code agrees with the values in the catalog file", 1e-12, _declared),
    Law("fresh", "at random points the code agrees with the formula in balls", 64 * EPS, _fresh),
    Law("quadrature", "at random points the code agrees with E[s(u) s(v)] by quadrature", 1e-10, _quadrature),
    Law("formula", "the formula as printed agrees with the calculus", 64 * EPS, _formula),
    Law("slope", "kdot = dk/dq12, by differences in balls", 64 * EPS, _slope),
    Law("diagonal", "k(q, q, q) = E[s^2], kdot(q, q, q) = E[s'^2]", 1e-12, _diagonal),
    Law("symmetric", "k(q12, q11, q22) = k(q12, q22, q11)", 64 * EPS, _symmetric),
    Law("psd", "Gram matrices have no negative eigenvalue", 1e-12, _semidefinite),
    Law("homogeneous", "s(a t) = a^p s(t) makes k and kdot homogeneous", 64 * EPS, _homogeneous),
    Law("parity", "an even or odd s makes k even or odd in q12, kdot odd or even", 64 * EPS, _parity),
    Law("finite", "k and kdot are finite at c = 1, c = -1 and for zero vectors", 0.0, _finite),
    Law("zero", "k(0, 0, q) = s(0) E[s]", 1e-12, _zero),
    Law("float32", "the code in single precision agrees with the formula", 64 * EPS32, lambda s: _fresh(s, "float32")),
    Law("no ntk", "where s jumps, kdot is refused with the reason", 0.0, _no_ntk),
)
# Laws without a subject: derive refuses an entry with `closed_form: false`; any other is read, derived and emitted.
REFUSED, DERIVED = "refused", "derived"


# Reports ----------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What one law measured."""

    law: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    @property
    def severity(self) -> float:
        """The error as a part of the tolerance; a failure is more than 1."""
        return self.error / self.tolerance if self.tolerance and self.passed else 0.0 if self.passed else math.inf


@dataclass(frozen=True)
class Report:
    """All laws that apply to one entry. `reason`: why it has no closed form."""

    id: str
    results: tuple[Result, ...]
    reason: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if not result.passed)

    def __str__(self) -> str:
        if self.reason and self.passed:
            return f"{self.id}: no closed form: {self.reason}"
        rows = [f"{self.id}: {'passed' if self.passed else 'FAILED'}"]
        for r in self.results:
            note = f"  {r.note}" if r.note else ""
            rows.append(f"  {'ok  ' if r.passed else 'FAIL'} {r.law:11s} {r.error:8.1e} of {r.tolerance:.0e}{note}")
        return "\n".join(rows)


def check(s: Subject, laws: Iterable[Law] = LAWS) -> tuple[Result, ...]:
    """The laws that apply to a subject, measured. A law that cannot be evaluated has failed, with the error's text."""
    results = []
    for law in laws:
        try:
            with np.errstate(all="ignore"):  # what is not finite fails by its value
                error = law.measure(s)
        except Exception as problem:
            results.append(Result(law.name, math.inf, law.tolerance, f"{type(problem).__name__}: {problem}"))
            continue
        if error is not None:
            results.append(Result(law.name, error, law.tolerance))
    return tuple(results)


def verify(entry: Entry | str, *, points: int = 3, seed: int = 0, precisions: tuple[str, ...] = PRECISIONS) -> Report:
    """The law table for one entry, or the id of one, at its default parameters.

    points, seed   how many random points, and from which stream (another one for every entry)
    precisions     without "float32" that law is left out
    Never raises for what is wrong with an entry: that is in the report.
    """
    if isinstance(entry, str):
        entry = catalog.get(entry)
    if unknown := set(precisions) - set(PRECISIONS):
        raise ValueError(f"precision {unknown.pop()!r} came; {' and '.join(PRECISIONS)} were expected")
    start = time.perf_counter()

    def report(*results: Result, reason: str = "") -> Report:
        return Report(entry.id, results, reason, time.perf_counter() - start)

    try:
        with np.errstate(all="ignore"):
            made = subject(entry, points=points, seed=seed)
    except NoClosedForm as reason:
        note = "" if not entry.closed_form else "the record claims a closed form; set `closed_form: false`"
        return report(Result(REFUSED, math.inf if note else 0.0, 0.0, note), reason=str(reason))
    except Exception as problem:
        return report(Result(DERIVED, math.inf, 0.0, f"{type(problem).__name__}: {problem}"))
    if not entry.closed_form:
        return report(Result(REFUSED, math.inf, 0.0, "it has a closed form; remove `closed_form: false`"))
    return report(*check(made, [law for law in LAWS if law.name != "float32" or "float32" in precisions]))


def verify_all(
    entries: Mapping[str, Entry],
    progress: Callable[[Report], None] | None = None,
    *,
    workers: int = 1,
    **options: Any,
) -> list[Report]:
    """The reports of all entries (a catalog, or a part of one), in their order; `progress` sees each as it comes.

    workers   processes; more than one only from a program whose main module can be imported again (they are spawned)
    """
    done: dict[str, Report] = {}

    def seen(report: Report) -> None:
        done[report.id] = report
        if progress:
            progress(report)

    if min(workers, len(entries)) <= 1:
        for entry in entries.values():
            seen(verify(entry, **options))
    else:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(entries)), mp_context=context)
        try:
            for task in as_completed([pool.submit(verify, entry, **options) for entry in entries.values()]):
                seen(task.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return [done[id] for id in entries]
