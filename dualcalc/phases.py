"""What depth does to an activation: `phase` at one point of W_std and b_std, `diagram` over a grid of them.

Behind Dense(W_std, b_std) the variance of a row and the cosine of two rows follow maps from layer to layer; their fixed
points and slopes are the phase diagrams of Poole et al. (2016) and Schoenholz et al. (2017). `phase` takes moments and
Hermite coefficients of the activation, `diagram` the functions k and kdot, so that kernels without an activation have
one too. The command line, the catalog's pages and notebooks are the callers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from .dual import resolve
from .expansions import hermite
from .quadrature import Profile, choose, profile

__all__ = ["Critical", "Diagram", "Fixed", "Phase", "diagram", "phase", "phase_panels"]

LEAST_NORM = 1e-3
GREATEST_NORMS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
"""The range of norms sqrt(q) that is looked at: up to the first of these that the activation admits."""
GREATEST_STD = 1e6
PER_RANGE = 241  # norms on it
DEGREE = 1000
CRITICAL = 1e-7
"""|chi_1 - 1| below this is critical."""


class Fixed(NamedTuple):
    """A fixed point q = V(q) of the variance; `slope` is V'(q), stable within (-1, 1)."""

    q: float
    slope: float
    chi_1: float

    @property
    def stable(self) -> bool:
        return abs(self.slope) < 1


class Critical(NamedTuple):
    """A point of the line chi_1 = 1, at its fixed point q; where that is unstable, the variance does not stay there."""

    q: float
    W_std: float
    b_std: float
    stable: bool


@dataclass(frozen=True)
class Phase:
    """What depth does to an activation behind Dense(W_std, b_std).

    name          "ordered" (inputs become parallel), "chaotic" (neighbours part), "critical", or "diverging" (the
                  variance grows beyond the norms that were looked at)
    q             the variance that depth leads to from q = 1; 0 and inf where it leaves `norms`
    chi_1         W_std^2 E[s'(sqrt(q) Z)^2]: how the gap of near inputs, and gradients, grow per layer
    c             the cosine that depth leads to: 1 unless chaotic; NaN where q is 0 or inf
    depth_scale   xi = -1/log(slope of the cosine map at c), in layers: how long inputs are told apart; inf at chi_1 = 1
    fixed         all fixed points of the variance within `norms`
    line          the critical line, over the norms
    norms         (least, greatest) sqrt(q) that were looked at
    """

    activation: str
    W_std: float
    b_std: float
    name: str
    q: float
    chi_1: float
    c: float
    depth_scale: float
    fixed: tuple[Fixed, ...]
    line: tuple[Critical, ...]
    norms: tuple[float, float]


def phase(activation, W_std: float = 1.5, b_std: float = 0.1, **parameters) -> Phase:
    """Fixed point, chi_1, depth scale and critical line.

        V(q) = W_std^2 E[s(sqrt(q) Z)^2] + b_std^2,   chi_1 = W_std^2 E[s'(sqrt(q) Z)^2]   at q = V(q)

    (Poole et al. 2016, eq. 3; Schoenholz et al. 2017, eq. 5, 8 and 9). The line chi_1 = 1 is parameterized by q:
    W_std^2 = 1/E[s'^2], b_std^2 = q - W_std^2 E[s^2], where that is not negative.
    ValueError for a bare kernel, an activation that jumps (chi_1 is infinite), a constant one, and bad W_std, b_std.
    """
    for name, value in (("W_std", W_std), ("b_std", b_std)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= GREATEST_STD:
            raise ValueError(f"{name}={value!r} came; a number from 0 to {GREATEST_STD:g} was expected")
    p = profile(activation, **parameters)
    if p.jumps:
        raise ValueError(
            f"{p.activation} jumps at t = {p.jumps[0]:g}: chi_1 is infinite, every network of it is chaotic, and there "
            "is no phase diagram. Smooth the jump, as erf(10*t) for sign(t)"
        )
    moment, slope, norms = _moments(p)
    if not slope(norms).max() > 0:
        raise ValueError(f"{p.activation} is constant: there is no phase; an activation that varies was expected")

    def V(q):
        return W_std**2 * moment(np.sqrt(q)) + b_std**2

    def chi(q: float) -> float:
        return float(W_std**2 * slope(np.array([math.sqrt(q)]))[0])

    qs = norms**2
    fixed = tuple(Fixed(q, _slope(V, q), chi(q)) for q in _roots(lambda q: V(q) - q, qs))
    q = _led_to(V, [f.q for f in fixed if f.slope < 1 or _is_root(V, f.q)], qs)
    chi_1 = chi(min(max(q, qs[0]), qs[-1]))
    ordered = chi_1 < 1
    name = "critical" if abs(chi_1 - 1) < CRITICAL else "ordered" if ordered else "chaotic"
    c, rate = 1.0 if 0 < q < math.inf else math.nan, chi_1
    if name == "chaotic" and 0 < q < math.inf:
        c, rate = _cosine(p, q, W_std, b_std)
    xi = math.inf if name == "critical" else -1 / math.log(rate) if 0 < rate < 1 else math.nan if rate else 0.0
    name = "diverging" if q == math.inf else name
    line = tuple(_line(norms, moment, slope))
    return Phase(
        str(p.activation), W_std, b_std, name, q, chi_1, c, xi, fixed, line, (float(norms[0]), float(norms[-1]))
    )


def _moments(p: Profile) -> tuple[Callable, Callable, np.ndarray]:
    """E[s(norm Z)^2] and E[s'(norm Z)^2] as functions of norms (n,), and the norms on which they are known."""
    for i, greatest in enumerate(GREATEST_NORMS):
        norms = np.geomspace(LEAST_NORM, greatest, PER_RANGE)
        try:
            return choose(p, 0, norms).moments, choose(p, 0, norms, 1).moments, norms
        except ValueError:
            if i == len(GREATEST_NORMS) - 1:
                raise
    raise AssertionError


def _roots(f: Callable, grid: np.ndarray) -> list[float]:
    """Where f (n,) -> (n,) changes its sign on the grid. One that is 0 everywhere counts once, at 1."""
    values = f(grid)
    if (np.abs(values) < 1e-12 * grid).all():
        return [1.0]
    at = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    exact = [float(q) for q in grid[values == 0]]
    return sorted([*exact, *(brentq(lambda q: float(f(np.array([q]))[0]), *grid[i : i + 2], xtol=1e-14) for i in at)])


def _slope(V: Callable, q: float) -> float:
    """V'(q), by differences of fourth order."""
    h = 1e-3 * q
    low, less, more, high = V(np.array([q - 2 * h, q - h, q + h, q + 2 * h]))
    return float((low - 8 * less + 8 * more - high) / (12 * h))


def _is_root(V: Callable, q: float) -> bool:
    return abs(float(V(np.array([q]))[0]) - q) < 1e-12 * q and q == 1.0


def _led_to(V: Callable, stops: list[float], qs: np.ndarray) -> float:
    """Where iteration from q = 1 (or the greatest variance, if less) ends, given where V crosses q from above."""
    start = min(1.0, float(qs[-1]))
    if start in stops:
        return start
    up = float(V(np.array([start]))[0]) > start
    if up:
        return min((q for q in stops if q > start), default=math.inf)
    return max((q for q in stops if q < start), default=0.0)


def _cosine(p: Profile, q: float, W_std: float, b_std: float) -> tuple[float, float]:
    """The fixed point c < 1 of the cosine map, and its slope there, from the Hermite series."""
    weights = W_std**2 * hermite(p, DEGREE, math.sqrt(q)) ** 2 / q
    weights[0] += b_std**2 / q
    j = np.arange(DEGREE + 1)

    def gap(c: float) -> float:
        return float(weights @ c**j) - c

    top = 1 - 1e-6
    c = brentq(gap, 0.0, top, xtol=1e-14) if gap(0.0) > 0 > gap(top) else 0.0 if gap(0.0) <= 0 else 1.0
    return c, float((weights[1:] * j[1:]) @ c ** (j[1:] - 1))


def _line(norms: np.ndarray, moment: Callable, slope: Callable):
    """Points of the critical line with b_std >= 0."""
    m, s = moment(norms), slope(norms)
    for a, mean, square in zip(norms, m, s, strict=True):
        W2 = 1 / square if square > 0 else math.inf
        b2 = a**2 - W2 * mean
        if math.isfinite(W2) and b2 >= -1e-12 * a**2:
            b2 = b2 if b2 > 1e-12 * a**2 else 0.0
            steep = _slope(lambda q, W2=W2, b2=b2: W2 * moment(np.sqrt(q)) + b2, a**2)
            yield Critical(float(a**2), math.sqrt(W2), math.sqrt(b2), steep < 1 + 1e-9)


def phase_panels(found: Phase) -> list[Any]:
    """The critical line with the point that was asked for, and the map of the variance."""
    from .plots import Curve, Panel

    curves, least = [], min((point.W_std for point in found.line), default=1.0)
    near = [point for point in found.line if point.W_std <= max(1.5 * found.W_std, 2 * least)]
    for stable, label in ((True, "critical line"), (False, "critical, q unstable")):
        if any(point.stable == stable for point in near):
            ends = ([getattr(point, name) if point.stable == stable else np.nan for point in near] for name in AXES)
            x, y = map(np.array, ends)
            curves.append(Curve(x, y, label))
    here = Curve(np.array([found.W_std]), np.array([found.b_std]), f"{found.name} here", len(curves), "marked")
    q = np.geomspace(found.norms[0] ** 2, found.norms[1] ** 2, PER_RANGE)
    p = profile(resolve(found.activation).activation)
    V = found.W_std**2 * choose(p, 0, np.sqrt(q)).moments(np.sqrt(q)) + found.b_std**2
    stops = np.array([f.q for f in found.fixed])
    title = "The critical line, chi_1 = 1" if curves else "No critical line: chi_1 is nowhere 1"
    return [
        Panel(title, [*curves, here], "W_std", "b_std"),
        Panel(
            f"Variance from layer to layer, q* = {found.q:.4g}",
            [
                Curve(q, V, "V(q)"),
                Curve(q, q, "q"),
                *([Curve(stops, stops, "fixed point", kind="marked")] if len(stops) else []),
            ],
            "q",
            xscale="log",
            yscale="log",
        ),
    ]


AXES = ("W_std", "b_std")


# ------------------------------------------------------------------------------------------------------------- diagram

PER_TABLE = 400  # variances between which a fixed point is looked for
HALVINGS = 45  # of an interval of a fixed point: to rounding
FEWEST = 16  # variances of a table
STEPS = 60  # at the most: quadratic, but for a zero near 1, which it halves the distance to


@dataclass(frozen=True)
class Diagram:
    """Phases over a grid: what `Phase` says, as arrays (n, m) over b_std (n,) and W_std (m,).

    q            variances that depth leads to from 1; 0 and inf where they leave the range
    chi_1        at q, or at the end of the range
    depth_scale  in layers; inf at chi_1 = 1, NaN where the variance grows without end
    line         (l, 2) W_std, b_std of the critical line, in the order of q; NaN where it has no point
    """

    W_std: np.ndarray
    b_std: np.ndarray
    q: np.ndarray
    chi_1: np.ndarray
    depth_scale: np.ndarray
    line: np.ndarray


def diagram(k: Callable, kdot: Callable, W_std: np.ndarray, b_std: np.ndarray, greatest: float = 100.0) -> Diagram:
    """Of k and kdot, which take arrays (q12, q11, q22), for variances q from 1e-6 to `greatest`.

    The slope of the cosine map c -> (W_std^2 k(c q, q, q) + b_std^2)/q is W_std^2 kdot. ValueError without values.
    """
    q = np.unique([*np.geomspace(LEAST_NORM**2, greatest, PER_TABLE), min(1.0, greatest)])
    known = np.isfinite(k(q, q, q)) & np.isfinite(kdot(q, q, q))
    q = q[: len(q) if known.all() else int(known.argmin())]  # up to where one overflows
    if len(q) < FEWEST:
        raise ValueError("k and kdot have no values at c = 1: there is no phase diagram")
    weight, bias = np.broadcast_arrays(W_std**2, (b_std**2)[:, None])
    fixed = _fixed(k, weight, bias, q)
    at = np.clip(fixed, q[0], q[-1])
    chi_1 = weight * kdot(at, at, at)
    rate, inside = chi_1.copy(), (fixed > 0) & np.isfinite(fixed)
    chaotic = (chi_1 > 1 + CRITICAL) & inside
    if chaotic.any():
        v, w, b = at[chaotic], weight[chaotic], bias[chaotic]
        c = _below_one(lambda c: (w * k(c * v, v, v) + b) / v - c, lambda c: w * kdot(c * v, v, v) - 1, len(v))
        rate[chaotic] = w * kdot(c * v, v, v)
    with np.errstate(divide="ignore", invalid="ignore"):
        xi = np.where(rate < 1, -1 / np.log(rate), np.nan)
        xi[(np.abs(chi_1 - 1) <= CRITICAL) & inside] = np.inf
        xi[fixed == np.inf] = np.nan
        w = 1 / kdot(q, q, q)
        b = q - w * k(q, q, q)
        b = np.where(np.abs(b) < 1e-12 * q, 0.0, b)
        line = np.where((b >= 0) & np.isfinite(w), np.sqrt([w, b]), np.nan).T
    return Diagram(W_std, b_std, fixed, chi_1, xi, line)


def _fixed(k: Callable, weight: np.ndarray, bias: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Where iterating V(q) = weight k(q, q, q) + bias from q = 1, or the greatest, ends; 0 and inf beyond q (l,).

    Found between two points of the table by a spline through it, then by one step of Newton's with k itself.
    """
    table = k(q, q, q)
    start = int(np.searchsorted(q, min(1.0, q[-1])))
    gap = weight[..., None] * table + bias[..., None] - q
    gap[np.abs(gap) < 1e-12 * q] = 0.0
    above, below = gap[..., start:] <= 0, gap[..., start::-1] >= 0  # the first of each is where it stops
    up = gap[..., start] > 0
    found = np.where(up, above.any(axis=-1), below.any(axis=-1))
    right = np.where(up, start + above.argmax(axis=-1), start + 1 - below.argmax(axis=-1)).clip(1, len(q) - 1)
    out = np.where(up, np.inf, 0.0)
    if found.any():
        w, b, low, high = weight[found], bias[found], q[right[found] - 1], q[right[found]]
        spline = CubicSpline(q, table)
        v = _bisected(lambda v: w * spline(v) + b - v, low, high)
        with np.errstate(divide="ignore", invalid="ignore"):  # where V(q) = q for all q
            step = (w * k(v, v, v) + b - v) / (1 - w * spline(v, 1))
        out[found] = np.clip(v + np.where(np.isfinite(step), step, 0.0), low, high)
    out[gap[..., start] == 0] = q[start]
    return out


def _bisected(f: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where f falls through 0 between low (n,) and high (n,)."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        positive = f(middle) > 0
        low, high = np.where(positive, middle, low), np.where(positive, high, middle)
    return (low + high) / 2


def _below_one(f: Callable[[np.ndarray], np.ndarray], slope: Callable[[np.ndarray], np.ndarray], n: int) -> np.ndarray:
    """The zero c < 1 of f (n,) with f(0) >= 0 and f(1) = 0, by Newton's method from 0.

    The power series of a kernel has no negative coefficient: f is convex, and the steps do not pass the zero.
    """
    c = np.zeros(n)
    for _ in range(STEPS):
        step = np.clip(-f(c) / slope(c), 0.0, 1.0)
        c = np.minimum(c + step, 1 - 1e-6)
        if not step.max() > 1e-13:
            break
    return c
