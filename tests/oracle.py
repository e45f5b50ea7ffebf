"""Enclosures of k = E[s(u) s(v)] and kdot = E[s'(u) s'(v)] by two-dimensional quadrature, for tests to compare against.

Independent of `dualcalc`: activations are written here by hand, as analytic pieces between breakpoints, and nothing is
integrated symbolically. `python -m tests.oracle` (make oracle) regenerates `tests/data/oracle.json`.

Rigour. Each value is a ball that contains the truth, given three facts that are stated and not machine-checked:
the growth bounds of the table (`Activation.growth`; a test samples them); a piece is analytic wherever its ball
evaluation is finite (true of these expressions: `log` is called with `analytic=True`, quotients and `tanh` blow up at
their poles); float64 rounding in the error bounds is below the 1e-9 by which every rectangle and logarithm is inflated.
The values themselves are computed in balls, so their rounding is enclosed.

Method. u = a z, v = b y, with z, y standard normal of correlation c, and s = sqrt(1 - c^2) from the exact inputs.
- s > 0.2: tensor Gauss-Legendre in (z, y), panels split at the kinks z = t/a and y = t/b; the density is entire.
- Smaller s: the same within |c z - t/b| <= L s of a kink of v; elsewhere v = b (c z + s w) and a tensor rule in (z, w),
  |w| <= L, where no kink of v is met.
- q12^2 >= q11 q22 (exact comparison): v = +-(b/a) u, one dimension.
Error of the n-point rule on a panel of half-width h, for |F| <= M on the Bernstein ellipse rho:
h (64/15) M rho^(-2n)/(1 - rho^-2). [Exact to degree 2n - 1, and on odd T_k; the k-th Chebyshev coefficient is at most
2 M rho^-k, and rule plus integral of T_k, k >= 2n >= 4, at most 2 + 2/15.] M is a product of ball bounds of the pieces
over a rectangle around the ellipse and of the Gaussian's modulus, exp(eta^2/(2 s^2)) times its real maximum at imag.
part eta. Tensor: |I - QQ| <= |P| e_Q + |Q| e_P. Panels are bisected until each bound is below `10^-digits` of the scale
sqrt(k11 k22). Tails: |s|, |s'| <= A exp(B|t|), so E[|s(u) s(v)|; |z| > Z or |w| > L] is bounded with `erfc`.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flint import acb, arb, arb_mat, ctx, fmpq

Ball = arb | acb
Function = Callable[[Ball], Ball]

# --- the activations, by hand ---------------------------------------------------------------------

_PREC, ctx.prec = ctx.prec, 400  # for the constants below; every computation sets its own precision


class Activation(NamedTuple):
    """s as analytic pieces: `pieces[i] = (s, s')` between `breaks[i-1]` and `breaks[i]`, None where s = 0.

    `growth = (C, d, B)`: |s(t)| and |s'(t)| <= C (1 + |t|)^d exp(B |t|). `jumps`: s is discontinuous, there is no kdot.
    """

    definition: str
    breaks: tuple[float, ...]
    pieces: tuple[tuple[Function, Function] | None, ...]
    growth: tuple[float, int, float]
    jumps: bool = False


def _decimal(text: str) -> arb:
    value = Fraction(text)
    return arb(fmpq(value.numerator, value.denominator))


def _log(x: Ball) -> Ball:
    return x.log(analytic=True) if isinstance(x, acb) else x.log()


def _cdf(x: Ball) -> Ball:
    return (-x * R2).erfc() / 2


def _pdf(x: Ball) -> Ball:
    return (-x * x / 2).exp() * IR2PI


def _sigmoid(x: Ball) -> Ball:
    return 1 / (1 + (-x).exp())


def _one(x: Ball) -> Ball:
    return x * 0 + 1


def _smooth(definition, s, ds, growth) -> Activation:
    return Activation(definition, (), ((s, ds),), growth)


def _gated(definition, s, ds, growth) -> Activation:
    return Activation(definition, (0.0,), (None, (s, ds)), growth)


def _linear(slope: arb | int) -> tuple[Function, Function]:
    return (lambda t: slope * t), (lambda t: t * 0 + slope)


def _constant(value: arb | int) -> tuple[Function, Function]:
    return (lambda t: t * 0 + value), (lambda t: t * 0)


R2 = 1 / arb(2).sqrt()
IR2PI = 1 / (2 * arb.pi()).sqrt()
ERF0 = 2 / arb.pi().sqrt()
T13, T04, T06, T08, G17, T01 = map(_decimal, ("1.3", "0.4", "0.6", "0.8", "1.702", "0.1"))
RBF_W, RBF_B, ROOT2 = arb(2).sqrt() * _decimal("0.9"), arb.pi() / 4, arb(2).sqrt()
SELU_L, SELU_A = _decimal("1.0507009873554805"), _decimal("1.6732632423543772")
IDENTITY = _linear(1)

ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("max(t, 0)", (0.0,), (None, IDENTITY), (1, 1, 0)),
    "abs": Activation("|t|", (0.0,), (_linear(-1), IDENTITY), (1, 1, 0)),
    "rectified_monomial": _gated("t^2 [t>0]", lambda t: t * t, lambda t: 2 * t, (2, 2, 0)),
    "rectified_monomial_3": _gated("t^3 [t>0]", lambda t: t**3, lambda t: 3 * t * t, (3, 3, 0)),
    "rectified_monomial_5": _gated("t^5 [t>0]", lambda t: t**5, lambda t: 5 * t**4, (5, 5, 0)),
    "erf": _smooth("erf(t)", lambda t: t.erf(), lambda t: (-t * t).exp() * ERF0, (1.13, 0, 0)),
    "abrelu": Activation(
        "-(3/10) min(t,0) + (11/10) max(t,0)",
        (0.0,),
        (_linear(_decimal("-0.3")), _linear(_decimal("1.1"))),
        (1.1, 1, 0),
    ),
    "leaky_relu": Activation("max(t, t/100)", (0.0,), (_linear(_decimal("0.01")), IDENTITY), (1, 1, 0)),
    "exp": _smooth("exp(3t/5)", lambda t: (T06 * t).exp(), lambda t: T06 * (T06 * t).exp(), (1, 0, 0.6)),
    "hermite": _smooth("t^4 - 6t^2 + 3", lambda t: (t * t - 6) * t * t + 3, lambda t: 4 * t * (t * t - 3), (3, 4, 0)),
    "sin": _smooth(
        "sin(13t/10 + 2/5)", lambda t: (T13 * t + T04).sin(), lambda t: T13 * (T13 * t + T04).cos(), (1.3, 0, 0)
    ),
    "cos": _smooth("cos(t)", lambda t: t.cos(), lambda t: -t.sin(), (1, 0, 0)),
    "gaussian": _smooth(
        "exp(-4t^2/5)", lambda t: (-T08 * t * t).exp(), lambda t: -2 * T08 * t * (-T08 * t * t).exp(), (1, 0, 0)
    ),
    "gelu": _smooth("t Phi(t)", lambda t: t * _cdf(t), lambda t: _cdf(t) + t * _pdf(t), (1.2, 1, 0)),
    "gelu_slope": _smooth(
        "t Phi(1.702 t)", lambda t: t * _cdf(G17 * t), lambda t: _cdf(G17 * t) + G17 * t * _pdf(G17 * t), (1.2, 1, 0)
    ),
    "elu": Activation("t | exp(t) - 1", (0.0,), ((lambda t: t.expm1(), lambda t: t.exp()), IDENTITY), (1, 1, 0)),
    "selu": Activation(
        "1.0507009873554805 (t | 1.6732632423543772 (exp(t) - 1))",
        (0.0,),
        ((lambda t: SELU_L * SELU_A * t.expm1(), lambda t: SELU_L * SELU_A * t.exp()), _linear(SELU_L)),
        (1.76, 1, 0),
    ),
    "celu": Activation(
        "t | 2 (exp(t/2) - 1)",
        (0.0,),
        ((lambda t: 2 * (t / 2).expm1(), lambda t: (t / 2).exp()), IDENTITY),
        (2, 1, 0),
    ),
    "rbf": _smooth(
        "sqrt(2) sin(sqrt(2) 0.9 t + pi/4)",
        lambda t: ROOT2 * (RBF_W * t + RBF_B).sin(),
        lambda t: ROOT2 * RBF_W * (RBF_W * t + RBF_B).cos(),
        (1.81, 0, 0),
    ),
    "gabor": _smooth(
        "exp(-t^2) sin(t)",
        lambda t: (-t * t).exp() * t.sin(),
        lambda t: (-t * t).exp() * (t.cos() - 2 * t * t.sin()),
        (2, 0, 0),
    ),
    "monomial": _smooth("t^3", lambda t: t**3, lambda t: 3 * t * t, (3, 3, 0)),
    "polynomial": _smooth(
        "1 - 2t + t^2/2 + t^4/10",
        lambda t: 1 - 2 * t + t * t / 2 + T01 * t**4,
        lambda t: t - 2 + T04 * t**3,
        (2, 4, 0),
    ),
    "sign": Activation("sign(t)", (0.0,), (_constant(-1), _constant(1)), (1, 0, 0), True),
    "step": Activation("[t>0]", (0.0,), (None, _constant(1)), (1, 0, 0), True),
    "relu6": Activation("min(max(t,0),6)", (0.0, 6.0), (None, IDENTITY, _constant(6)), (6, 0, 0)),
    "hardtanh": Activation("clip(t,-1,1)", (-1.0, 1.0), (_constant(-1), IDENTITY, _constant(1)), (1, 0, 0)),
    "hard_sigmoid": Activation(
        "clip(t/6 + 1/2, 0, 1)",
        (-3.0, 3.0),
        (None, (lambda t: (t + 3) / 6, lambda t: _one(t) / 6), _constant(1)),
        (1, 0, 0),
    ),
    "hard_swish": Activation(
        "t clip(t+3,0,6)/6",
        (-3.0, 3.0),
        (None, (lambda t: t * (t + 3) / 6, lambda t: (2 * t + 3) / 6), IDENTITY),
        (1.5, 1, 0),
    ),
    "softshrink": Activation(
        "sign(t) max(|t| - 1/2, 0)",
        (-0.5, 0.5),
        ((lambda t: t + 0.5, _one), None, (lambda t: t - 0.5, _one)),
        (1, 1, 0),
    ),
    "squared_relu": _gated("max(t,0)^2", lambda t: t * t, lambda t: 2 * t, (2, 2, 0)),
    "shifted_relu": Activation("max(t,-1)", (-1.0,), (_constant(-1), IDENTITY), (1, 1, 0)),
    "triangle": Activation(
        "max(1 - |t|, 0)",
        (-1.0, 0.0, 1.0),
        (None, (lambda t: 1 + t, _one), (lambda t: 1 - t, lambda t: -_one(t)), None),
        (1, 0, 0),
    ),
    "bump": Activation(
        "max(1 - t^2, 0)", (-1.0, 1.0), (None, (lambda t: 1 - t * t, lambda t: -2 * t), None), (2, 0, 0)
    ),
    "morlet": _smooth(
        "cos(5t) exp(-t^2/2)",
        lambda t: (5 * t).cos() * (-t * t / 2).exp(),
        lambda t: -((5 * t).sin() * 5 + t * (5 * t).cos()) * (-t * t / 2).exp(),
        (6, 0, 0),
    ),
    "snake": _smooth("t + sin(t)^2", lambda t: t + t.sin() ** 2, lambda t: 1 + (2 * t).sin(), (2, 1, 0)),
    "t2_erf": _smooth(
        "t^2 erf(t)",
        lambda t: t * t * t.erf(),
        lambda t: 2 * t * t.erf() + t * t * (-t * t).exp() * ERF0,
        (2, 2, 0),
    ),
    "probit": _smooth("Phi(t)", _cdf, _pdf, (1, 0, 0)),
    "mexican_hat": _smooth(
        "(1 - t^2) exp(-t^2/2)",
        lambda t: (1 - t * t) * (-t * t / 2).exp(),
        lambda t: t * (t * t - 3) * (-t * t / 2).exp(),
        (2, 0, 0),
    ),
    "erf_gaussian": _smooth(
        "exp(-t^2) erf(t)",
        lambda t: (-t * t).exp() * t.erf(),
        lambda t: (-t * t).exp() * (ERF0 * (-t * t).exp() - 2 * t * t.erf()),
        (2, 0, 0),
    ),
    "tanh": _smooth("tanh(t)", lambda t: t.tanh(), lambda t: 1 - t.tanh() ** 2, (1, 0, 0)),
    "silu": _smooth(
        "t/(1 + exp(-t))",
        lambda t: t * _sigmoid(t),
        lambda t: _sigmoid(t) * (1 + t * _sigmoid(-t)),
        (1.1, 1, 0),
    ),
    "softplus": _smooth("log(1 + exp(t))", lambda t: _log(1 + t.exp()), _sigmoid, (1, 1, 0)),
}
ctx.prec = _PREC

# --- bounds of one function on a rectangle, of one rule on an ellipse -----------------------------

LOG_2PI = math.log(2 * math.pi)
SLACK = 1e-9  # inflation of every float64 bound
RHOS = np.array([1.2, 1.35, 1.5, 1.7, 2.0, 2.3, 2.7, 3.3, 4.0, 5.0, 6.5, 9.0, 14.0, 30.0, 100.0])


@lru_cache(maxsize=1 << 18)
def _log_sup(function: Function, lo: float, hi: float, height: float) -> float:
    """log of an upper bound of |function| on [lo, hi] x i[-height, height]; inf where it is not seen to be analytic.

    Covers the upper half only: every piece is real on the real line.
    """
    saved, ctx.prec = ctx.prec, 53
    lo, hi = lo - SLACK * (1 + abs(lo)), hi + SLACK * (1 + abs(hi))
    columns = min(24, max(1, math.ceil((hi - lo) / 0.4)))
    rows = min(8, max(1, math.ceil(height / 0.4)))
    x_rad, y_rad = (hi - lo) / (2 * columns) * (1 + SLACK), height / (2 * rows) * (1 + SLACK)
    best = 0.0
    for j in reversed(range(rows)):
        y = arb(y_rad * (2 * j + 1), y_rad)
        for i in range(columns):
            box = acb(arb(lo + x_rad * (2 * i + 1), x_rad), y)
            bound = float(function(box).abs_upper())
            if not bound < math.inf:  # NaN included
                ctx.prec = saved
                return math.inf
            best = max(best, bound)
    ctx.prec = saved
    return math.log(best) + SLACK if best > 0 else -math.inf


def _rule_error(
    n: int, half: float, log_bound: Callable[[float, float], float], curvature: float, target: float
) -> float:
    """log of the error bound of the n-point rule on [-1, 1], least over RHOS or the first below `target`.

    `log_bound(dx, dy)`: log of a bound of |F| within dx, dy of the panel's mid-point (ellipse semi-axes), the factor
    exp(curvature dy^2/2) of the Gaussian left out.
    """
    dx, dy = half * (RHOS + 1 / RHOS) / 2, half * (RHOS - 1 / RHOS) / 2
    gain = math.log(64 / 15) - 2 * n * np.log(RHOS) - np.log1p(-(RHOS**-2)) + curvature * dy * dy / 2 + SLACK
    best, floor = math.inf, log_bound(half, 0.0)
    for i in np.argsort(gain):
        if gain[i] + floor > min(best, target) and best < math.inf:
            break
        best = min(best, gain[i] + log_bound(dx[i], dy[i]))
        if best <= target:
            break
    return best


def _log_sum(terms: np.ndarray) -> float:
    top = terms.max(initial=-math.inf)
    return top if math.isinf(top) else float(top + np.log(np.exp(terms - top).sum()))


@lru_cache
def _rule(n: int, prec: int) -> list[tuple[arb, arb]]:
    return [arb.legendre_p_root(n, i, weight=True) for i in range(n)]


class Panel(NamedTuple):
    """[left, right] within piece `piece`: ends as balls (the kink t/a is one), lo and hi the same in float64."""

    left: arb
    right: arb
    piece: int

    @property
    def lo(self) -> float:
        return float(self.left.mid())

    @property
    def hi(self) -> float:
        return float(self.right.mid())

    @property
    def half(self) -> float:
        return float((self.right - self.left).upper()) / 2 * (1 + SLACK)

    def halves(self) -> "tuple[Panel, Panel]":
        middle = arb((self.lo + self.hi) / 2)
        return Panel(self.left, middle, self.piece), Panel(middle, self.right, self.piece)

    def nodes(self, n: int) -> list[tuple[arb, arb]]:
        centre, half = (self.left + self.right) / 2, (self.right - self.left) / 2
        return [(centre + half * x, half * w) for x, w in _rule(n, ctx.prec)]


def _panels(activation: Activation, norm: arb, lo: float, hi: float, width: float) -> list[Panel]:
    """[lo, hi] split at the kinks t/norm, cut to `width`, without the pieces where s = 0."""
    kinks = [arb(t) / norm for t in activation.breaks]
    for kink in kinks:
        assert (kink < lo) or (kink > hi) or (lo < kink < hi), "kink on a panel's edge"
    inside = [i for i, kink in enumerate(kinks) if lo < kink < hi]
    first = sum(bool(kink < lo) for kink in kinks)
    ends = [arb(lo), *(kinks[i] for i in inside), arb(hi)]
    out = []
    for offset, (left, right) in enumerate(zip(ends, ends[1:], strict=False)):
        if activation.pieces[first + offset] is None:
            continue
        x0, x1 = float(left.mid()), float(right.mid())
        count = math.ceil((x1 - x0) / width)
        cuts = [left, *(arb(x0 + (x1 - x0) * i / count) for i in range(1, count)), right]
        out += [Panel(p, q, first + offset) for p, q in zip(cuts, cuts[1:], strict=False)]
    return out


def _refine(panels: list[Panel], error: Callable[[Panel], float], target: float) -> list[Panel]:
    """Bisects until `error` (a log) is at most `target` on every panel."""
    done, todo = [], [(p, 0) for p in reversed(panels)]
    while todo:
        panel, depth = todo.pop()
        if depth > 40:
            raise ArithmeticError(f"no convergence near {panel.lo}: is a piece singular on its closed interval?")
        if error(panel) <= target:
            done.append(panel)
        else:
            todo += [(p, depth + 1) for p in reversed(panel.halves())]
    return done


# --- the quadratures ------------------------------------------------------------------------------


class Problem(NamedTuple):
    """One pair of norms: everything that the three rules share. `scales[m]`: the scale of E[s^(m)(u) s^(m)(v)]."""

    activation: Activation
    a: arb
    b: arb
    c: arb
    s: arb
    scales: tuple[float, ...]
    n: int
    target: float  # log of the error allowed per panel, relative to the scale

    def swapped(self) -> "Problem":
        return self._replace(a=self.b, b=self.a)

    def log_sup(self, m: int, piece: int, norm: float, lo: float, hi: float, height: float = 0.0) -> float:
        pair = self.activation.pieces[piece]
        if pair is None:
            return -math.inf
        return _log_sup(pair[m], min(norm * lo, norm * hi), max(norm * lo, norm * hi), abs(norm) * height)


def _zone_error(problem: Problem, panel: Panel, others: list[Panel]) -> list[float]:
    """Per order, log of the relative error of the rule on `panel`, summed over the panels of the other variable."""
    a, b, c, s = (float(x) for x in problem[1:5])
    lo, hi = np.array([q.lo for q in others]), np.array([q.hi for q in others])
    widths = np.log([2 * q.half for q in others])
    middle, out = (panel.lo + panel.hi) / 2, []
    for m, scale in enumerate(problem.scales):
        others_sup = np.array([problem.log_sup(m, q.piece, b, q.lo, q.hi) for q in others])
        others_sup += widths + math.log(panel.half) - math.log(scale)

        def log_bound(dx: float, dy: float, m=m, others_sup=others_sup) -> float:
            x0, x1 = middle - dx, middle + dx
            own = problem.log_sup(m, panel.piece, a, x0, x1, dy)
            if math.isinf(own):
                return own
            return own + _log_sum(others_sup + _log_density(x0, x1, lo, hi, c, s))

        out.append(_rule_error(problem.n, panel.half, log_bound, 1 / s**2, problem.target))
    return out


def _log_density(x0: float, x1: float, lo: np.ndarray, hi: np.ndarray, c: float, s: float) -> np.ndarray:
    """log of an upper bound of the standard binormal density on [x0, x1] x [lo, hi]."""
    near = max(0.0, x0, -x1)
    c0, c1 = min(c * x0, c * x1), max(c * x0, c * x1)
    gap = np.maximum(0.0, np.maximum(lo - c1, c0 - hi) - SLACK)
    return -(near**2) / 2 - (gap / s) ** 2 / 2 - LOG_2PI - math.log(s) + SLACK


def _zone(
    problem: Problem, z_range: tuple[float, float], y_range: tuple[float, float]
) -> tuple[list[arb], list[float]]:
    """The rectangle z_range x y_range of the (z, y) plane; per order the sum and its relative error bound."""
    activation, n = problem.activation, problem.n
    s = float(problem.s)
    zs = _panels(activation, problem.a, *z_range, 8 * s)
    ys = _panels(activation, problem.b, *y_range, 8 * s)
    orders = range(len(problem.scales))
    if not zs or not ys:
        return [arb(0) for _ in orders], [0.0 for _ in orders]
    zs = _refine(zs, lambda p: max(_zone_error(problem, p, ys)), problem.target)
    ys = _refine(ys, lambda p: max(_zone_error(problem.swapped(), p, zs)), problem.target)
    errors = np.exp([_zone_error(problem, p, ys) for p in zs]).sum(axis=0)
    errors += np.exp([_zone_error(problem.swapped(), p, zs) for p in ys]).sum(axis=0)

    columns = [q.nodes(n) for q in ys]
    values = [
        [[w * activation.pieces[q.piece][m](problem.b * y) for m in orders] for y, w in nodes]
        for q, nodes in zip(ys, columns, strict=True)
    ]
    lo, hi, widths = np.array([(q.lo, q.hi, math.log(2 * q.half)) for q in ys]).T
    totals = [arb(0) for _ in orders]
    rate = 1 / (problem.s * arb(2).sqrt())
    for p in zs:
        kept = np.zeros(len(ys), dtype=bool)
        density = _log_density(p.lo, p.hi, lo, hi, float(problem.c), s)
        for m in orders:
            log_mass = density + widths + math.log(2 * p.half) - math.log(problem.scales[m])
            log_mass += problem.log_sup(m, p.piece, float(problem.a), p.lo, p.hi)
            log_mass += [problem.log_sup(m, q.piece, float(problem.b), q.lo, q.hi) for q in ys]
            small = log_mass < problem.target - 5
            kept |= ~small
            errors[m] += np.exp(log_mass[small]).sum()  # a few of them are kept after all: still a bound
        index = np.flatnonzero(kept)
        if not index.size:
            continue
        scaled = [rate * y for j in index for y, _ in columns[j]]
        weights = arb_mat([row for j in index for row in values[j]])
        nodes = p.nodes(n)
        kernel = []
        for z, _ in nodes:
            centre = rate * problem.c * z
            kernel.append([(-((x - centre) ** 2)).exp() for x in scaled])
        inner = arb_mat(kernel) * weights
        for i, (z, w) in enumerate(nodes):
            outer = w * (-z * z / 2).exp()
            for m in orders:
                totals[m] += outer * activation.pieces[p.piece][m](problem.a * z) * inner[i, m]
    density_factor = 1 / (2 * arb.pi() * problem.s)
    return [density_factor * t for t in totals], list(errors)


def _log_normal(lo: float, hi: float) -> float:
    return -(max(0.0, lo, -hi) ** 2) / 2 - LOG_2PI / 2 + SLACK


def _strip(problem: Problem, z_range: tuple[float, float], radius: float) -> tuple[list[arb], list[float]]:
    """z in z_range, |w| <= radius, v = b (c z + s w) in one piece; per order the sum and its relative error bound."""
    activation, n = problem.activation, problem.n
    a, b, c, s = (float(x) for x in problem[1:5])
    orders = range(len(problem.scales))
    centre = b * c * sum(z_range) / 2
    piece = sum(t < centre for t in activation.breaks)
    totals, errors = [arb(0) for _ in orders], np.zeros(len(orders))
    if activation.pieces[piece] is None:
        return totals, list(errors)
    for t in activation.breaks:
        for z in z_range:
            assert (t < centre) == (t < b * (c * z - s * radius)) == (t < b * (c * z + s * radius)), "kink in a strip"

    def v_sup(m: int, z: tuple[float, float], w: tuple[float, float], height: float) -> float:
        x0, x1 = min(c * z[0], c * z[1]), max(c * z[0], c * z[1])
        return problem.log_sup(m, piece, b, x0 + s * w[0], x1 + s * w[1], height)

    def z_error(p: Panel) -> list[float]:
        middle, out = (p.lo + p.hi) / 2, []
        for m in orders:

            def log_bound(dx: float, dy: float, m=m) -> float:
                z = (middle - dx, middle + dx)
                own = problem.log_sup(m, p.piece, a, *z, dy) + _log_normal(*z)
                return own + v_sup(m, z, (-radius, radius), abs(c) * dy) if own < math.inf else own

            # integral of phi(w) |s(v)| over the rule's nodes: 2 radius phi(0) sup|s(v)|
            constant = math.log(p.half * 2 * radius) - LOG_2PI / 2 - math.log(problem.scales[m])
            out.append(constant + _rule_error(n, p.half, log_bound, 1.0, problem.target - constant))
        return out

    def w_error(q: Panel, p: Panel) -> list[float]:
        middle, out = (q.lo + q.hi) / 2, []
        for m in orders:
            own = problem.log_sup(m, p.piece, a, p.lo, p.hi) + _log_normal(p.lo, p.hi)

            def log_bound(dx: float, dy: float, m=m) -> float:
                w = (middle - dx, middle + dx)
                return v_sup(m, (p.lo, p.hi), w, s * dy) + _log_normal(*w)

            constant = math.log(q.half * 2 * p.half) + own - math.log(problem.scales[m])
            out.append(constant + _rule_error(2 * n, q.half, log_bound, 1.0, problem.target - constant))
        return out

    whole = Panel(arb(-radius), arb(radius), piece)
    s_slope, c_slope = problem.b * problem.s, problem.b * problem.c
    for p in _refine(_panels(activation, problem.a, *z_range, 8.0), lambda p: max(z_error(p)), problem.target):
        qs = _refine([whole], lambda q, p=p: max(w_error(q, p)), problem.target)
        errors += np.exp(z_error(p)) + np.exp([w_error(q, p) for q in qs]).sum(axis=0)
        inner = [(s_slope * w, weight * (-w * w / 2).exp()) for q in qs for w, weight in q.nodes(2 * n)]
        for z, weight in p.nodes(n):
            outer, shift = weight * (-z * z / 2).exp(), c_slope * z
            arguments = [shift + w for w, _ in inner]
            for m in orders:
                function = activation.pieces[piece][m]
                total = arb(0)
                for v, (_, factor) in zip(arguments, inner, strict=True):
                    total += function(v) * factor
                totals[m] += outer * activation.pieces[p.piece][m](problem.a * z) * total
    return [t / (2 * arb.pi()) for t in totals], list(errors)


def _line(problem: Problem, sign: int, radius: float) -> tuple[list[arb], list[float]]:
    """v = sign (b/a) u: E[s(a z) s(sign b z)] over |z| <= radius, per order, and the relative error bounds."""
    activation, n = problem.activation, problem.n
    norm = sign * problem.b
    a, b = float(problem.a), float(norm)
    orders = range(len(problem.scales))
    ends = [arb(-radius), arb(radius)]
    for kink in (arb(t) / x for t in activation.breaks for x in (problem.a, norm)):
        if -radius < kink < radius and not any(kink.overlaps(end) for end in ends):
            ends.append(kink)  # overlapping balls are one real: t/a and t/b with q11 = q22, or zero
    ends.sort(key=lambda end: end.mid())
    both: list[tuple[Panel, int]] = []
    for left, right in zip(ends, ends[1:], strict=False):
        middle = (left + right).mid() / 2
        own, other = (sum(bool(arb(t) < x * middle) for t in activation.breaks) for x in (problem.a, norm))
        if activation.pieces[own] is not None and activation.pieces[other] is not None:
            both.append((Panel(left, right, own), other))

    totals, errors = [arb(0) for _ in orders], np.zeros(len(orders))
    for interval, other in both:

        def error(p: Panel, other=other) -> list[float]:
            middle, out = (p.lo + p.hi) / 2, []
            for m, scale in enumerate(problem.scales):

                def log_bound(dx: float, dy: float, m=m) -> float:
                    z = (middle - dx, middle + dx)
                    own = problem.log_sup(m, p.piece, a, *z, dy) + _log_normal(*z)
                    return own + problem.log_sup(m, other, b, *z, dy) if abs(own) < math.inf else own

                constant = math.log(p.half) - math.log(scale)
                out.append(constant + _rule_error(n, p.half, log_bound, 1.0, problem.target - constant))
            return out

        for p in _refine([interval], lambda p, error=error: max(error(p)), problem.target):
            errors += np.exp(error(p))
            for z, weight in p.nodes(n):
                outer = weight * (-z * z / 2).exp()
                for m in orders:
                    totals[m] += (
                        outer * activation.pieces[p.piece][m](problem.a * z) * activation.pieces[other][m](norm * z)
                    )
    factor = 1 / (2 * arb.pi()).sqrt()
    return [factor * t for t in totals], list(errors)


# --- tails, scales, the oracle --------------------------------------------------------------------


def _tail(activation: Activation, a: float, b: float, c: float, s: float, z_end: float, w_end: float) -> arb:
    """Upper bound of E[|s(u) s(v)|; |z| > z_end or |w| > w_end] and of the same for s'."""
    constant, degree, rate = activation.growth
    slope = min(float(degree), 2 / (a + b)) if degree else 0.0
    if degree:  # (1 + x)^d exp(-slope x) is greatest at 1 + x = d/slope
        constant *= (degree / slope) ** degree * math.exp(slope - degree)
    p, q = (rate + slope) * (a + b * abs(c)), (rate + slope) * b * s

    def moment(p: float, end: float) -> arb:  # E[exp(p|z|); |z| > end]
        return (arb(p) ** 2 / 2).exp() * ((arb(end) - p) / arb(2).sqrt()).erfc()

    return arb(constant) ** 2 * (moment(p, z_end) * moment(q, 0.0) + moment(p, 0.0) * moment(q, w_end)) * 1.000001


def _estimate(activation: Activation, norm: float) -> tuple[float, ...]:
    """Rough E[s(u)^2] and E[s'(u)^2], by a midpoint rule: sets the tolerances, enters no value."""
    saved, ctx.prec = ctx.prec, 53
    z = np.arange(-16, 16, 0.0625) + 0.03125
    piece = np.searchsorted(np.array(activation.breaks), norm * z)
    out = []
    for m in range(1 if activation.jumps else 2):
        pairs = [activation.pieces[i] for i in piece]
        values = [0.0 if pair is None else float(pair[m](arb(norm * x))) for pair, x in zip(pairs, z, strict=True)]
        out.append(float(np.sum(np.array(values) ** 2 * np.exp(-z * z / 2)) * 0.0625 / math.sqrt(2 * math.pi)))
    ctx.prec = saved
    return tuple(out)


class Result(NamedTuple):
    """Balls that contain k and kdot (None where s jumps), and the larger of their radii."""

    k: arb
    kdot: arb | None
    radius: float


def oracle(activation: str | Activation, q11: float, q12: float, q22: float, digits: int = 24) -> Result:
    """Encloses E[s(u) s(v)] and E[s'(u) s'(v)], (u, v) ~ N(0, [[q11, q12], [q12, q22]]), inputs exact binary floats.

    Radius: at most about 30 * 10^-digits of sqrt(k11 k22), sqrt(kdot11 kdot22), for digits <= 60. Where rounding made
    q12^2 > q11 q22, q12 is projected to +-sqrt(q11 q22).
    ValueError: a norm is not positive, or s vanishes as far out as it sees (E[s^2] below 1e-280: no scale).
    """
    if isinstance(activation, str):
        activation = ACTIVATIONS[activation]
    if not (q11 > 0 and q22 > 0):
        raise ValueError(f"norms must be positive, got q11 = {q11}, q22 = {q22}")
    estimates = [_estimate(activation, math.sqrt(q)) for q in (q11, q22)]
    if min(x for pair in estimates for x in pair) < 1e-280:
        raise ValueError("s or s' vanishes at this norm to more than 280 digits: no scale to be relative to")
    scales = tuple(math.sqrt(x * y) for x, y in zip(*estimates, strict=True))
    saved, ctx.prec = ctx.prec, int(digits * 5) + 60
    try:
        exact = Fraction(q11) * Fraction(q22) - Fraction(q12) ** 2
        a, b = arb(q11).sqrt(), arb(q22).sqrt()
        c = arb(q12) / (a * b)
        s = arb(fmpq(max(exact, Fraction(0)).numerator, max(exact, Fraction(0)).denominator)).sqrt() / (a * b)
        problem = Problem(activation, a, b, c, s, scales, round(5 * digits / 3), -digits * math.log(10))
        return _enclose(problem, 0 if exact > 0 else (1 if q12 > 0 else -1))
    finally:
        ctx.prec = saved


def _enclose(problem: Problem, degenerate: int) -> Result:
    a, b, c, s = (float(x) for x in problem[1:5])
    if degenerate:
        c, s = float(degenerate), 0.0
    allowed = math.exp(problem.target) * min(problem.scales)
    z_end = w_end = 8.0
    while not _tail(problem.activation, a, b, c, s, z_end, 1e3) < allowed / 2:
        z_end += 0.25
    while not _tail(problem.activation, a, b, c, s, z_end, w_end) < allowed:
        w_end += 0.25
    z_end, w_end = z_end + 0.0123, w_end + 0.0123  # off every kink
    parts = []
    if degenerate:
        parts.append(_line(problem, degenerate, z_end))
    elif s > 0.2:
        y_end = (abs(c) * z_end + s * w_end) * 1.0001
        parts.append(_zone(problem, (-z_end, z_end), (-y_end, y_end)))
    else:
        reach, zones = w_end * s / abs(c) * 1.0001, []
        for z in sorted(t / b / c for t in problem.activation.breaks):
            lo, hi = max(z - reach, -z_end), min(z + reach, z_end)
            if zones and lo <= zones[-1][1]:
                zones[-1] = (zones[-1][0], hi)
            elif lo < hi:
                zones.append((lo, hi))
        for lo, hi in zones:
            ends = sorted((c * lo, c * hi))
            parts.append(_zone(problem, (lo, hi), (ends[0] - s * w_end * 1.0001, ends[1] + s * w_end * 1.0001)))
        cuts = [-z_end, *(x for zone in zones for x in zone), z_end]
        for lo, hi in zip(cuts[::2], cuts[1::2], strict=True):
            if lo < hi:
                parts.append(_strip(problem, (lo, hi), w_end))
    tail = _tail(problem.activation, a, b, c, s, z_end, w_end)
    balls = []
    for m, scale in enumerate(problem.scales):
        error = tail + sum((arb(float(part[1][m])) for part in parts), arb(0)) * scale * 1.000001
        balls.append(sum((part[0][m] for part in parts), arb(0)) + arb(0, error.upper()))
    radius = max(float(x.rad()) for x in balls) * 1.000001
    return Result(balls[0], None if len(balls) == 1 else balls[1], radius)


# --- the recorded table ---------------------------------------------------------------------------

POINTS = (
    (1, 1, 0.5),
    (0.7, 1.3, -0.3),
    (2, 0.5, 0.9),
    (1.5, 1.5, 1),
    (1.2, 0.8, -0.999),
    (0.1, 1, 0.6),
    (1e-3, 1e-3, 0.5),
    (3, 3, 0.999999),
)
DATA = Path(__file__).parent / "data" / "oracle.json"


def _decimals(value: arb) -> tuple[str, str]:
    """30 significant digits, and a radius that covers the rounding to them."""
    saved, ctx.prec = ctx.prec, 400
    text = value.mid().str(30, radius=False)
    radius = float(abs(_decimal(text) - value).upper()) * 1.000001
    ctx.prec = saved
    return text, f"{radius:.3e}"


def row(name: str, a: float, b: float, c: float) -> dict[str, str]:
    """One record of `oracle.json`."""
    q11, q22, q12 = float(a * a), float(b * b), float(c * a * b)
    value, first, second = oracle(name, q11, q12, q22), oracle(name, q11, q11, q11), oracle(name, q22, q22, q22)
    record = {"q11": q11.hex(), "q12": q12.hex(), "q22": q22.hex()}
    for field in ("k", "kdot"):
        balls = {
            field: getattr(value, field),
            field + "11": getattr(first, field),
            field + "22": getattr(second, field),
        }
        if balls[field] is None:
            continue
        for key, ball in balls.items():
            record[key], record[key + "_radius"] = _decimals(ball)
    return record


def main() -> None:
    """Regenerates the whole table; written at the end, in one piece."""
    table = {}
    for name, activation in ACTIVATIONS.items():
        start, rows = time.perf_counter(), []
        for point in POINTS:
            try:
                rows.append(row(name, *point))
            except ValueError as reason:
                print(f"{name} {point}: skipped, {reason}", file=sys.stderr)
        table[name] = {"definition": activation.definition, "rows": rows}
        print(f"{name}: {len(rows)} rows, {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    about = (
        "k = E[s(u)s(v)] and kdot = E[s'(u)s'(v)] by tests/oracle.py (python -m tests.oracle): each value +- its radius"
        " encloses the truth for the exact binary floats q11, q12, q22 (hexadecimal); rigour as stated in that module."
    )
    partial = DATA.with_suffix(".json.part")
    partial.write_text(json.dumps({"about": about, "activations": table}, indent=1) + "\n")
    os.replace(partial, DATA)


if __name__ == "__main__":
    main()
