"""Enclosures of Hermite coefficients, moments and tails in ball arithmetic: numbers that an error bound may stand on.

Every ball contains the truth. Gauss-Legendre panels on the half-line, split at the breaks, serve all coefficients at
once. What could be lost is bounded three ways, each a ball of radius added to the sums:
- the rule on a panel, by the largest value on a Bernstein ellipse around it: `rule_error`;
- what lies beyond the last panel, by a growth bound of the activation that is read off its formula: `envelope`;
- rounding, by the balls themselves (the recurrence loses about `end sqrt(degree)` in the logarithm: bits are added).
The logarithms of the first two are float64 numbers, raised by SLACK, which is far more than their rounding.
`expansions.hermite(certified=True)` is the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import sympy as sp
from flint import acb, arb, ctx

from .balls import precision
from .parsing import t
from .pieces import BALLS, NUMPY, Erfc, Expm1, Pieces, Program, Sigmoid, Softplus, constant, derivative, program

SLACK = 1e-6  # raises every logarithm of a bound
RHOS = np.array([1.15, 1.3, 1.5, 1.7, 2.0, 2.3, 2.7, 3.2, 4.0, 5.0, 6.5, 9.0, 14.0])  # Bernstein ellipses tried
RADII = 1 - 10.0 ** -np.arange(0.1, 5.0, 0.1)  # r of the Mehler bound
WIDTH, DEPTH, BOXES = 8.0, 40, 6  # first panels; bisections of a panel, and of a box
FARTHEST = 120.0  # standard deviations


@dataclass(frozen=True)
class CertifiedSet(Sequence):
    """chat_0 .. chat_degree as balls, with the moments and tails that bound what is left out.

    norm             the norm, an exact float
    second_moment    E[s(norm Z)^2]
    tail             sum over j > degree of chat_j^2: E[s^2] less the squares that are here
    slope_moment     norm^2 E[s'(norm Z)^2]; None where s jumps, for it is infinite
    slope_tail       sum over j > degree of j chat_j^2; None where s jumps
    """

    coefficients: tuple[arb, ...]
    norm: float
    second_moment: arb
    tail: arb
    slope_moment: arb | None
    slope_tail: arb | None

    def __getitem__(self, index):
        return self.coefficients[index]

    def __len__(self) -> int:
        return len(self.coefficients)


# ---- growth ---------------------------------------------------------------------------------------------------------


class Envelope(NamedTuple):
    """|f(t)| <= exp(log) (1 + |t|)^degree exp(rate |t| + square t^2) for every real t of a piece."""

    log: float
    degree: float = 0.0
    rate: float = 0.0
    square: float = 0.0

    def __add__(self, other: Envelope) -> Envelope:  # type: ignore[override]
        top = max(self.log, other.log)
        log = top + math.log(math.exp(self.log - top) + math.exp(other.log - top)) if top > -math.inf else top
        return Envelope(log, *map(max, self[1:], other[1:]))

    def __mul__(self, other: Envelope) -> Envelope:  # type: ignore[override]
        return Envelope(*(x + y for x, y in zip(self, other, strict=True)))

    def power(self, n: float) -> Envelope:
        return Envelope(*(n * x for x in self))

    @property
    def bounded(self) -> bool:
        return self.degree == 0 and self.rate == 0 and self.square <= 0


def _upper(e: sp.Expr) -> float:
    """An upper bound of |e|, a number."""
    return float(abs(constant(e)).upper()) * (1 + 1e-12)


def _unbounded(e: sp.Expr) -> ValueError:
    return ValueError(
        f"the growth of {e} cannot be bounded, so nothing about {e} can be certified; expected polynomials, exp of "
        "quadratics, bounded functions and quotients whose divisor stays away from zero. Way out: certified=False"
    )


def _signed(e: sp.Expr, side: int) -> sp.Expr:
    """The expression in a variable whose sign is known on the piece: side 1 for t > 0, -1 for t < 0, 0 for both."""
    return e.xreplace({t: side * sp.Symbol("u", positive=True)}) if side else e


def floor(e: sp.Expr, side: int) -> float:
    """A positive lower bound of |e|: a constant, terms that have its sign, less terms that are bounded."""
    if isinstance(e, sp.cosh):
        return 1.0
    if e.is_Mul:
        return math.prod(floor(f, side) for f in e.args)
    if not e.has(t):
        return float(abs(constant(e)).lower()) * (1 - 1e-12)
    number, rest = e.as_independent(t, as_Add=True)
    if not e.is_Add or number == 0:
        raise _unbounded(1 / e)
    sign = 1 if number.is_positive else -1
    least = float(abs(constant(number)).lower()) * (1 - 1e-12)
    for term in sp.Add.make_args(rest):
        if not (sign * _signed(term, side)).is_nonnegative:
            bound = envelope(term, side)
            if not bound.bounded:
                raise _unbounded(1 / e)
            least -= math.exp(bound.log)
    if least <= 0:
        raise _unbounded(1 / e)
    return least


def _exp_envelope(g: sp.Expr, side: int) -> Envelope:
    if g.is_polynomial(t) and sp.degree(g, t) <= 2:
        c, b, a = [*reversed(sp.Poly(g, t).all_coeffs()), sp.Integer(0), sp.Integer(0)][:3]
        high = [float(constant(x).upper()) for x in (c, a)]
        return Envelope(high[0] + 1e-12 * abs(high[0]), 0.0, _upper(b), high[1] + 1e-12 * abs(high[1]))
    if (-_signed(g, side)).is_nonnegative:
        return Envelope(0.0)
    e = envelope(g, side)
    c = math.exp(e.log)
    if e.rate > 0 or e.square > 0 or e.degree > 2:
        raise _unbounded(sp.exp(g))
    return Envelope(c, 0.0, 2 * c if e.degree > 0 else 0.0, c if e.degree > 1 else 0.0)  # c (1 + |t|)^2 and below


def _log_envelope(g: sp.Expr, side: int) -> Envelope:
    """|log g| <= |log floor| + |log c| + (degree + rate)(1 + |t|) + square t^2."""
    e, low = envelope(g, side), floor(g, side)
    slope = e.degree + e.rate + max(e.square, 0.0)
    return Envelope(math.log(abs(math.log(low)) + abs(e.log) + slope + 1e-9), 2.0 if e.square > 0 else 1.0)


ENVELOPES: dict[type, Callable[[sp.Expr, int], Envelope]] = {
    **{f: (lambda g, side: Envelope(0.0)) for f in (sp.tanh, sp.sin, sp.cos, sp.erf, Sigmoid)},
    **{f: (lambda g, side: Envelope(math.log(2))) for f in (sp.erfc, Erfc, sp.atan)},
    **{f: (lambda g, side: _exp_envelope(g, side) + _exp_envelope(-g, side)) for f in (sp.sinh, sp.cosh)},
    sp.exp: _exp_envelope,
    sp.log: _log_envelope,
    Expm1: lambda g, side: _exp_envelope(g, side) + Envelope(0.0),
    Softplus: lambda g, side: envelope(g, side) + Envelope(math.log(math.log(2)) + 1e-12),
}


def envelope(e: sp.Expr, side: int = 0) -> Envelope:
    """A growth bound, read off the expression; ValueError where it has a part whose growth is not known."""
    if not e.has(t):
        size = _upper(e)
        return Envelope(math.log(size) if size else -math.inf)
    if e == t:
        return Envelope(0.0, 1.0)
    if e.is_Add or e.is_Mul:
        return reduce(Envelope.__add__ if e.is_Add else Envelope.__mul__, (envelope(a, side) for a in e.args))
    if e.is_Pow and e.exp.is_positive:
        return envelope(e.base, side).power(float(e.exp))
    if e.is_Pow and e.exp.is_negative:
        return Envelope(float(e.exp) * math.log(floor(e.base, side)))
    if e.func not in ENVELOPES:
        raise _unbounded(e)
    return ENVELOPES[e.func](e.args[0], side)


@lru_cache(maxsize=64)
def growth_bound(parts: Pieces, order: int) -> Envelope:
    """One bound for all pieces of the order-th derivative."""
    ends = [-math.inf, *(b.at for b in parts.breaks), math.inf]
    with precision(64):
        return reduce(
            lambda a, b: Envelope(*map(max, a, b)),
            (
                envelope(derivative(piece, order), 1 if lo >= 0 else -1 if hi <= 0 else 0)
                for piece, (lo, hi) in zip(parts.pieces, pairwise(ends), strict=True)
            ),
        )


# ---- bounds of the quadrature ---------------------------------------------------------------------------------------


def hermite_bound(degree: int, x: float, y: float) -> float:
    """log of a bound of |h_j(z) exp(-z^2/2)|/sqrt(j!), j <= degree, |Re z| >= x, |Im z| <= y.

    Mehler's formula at w = conj z: sum_j r^j |h_j(z)|^2/j! = (1 - r^2)^(-1/2) exp(r x^2/(1 + r) + r y^2/(1 - r)), all
    terms positive, so that each is at most the sum, for any r in (0, 1).
    """
    r = RADII
    bounds = -degree / 2 * np.log(r) - np.log1p(-r * r) / 4 - x * x / (2 * (1 + r)) + y * y / (2 * (1 - r))
    return float(bounds.min())


def tail_bound(growth: Envelope, norm: float, end: float, power: int, hermite: int | None) -> float:
    """log of a bound of the integral over |t| > end of |s(norm t)|^power |h_j(t)| exp(-t^2/2)/sqrt(2 pi j!).

    The logarithm f of the integrand's bound is concave, so f(t) <= f(end) + f'(end) (t - end).
    """
    c, d, b, a = (power * x for x in growth)
    best = math.inf
    for r in RADII if hermite else (0.0,):
        weight = -(hermite or 0) / 2 * math.log(r) - math.log1p(-r * r) / 4 if r else 0.0
        bend = a * norm**2 - 1 / (2 * (1 + r))
        slope = d * norm / (1 + norm * end) + b * norm + 2 * bend * end
        if bend < 0 and slope < 0:
            best = min(
                best, c + weight + d * math.log1p(norm * end) + b * norm * end + bend * end**2 - math.log(-slope)
            )
    return best + math.log(2 / math.sqrt(2 * math.pi)) + SLACK


def sup(f: Program, lo: float, hi: float, height: float) -> float:
    """log of an upper bound of |f| on [lo, hi] x i[-height, height]; inf where it is not seen to be analytic there.

    Boxes of the upper half are halved until their balls are finite and tight; f is real on the real line.
    """
    best = float(f(acb((lo + hi) / 2, height), BALLS).abs_upper())
    best = best if best < math.inf else 0.0
    todo, small = [(lo, hi, 0.0, height, 0)], 1e-12 * (1 + max(abs(lo), abs(hi)))  # covers the ends' rounding
    while todo:
        x0, x1, y0, y1, depth = todo.pop()
        x_rad, y_rad = (x1 - x0) / 2 * (1 + 1e-9) + small, (y1 - y0) / 2 + small
        box = acb(arb((x0 + x1) / 2, x_rad), arb((y0 + y1) / 2, y_rad))
        value = f(box, BALLS)
        size = float(value.abs_upper())
        if size <= max(best, 4 * float(value.abs_lower())) or (depth == BOXES and size < math.inf):
            best = max(best, size)
        elif depth == BOXES:
            return math.inf
        elif x1 - x0 > y1 - y0:
            middle = (x0 + x1) / 2
            todo += [(x0, middle, y0, y1, depth + 1), (middle, x1, y0, y1, depth + 1)]
        else:
            middle = (y0 + y1) / 2
            todo += [(x0, x1, y0, middle, depth + 1), (x0, x1, middle, y1, depth + 1)]
    return math.log(best) + SLACK if best > 0 else -math.inf


def rule_error(n: int, half: float, log_bound: Callable[[int], float], hopes: np.ndarray, target: float) -> float:
    """log of the error of the n-point Gauss-Legendre rule on a panel of half-width `half`.

    `half (64/15) M rho^(-2n)/(1 - rho^-2)` for |F| <= M on the Bernstein ellipse rho: the rule is exact to degree
    2n - 1 and on odd T_k, the k-th Chebyshev coefficient is at most 2 M rho^-k, and rule plus integral of T_k, k >= 4,
    at most 2 + 2/15. The least over RHOS, or the first below the target, or inf where there is no hope of one:
    `log_bound(i)` is log M on the i-th ellipse, hopes[i] a cheap estimate of it from below.
    """
    gain = math.log(half * 64 / 15) - 2 * n * np.log(RHOS) - np.log1p(-(RHOS**-2.0)) + SLACK
    best = math.inf
    for i in np.argsort(gain + hopes):
        if best <= target or gain[i] + hopes[i] > min(best, target):
            break
        best = min(best, float(gain[i]) + log_bound(int(i)))
    return best


# ---- the quadrature -------------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """[left, right] of the half-line; plus and minus are the pieces that s(norm t) and s(-norm t) are in."""

    left: arb
    right: arb
    plus: int
    minus: int

    @property
    def ends(self) -> tuple[float, float]:
        return float(self.left.mid()), float(self.right.mid())

    def halves(self) -> tuple[Panel, Panel]:
        middle = arb(sum(self.ends) / 2)
        return self._replace(right=middle), self._replace(left=middle)


class Wanted(NamedTuple):
    """An integral over the line of |s^(order)|^power times exp(-t^2/2), or times h_j exp(-t^2/2) for j <= hermite."""

    order: int
    power: int
    hermite: int | None
    target: float  # log of the error that is allowed per panel, and in the tail

    def weight(self, x: float, y: float) -> float:
        """log of a bound of the factor beside s where |Re z| >= x, |Im z| <= y."""
        decay = hermite_bound(self.hermite, x, y) if self.hermite else (y * y - x * x) / 2
        return decay - math.log(2 * math.pi) / 2


@dataclass(frozen=True)
class Problem:
    """An activation at a norm, and the integrals that are wanted of it."""

    parts: Pieces
    norm: float
    wanted: tuple[Wanted, ...]
    n: int

    def programs(self, p: Panel, order: int) -> tuple[Program, Program]:
        """s^(order) of norm t and of -norm t."""
        pieces = self.parts.pieces
        return program(pieces[p.plus], order), program(pieces[p.minus], order)

    def error(self, p: Panel) -> np.ndarray:
        """log of the error of the rule on a panel, for each wanted integral; inf where a bisection is called for."""
        lo, hi = p.ends
        middle, half, a = (lo + hi) / 2, (hi - lo) / 2 * (1 + 1e-9), self.norm
        across, up = half * (RHOS + 1 / RHOS) / 2, half * (RHOS - 1 / RHOS) / 2
        sups: dict[tuple, float] = {}

        def largest(order: int, i: int) -> float:
            """log sup of |s(a z)| + |s(-a z)| on the i-th ellipse."""
            if (order, i) not in sups:
                plus, minus = self.programs(p, order)
                x0, x1, y = a * (middle - across[i]), a * (middle + across[i]), a * up[i]
                sups[order, i] = float(np.logaddexp(sup(plus, x0, x1, y), sup(minus, -x1, -x0, y))) + SLACK
            return sups[order, i]

        out: list[float] = []
        for w in self.wanted:
            weights = np.array([w.weight(max(0.0, middle - x), y) for x, y in zip(across, up, strict=True)])
            tops = [complex(a * middle, a * y) for y in up]
            hopes = w.power * np.array([_estimate(self.programs(p, w.order), z) for z in tops]) + weights

            def log_bound(i: int, w=w, weights=weights) -> float:
                return w.power * largest(w.order, i) + weights[i]

            out.append(rule_error(self.n, half, log_bound, hopes, w.target))
            if out[-1] > w.target:
                return np.full(len(self.wanted), math.inf)
        return np.array(out)

    def cuts(self, end: float) -> list[arb]:
        """0, the breaks on either side, end; as balls."""
        cuts = [arb(0), arb(end)]
        for b in self.parts.breaks:
            x = abs(b.ball()) / self.norm
            if x < end and not any(x.overlaps(y) for y in cuts):  # overlapping balls are one real: -b and b, or zero
                cuts.append(x)
        return sorted(cuts, key=lambda x: float(x.mid()))

    def panels(self, cuts: list[arb]) -> tuple[list[Panel], np.ndarray]:
        """The intervals between the cuts, bisected until every error is on target; with the sums of the errors."""
        done, errors, todo = [], np.zeros(len(self.wanted)), []
        for left, right in pairwise(cuts):
            middle = self.norm * (float(left.mid()) + float(right.mid())) / 2
            plus, minus = (sum(b.at < x for b in self.parts.breaks) for x in (middle, -middle))
            todo.append((Panel(left, right, plus, minus), 0))
        while todo:
            p, depth = todo.pop()
            if depth > DEPTH:
                raise ValueError(
                    f"nothing is certified near t = {self.norm * p.ends[0]:.6g}: the activation is not seen to be "
                    "analytic on a neighbourhood of its closed piece there. Way out: certified=False"
                )
            error = self.error(p) if p.ends[1] - p.ends[0] <= WIDTH else np.array([math.inf])
            if error.max() < math.inf:
                done.append(p)
                errors += np.exp(error)
            else:
                todo += [(half, depth + 1) for half in p.halves()]
        return done, errors

    def end(self) -> float:
        """The first quarter beyond which every tail is on target."""
        growths = {w.order: growth_bound(self.parts, w.order) for w in self.wanted}
        for end in np.arange(6.0, FARTHEST, 0.25):
            if all(tail_bound(growths[w.order], self.norm, end, w.power, w.hermite) <= w.target for w in self.wanted):
                return float(end) + 0.0123  # off the breaks
        raise ValueError(f"the tails at the norm {self.norm:g} are too heavy to be certified; expected a smaller norm")


def _estimate(programs: tuple[Program, Program], z: complex) -> float:
    """log of |s(z)| + |s(-z)|, roughly, from below."""
    sizes = [float(f(acb(y), BALLS).abs_lower()) for f, y in zip(programs, (z, -z), strict=True)]
    finite = sum(x for x in sizes if x < math.inf)
    return math.log(finite) if finite > 0 else -math.inf


def _scale(parts: Pieces, norm: float, order: int) -> float:
    """A rough norm of s^(order)(norm Z): sets the targets, enters no value."""
    z = np.arange(-16, 16, 0.03125) + 0.0123
    where = np.searchsorted([b.at for b in parts.breaks], norm * z)
    with np.errstate(all="ignore"):
        values = np.array([program(parts.pieces[i], order)(x, NUMPY) for i, x in zip(where, norm * z, strict=True)])
    square = float(np.nansum(values**2 * np.exp(-(z**2) / 2))) * 0.03125 / math.sqrt(2 * math.pi)
    if not square < 1e280:
        raise ValueError(f"the activation overflows at the norm {norm:g}; expected a smaller norm")
    return math.sqrt(square)


def gauss_legendre(n: int) -> tuple[tuple[arb, arb], ...]:
    """Nodes and weights on [-1, 1] at the current precision."""
    return _gauss_legendre(n, ctx.prec)


@lru_cache(maxsize=16)
def _gauss_legendre(n: int, bits: int) -> tuple[tuple[arb, arb], ...]:
    return tuple(arb.legendre_p_root(n, i, weight=True) for i in range(n))


def enclose(parts: Pieces, degree: int, norm: float, order: int = 0, digits: int = 30) -> CertifiedSet:
    """chat_0..chat_degree of s^(order) at the norm, moments and tails, to radii of about 10^-digits of their scales.

    ValueError where the activation cannot be certified: its growth is not seen, its breaks are not known for certain,
    or a piece is singular at its own end.
    """
    if not parts.proved or math.isfinite(parts.reach):
        raise ValueError(
            "the breaks of the activation are not known for certain, so nothing is certified. Way out: certified=False"
        )
    slope = not parts.jumps(order)
    scales = [_scale(parts, norm, order + m) for m in range(1 + slope)]
    if not scales[0] > 1e-140:
        raise ValueError(f"the activation vanishes at the norm {norm:g} to 140 digits: there is no scale to certify to")
    scales = [scales[0], *(max(s, 1e-3 * scales[0] / norm) for s in scales[1:])]  # the slope of a constant vanishes
    goal = -digits * math.log(10) - math.log(200)
    sharper = math.log(4 * (degree + 1)) + max(0.0, math.log(norm * scales[-1] / scales[0]))
    wanted = [Wanted(order, 1, degree, goal + math.log(scales[0]) - sharper)]
    wanted += [Wanted(order + m, 2, None, goal + 2 * math.log(scale)) for m, scale in enumerate(scales)]
    problem = Problem(parts, norm, tuple(wanted), round(1.5 * digits) + 12)
    with precision(64):
        end = problem.end()
    # the recurrence of h_j at |t| <= end grows by at most exp(end sqrt(degree))
    bits = round(digits * 3.33 + 1.45 * end * math.sqrt(degree)) + 64
    with precision(bits):
        cuts = problem.cuts(end)
    with precision(64):
        panels, errors = problem.panels(cuts)
    with precision(bits):
        growths = [growth_bound(parts, w.order) for w in wanted]
        tails = [tail_bound(g, norm, end, w.power, w.hermite) for g, w in zip(growths, wanted, strict=True)]
        radii = [arb(float(e * (1 + SLACK) + math.exp(x))) for e, x in zip(errors, tails, strict=True)]
        coefficients, moments = _sums(problem, panels, degree)
        chat = tuple(c + arb(0, radii[0]) for c in coefficients)
        second, *slopes = (m + arb(0, r) for m, r in zip(moments, radii[1:], strict=True))
        tail = second - sum((c * c for c in chat), arb(0))
        slope_moment = arb(norm) ** 2 * slopes[0] if slopes else None
        slope_tail = (
            None if slope_moment is None else slope_moment - sum((j * c * c for j, c in enumerate(chat)), arb(0))
        )
    return CertifiedSet(chat, norm, second, tail, slope_moment, slope_tail)


def _sums(problem: Problem, panels: list[Panel], degree: int) -> tuple[list[arb], list[arb]]:
    """The rule's sums: of every coefficient, of the second moments."""
    norm, orders = arb(problem.norm), [w.order for w in problem.wanted[1:]]
    totals, moments = [arb(0)] * (degree + 1), [arb(0)] * len(orders)
    integers = [arb(j) for j in range(degree + 1)]
    density = 1 / (2 * arb.pi()).sqrt()
    for p in panels:
        programs = [problem.programs(p, order) for order in orders]
        centre, half = (p.left + p.right) / 2, (p.right - p.left) / 2
        for x, w in gauss_legendre(problem.n):
            z = centre + half * x
            weight = half * w * density * (-z * z / 2).exp()
            for i, (plus, minus) in enumerate(programs):
                right, left = plus(norm * z, BALLS), minus(-norm * z, BALLS)
                moments[i] += weight * (right * right + left * left)
                if i == 0:
                    even_odd = (right + left) * weight, (right - left) * weight
            before, current = arb(0), arb(1)  # h_(j+1) = z h_j - j h_(j-1)
            for j in range(degree + 1):
                totals[j] += even_odd[j & 1] * current
                before, current = current, z * current - integers[j] * before
    factorial, out = arb(1), []
    for j, total in enumerate(totals):
        factorial *= max(j, 1)
        out.append(total / factorial.sqrt())
    return out, moments
