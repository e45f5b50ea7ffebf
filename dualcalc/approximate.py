"""Fast approximants of the kernels of any activation, closed form or not: tables with a bound of their error.

`build` samples k, kdot and kddot of an activation on Chebyshev nodes in log norm and in sin(theta), and finds the
separable terms of every Chebyshev coefficient by an eigendecomposition (tables.py has the form). Truncation takes the
most of the tolerance, because terms are what a pair costs; all else is resolved far below it. At small norms the power
series in c with Hermite coefficients needs fewer terms (one for each power) and replaces the Chebyshev series. For
norms 1e-3 to 10, k and kdot of tanh take 54 and 98 terms at 1e-6, 158 and 244 at 1e-10; of SiLU 29 and 48, 93 and 138.
The half-angle sin(theta/2) in place of sin(theta) needs a quarter more, and so does an unshifted variable.

`kernel_table` does it for a kernel given as a function, `gauss_hermite` is the plain quadrature to compare with, and
`mixtures.py` computes some kernels another way. `codegen.py` prints the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.polynomial.chebyshev import chebval, chebvander
from scipy.fft import dct

from .expansions import Profile, hermite, profile, second_moment
from .mixtures import kolmogorov, mixture_kernel
from .quadrature import check_rate
from .tables import EPS, Part, Table, angle

__all__ = ["Approximation", "Part", "Table", "build", "gauss_hermite", "kernel_table", "kolmogorov", "mixture_kernel"]

NORMS = (1e-3, 10.0)
DERIVATIVES = 1e-6  # kddot serves gradients only: its tolerance is the larger of this and 100 times that of k
SHIFTS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.09, 0.25, 1.0)  # of the variable sqrt(sin^2 + shift)
GRID = (16, 20, 24, 30, 36, 44, 52, 62, 74, 88, 104, 124)  # Chebyshev nodes tried, in log norm and in sin(theta)
LEVELS = 9  # quadrature rules tried, each sqrt(2) times finer than the one before
MANY = 500_000_000  # samples of an activation for one grid: about half a minute
POWERS = 80  # the highest degree of a power series in c that is tried
FEW = 12  # separable terms that nothing else can beat
SHARE = 0.02  # of the tolerance, for what is resolved and not truncated


# ---- samples of a kernel --------------------------------------------------------------------------------------------

Level = tuple[int, int]  # of the quadrature rules for the radius and for the angle
Polynomials = tuple[float | None, float | None]
"""The value of an even part that is constant and the slope of an odd part that is linear; 0 for no part, None else."""


class Unreached(Exception):
    """The tolerance cannot be reached: what stands in the way, and about what error can be reached."""

    def __init__(self, what: str, reached: float):
        super().__init__(what, reached)
        self.what, self.reached = what, reached


@lru_cache(maxsize=32)
def _radial(level: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Radii up to `reach` and weights of exp(-r^2/2) dr: the trapezoid rule in u, r = exp(u - exp(-u))."""
    step = 0.2 / math.sqrt(2) ** level
    u = np.arange(-3.6, math.log(reach) + 1, step)
    r = np.exp(u - np.exp(-u))
    u, r = u[r < reach], r[r < reach]
    return r, step * r * (1 + np.exp(-u)) * np.exp(-r * r / 2)


@lru_cache(maxsize=32)
def _angular(level: int) -> tuple[np.ndarray, np.ndarray]:
    """The tanh-sinh rule on [-1, 1]: 1 - x and weights, symmetric, resolving every scale next to both ends."""
    step = 0.2 / math.sqrt(2) ** level
    count = math.floor(3.4 / step)
    t = np.arange(-count, count + 1) * step
    gap = 2 / (1 + np.exp(math.pi * np.sinh(t)))
    return gap, step * math.pi / 2 * np.cosh(t) / np.cosh(math.pi / 2 * np.sinh(t)) ** 2


@dataclass(frozen=True)
class Activation:
    """Samples of `E[f(u) f(v)]`, f the order-th derivative of s, by quadrature in polar coordinates.

    u = a r cos(phi), v = b r cos(phi - theta): the circle falls into two arcs where u v > 0, of width pi - theta, and
    two where u v < 0, of width theta. On an arc |u| = a r sin(h g) and |v| = b r sin(h (2 - g)), h half its width and
    g in [0, 2] the distance from the end where u = 0: what the activation does near 0 happens at the ends of the arcs.
    reach: the radius beyond which nothing counts.
    """

    s: Profile
    order: int
    reach: float
    polynomials: Polynomials = (None, None)

    @property
    def parity(self) -> int | None:
        return None if self.s.parity is None else self.s.parity * (-1) ** self.order

    def halves(self, x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The even and the odd part at x > 0; None for one that is zero."""
        smooth = set(self.s.breaks) <= {0.0}
        right = self.s.piece(len(self.s.breaks), x, self.order) if smooth else self.s(x, self.order)
        if self.parity is not None:
            return (right, None) if self.parity == 1 else (None, right)
        constant, slope = self.polynomials
        if slope is not None:
            return right - slope * x, slope * x
        if constant is not None:
            return np.full_like(x, constant), right - constant
        left = self.s.piece(0, -x, self.order) if smooth else self.s(-x, self.order)
        return (right + left) / 2, (right - left) / 2

    def __call__(self, norms: np.ndarray, sines: np.ndarray, level: Level) -> np.ndarray:
        (r, radial), (gap, angular) = _radial(level[0], self.reach), _angular(level[1])
        out = np.zeros((2, len(sines), len(norms), len(norms)))
        if 2 * len(norms) * len(sines) * r.size * gap.size * (1 if self.parity else 2) > MANY:
            raise Unreached(f"{MANY:g} samples", math.inf)
        for i, theta in enumerate(np.arcsin(sines)):
            for half, sign in (((math.pi - theta) / 2, 1), (theta / 2, -1)):
                x = r[:, None] * np.sin(half * gap)
                weights = np.outer(radial * r, angular) * (half / math.pi)
                for k, f in enumerate(self.halves(norms[:, None, None] * x)):
                    if f is not None and self.polynomials[k] is None:
                        left, right = (y.reshape(len(norms), -1) for y in (f * weights, f[:, :, ::-1]))
                        out[k, i] += (sign if k else 1) * _product(left, right)
        return out

    def diagonal(self, norms: np.ndarray) -> np.ndarray:
        """E[f(a Z)^2], by the finest rule."""
        r, radial = _radial(LEVELS, self.reach)
        squares = (f**2 for f in self.halves(norms[:, None] * r) if f is not None)
        return math.sqrt(2 / math.pi) * sum(squares) @ radial


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right.T in pieces so small that BLAS does each in one thread.

    It is as fast where a core is free; where none is, threads that wait for each other take up to 100 times longer."""
    n, width = len(left), left.shape[1]
    step = max(8, 250_000 // n**2)
    return sum((left[:, i : i + step] @ right[:, i : i + step].T for i in range(0, width, step)), np.zeros((n, n)))


def _activation(s: Profile, order: int, norms: tuple[float, float]) -> Activation:
    """The sampler; ValueError where the activation is not square-integrable, or zero, at the norms."""
    check_rate(s, norms[1])
    r, reach = np.linspace(0.05, 38.0, 1520), 0.0
    for a in (norms[0], math.sqrt(norms[0] * norms[1]), norms[1]):
        with np.errstate(all="ignore"):
            f = np.maximum.accumulate(np.maximum(np.abs(s(a * r, order)), np.abs(s(-a * r, order))))
            size = 2 * np.log(r) - r * r / 2 + 2 * np.log(f)
        top, what = np.max(size), f"derivative {order} of {s.activation}" if order else str(s.activation)
        if top == -math.inf:
            raise ValueError(f"{what} vanishes at the norm {a:g}, where no error is small; expected norms above that")
        if not size[-1] < top - 40:
            raise ValueError(f"{what} is not square-integrable at the norm {a:g} in float64; expected norms below that")
        reach = max(reach, float(r[size > top - 40][-1]))
    sampler = Activation(s, order, reach)
    x = np.geomspace(1e-6, 12.0, 200) * norms[1]
    (even, odd), size = sampler.halves(x), np.abs(s(x, order)) + np.abs(s(-x, order))
    return replace(sampler, polynomials=(_multiple(even, np.ones_like(x), size), _multiple(odd, x, size)))


def _multiple(part, of, size) -> float | None:
    """c where part = c of, to rounding of values of that size; else None."""
    if part is None:
        return 0.0
    c = float(np.median(part / of))
    return c if np.all(np.abs(part - c * of) <= 8 * EPS * size) else None


@dataclass(frozen=True)
class Kernel:
    """Samples of a kernel given as a function of (q12, q11, q22)."""

    k: Callable
    polynomials: Polynomials = (None, None)

    def __call__(self, norms: np.ndarray, sines: np.ndarray, level: Level) -> np.ndarray:
        a, b, cosine = norms[:, None], norms[None, :], _cosine(sines)[:, None, None]
        q12, q11, q22 = np.broadcast_arrays(cosine * a * b, a * a, b * b)
        plus, minus = (np.broadcast_to(np.asarray(self.k(q, q11, q22), dtype=float), q.shape) for q in (q12, -q12))
        if not (np.isfinite(plus).all() and np.isfinite(minus).all()):
            raise ValueError("the kernel is not finite on the whole range of norms; expected a narrower range")
        return np.stack([(plus + minus) / 2, (plus - minus) / 2])

    def diagonal(self, norms: np.ndarray) -> np.ndarray:
        q = norms**2
        k = np.asarray(self.k(q, q, q), dtype=float)
        if not (k > 0).all():
            i = int(np.argmin(k > 0))
            raise ValueError(f"k(q, q, q) is {k[i]:g} at the norm {norms[i]:g}; expected a positive number")
        return k


Sampler = Activation | Kernel
"""Called with norms (N,), sines (S,) and a level: E and c O at all pairs of norms, (2, S, N, N), each zero where it is
a polynomial. `diagonal(norms)`: k(a, a, 1), polynomials included."""


def _cosine(sines: np.ndarray) -> np.ndarray:
    return np.sqrt((1 - sines) * (1 + sines))


def _polynomial(polynomials: Polynomials) -> tuple[float, float]:
    """constant and linear of a table: s = c + slope t has the kernel c^2 + slope^2 q12."""
    return (polynomials[0] or 0.0) ** 2, (polynomials[1] or 0.0) ** 2


# ---- resolution -----------------------------------------------------------------------------------------------------


def _nodes(n: int) -> np.ndarray:
    return np.cos(math.pi * (np.arange(n) + 0.5) / n)


def _transform(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Chebyshev coefficients of values at `_nodes`."""
    c = dct(values, axis=axis) / values.shape[axis]
    c[(slice(None),) * axis + (0,)] /= 2
    return c


def _at(norms: tuple[float, float], y) -> np.ndarray:
    """The norms at y in [-1, 1]."""
    low, high = map(math.log, norms)
    return np.exp((low + high) / 2 + (high - low) / 2 * np.asarray(y))


def _over(samples: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return samples / (scale[:, None] * scale)


def _tail(coefficients: np.ndarray) -> float:
    """What lies beyond the last coefficients, axis 0: twice the sum of the last four, where they decay."""
    return 2 * float(np.sum(np.max(np.abs(coefficients[-4:]), axis=tuple(range(1, coefficients.ndim)))))


@dataclass(frozen=True)
class Resolution:
    """How finely a kernel is sampled: Chebyshev nodes in log norm and in sin(theta), and the quadrature."""

    norms: int
    sines: int
    level: Level

    def finer(self) -> Resolution:
        return Resolution(self.norms * 5 // 4, self.sines * 5 // 4, _finer(self.level))


def _finer(level: Level) -> Level:
    return level[0] + 1, level[1] + 1


def _resolution(sampler: Sampler, norms: tuple[float, float], tol: float) -> Resolution:
    """The least that resolves a few sections of the kernel to tol / 10, as far as their last coefficients tell."""
    few, goal = _at(norms, [-1.0, 0.0, 0.6, 1.0]), tol / 10
    scale = np.sqrt(sampler.diagonal(few))

    def least(candidates: Iterable[int], error: Callable[[int], float], what: str) -> int:
        reached = math.inf
        for candidate in candidates:
            reached = min(reached, found := error(candidate))
            if found <= goal:
                return candidate
        raise Unreached(what, 10 * reached)

    def difference(coarse: Level, fine: Level) -> float:
        sines = np.array([0.0, 0.03, 0.6, 1.0])
        change = sampler(few, sines, fine) - sampler(few, sines, coarse)
        return float(np.max(np.abs(_over(change, scale))))

    def sine_tail(n: int) -> float:
        sines = (_nodes(n) + 1) / 2
        even, odd = _over(sampler(few, sines, level), scale)
        return max(_tail(_transform(even)), _tail(_transform(odd / _cosine(sines)[:, None, None])))

    def norm_tail(n: int) -> float:
        a = _at(norms, _nodes(n))
        values = _over(sampler(a, np.array([0.0, 0.3]), level), np.sqrt(sampler.diagonal(a)))
        return _tail(_transform(np.moveaxis(values, 2, 0)))

    level = (0, 0)
    if isinstance(sampler, Activation):
        radial = least(range(LEVELS), lambda i: difference((i, 1), (i + 1, 1)), "the radius")
        level = radial, least(range(LEVELS), lambda i: difference((radial, i), (radial, i + 1)), "the quadrature angle")
    return Resolution(least(GRID, norm_tail, "log norm"), least(GRID, sine_tail, "sin(theta)"), level)


@dataclass(frozen=True)
class Grid:
    """A sampled kernel.

    log_scale      Chebyshev coefficients of log sqrt(k(a, a, 1))
    coefficients   (2, S, N, N): of E and O over the scale in x = 2 sin(theta) - 1, at pairs of the N norms at `_nodes`
    unresolved     bounds the error of interpolation and quadrature, relative to sqrt(k11 k22)
    """

    log_scale: np.ndarray
    coefficients: np.ndarray
    unresolved: float


def _log_scale(moment: Callable[[np.ndarray], np.ndarray], norms: tuple[float, float], tol: float) -> np.ndarray:
    """Chebyshev coefficients of log sqrt(moment), moment(norms) = k(a, a, 1), to tol / 1000 and rounded so.

    The rounded series is the scale of everything else, so that its error is none of the table's."""
    for n in GRID:
        c = _transform(np.log(moment(_at(norms, _nodes(n)))) / 2)
        if _tail(c) <= tol / 1000:
            break
    c = np.round(c, 4 - math.floor(math.log10(tol)))
    return c[: max(np.flatnonzero(c), default=0) + 1]


def _grid(sampler: Sampler, norms: tuple[float, float], at: Resolution, tol: float) -> Grid:
    y, sines = _nodes(at.norms), (_nodes(at.sines) + 1) / 2
    log_scale = _log_scale(sampler.diagonal, norms, tol)

    def over_scale(y, sines, level):
        return _over(sampler(_at(norms, y), sines, level), np.exp(chebval(y, log_scale)))

    values = over_scale(y, sines, at.level)
    values[1] /= _cosine(sines)[:, None, None]
    coefficients = _transform(values, 1)
    # against a finer rule between the nodes, where interpolation errs most
    rows, columns = (np.cos(math.pi * np.unique(np.linspace(0, n, 9).round()) / n) for n in (at.norms, at.sines))
    weights = chebvander(rows, at.norms - 1) @ _transform(np.eye(at.norms))
    found = np.einsum("sl,klij->ksij", chebvander(columns, at.sines - 1), coefficients)
    found = weights @ found @ weights.T
    between = (columns + 1) / 2
    found[1] *= _cosine(between)[:, None, None]
    error = np.abs(found - over_scale(rows, between, _finer(at.level))).max(axis=(1, 2, 3)).sum()
    return Grid(log_scale, coefficients, 2 * float(error))


def _shifted(coefficients: np.ndarray, shift: float) -> np.ndarray:
    """Chebyshev coefficients, axis 1, in the variable sqrt(sin(theta)^2 + shift) instead of sin(theta)."""
    n = coefficients.shape[1]
    low, high = math.sqrt(shift), math.sqrt(1 + shift)
    w = (low + high) / 2 + (high - low) / 2 * _nodes(n)
    sines = np.sqrt(np.maximum(w * w - shift, 0))
    values = np.tensordot(chebvander(2 * sines - 1, n - 1), coefficients, (1, 1))
    return _transform(np.moveaxis(values, 1, 0), 1)


# ---- separable terms ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """Separable terms of a part: degrees (R,), signs (R,), Chebyshev coefficients of W / scale in y (R, N)."""

    degrees: np.ndarray
    signs: np.ndarray
    features: np.ndarray

    def squares(self) -> np.ndarray:
        """W(a)^2 on a grid, (R, 8 N), times 1.09: sums of them are nowhere larger than on the grid.

        Their degree is below 2 N: between 8 N such points they rise at most by 1/cos(pi/8) (Ehlich, Zeller 1964)."""
        n = self.features.shape[1]
        return 1.09 * (self.features @ chebvander(np.cos(np.linspace(0, math.pi, 8 * n)), n - 1).T) ** 2

    def chosen(self, keep: np.ndarray) -> Terms:
        return Terms(self.degrees[keep], self.signs[keep], self.features[keep])


def _separate(coefficients: np.ndarray) -> Terms:
    """The eigenvectors of every coefficient matrix (L + 1, N, N), each times the root of its eigenvalue."""
    count, n = coefficients.shape[:2]
    values, vectors = np.linalg.eigh((coefficients + coefficients.transpose(0, 2, 1)) / 2)
    at_nodes = (vectors * np.sqrt(np.abs(values))[:, None, :]).transpose(0, 2, 1).reshape(count * n, n)
    at_nodes *= np.where(at_nodes.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)  # an eigenvector has no sign of its own
    return Terms(np.repeat(np.arange(count), n), np.sign(values).ravel(), _transform(at_nodes, 1))


def _select(squares: np.ndarray, budget: float) -> tuple[np.ndarray, float]:
    """Which terms to keep, so that the dropped ones sum to at most `budget`, and that sum.

    |sum W_r(a) W_r(b) T_l(x)| <= max_a sum W_r(a)^2 by Cauchy and Schwarz; the true sum comes close to it."""
    order = np.argsort(squares.max(axis=1))
    dropped = np.cumsum(squares[order], axis=0).max(axis=1)
    count = int(np.searchsorted(dropped, budget, side="right"))
    keep = np.ones(len(squares), bool)
    keep[order[:count]] = False
    return keep, float(dropped[count - 1]) if count else 0.0


def _shortened(parts: list[Terms], budget: float) -> tuple[list[np.ndarray], float]:
    """The features with as few Chebyshev coefficients and decimals as the budget allows, and the error that this makes.

    An error d of W changes W(a) W(b) by at most d (2 max|W| + d)."""
    tops = [np.sqrt(p.squares().max(axis=1, initial=0.0)) for p in parts]

    def loss(features: list[np.ndarray]) -> float:
        total = 0.0
        for p, top, f in zip(parts, tops, features, strict=True):
            d = np.abs(p.features[:, : f.shape[1]] - f).sum(axis=1) + np.abs(p.features[:, f.shape[1] :]).sum(axis=1)
            total += float(np.sum(d * (2 * top + d)))
        return total

    whole = [p.features for p in parts]
    cuts = ([f[:, :n] for f in whole] for n in range(1, whole[0].shape[1]))
    cut = next((f for f in cuts if loss(f) <= budget / 2), whole)
    rounded = ([np.round(f, n) for f in cut] for n in range(3, 17))
    features = next((f for f in rounded if loss(f) <= budget), cut)
    return features, loss(features)


def _table(parts: tuple[Terms, Terms], tol: float, settled: float, template: Table) -> Table:
    """The table with the fewest terms; `settled` is the error that is there already. Raises Unreached."""
    squares = np.vstack([p.squares() for p in parts])
    settled += 256 * EPS * (1 + float(squares.sum(axis=0).max(initial=0.0)))
    if settled >= tol / 2:
        raise Unreached("float64", 2 * settled)
    keep, dropped = _select(squares, (1 - SHARE) * (tol - settled))
    cut = len(parts[0].signs)
    kept = [parts[0].chosen(keep[:cut]), parts[1].chosen(keep[cut:])]
    features, lost = _shortened(kept, SHARE * (tol - settled))
    even, odd = (
        Part(tuple(map(int, np.bincount(p.degrees))), p.signs, f) if len(p.signs) else None
        for p, f in zip(kept, features, strict=True)
    )
    return replace(template, even=even, odd=odd, error_bound=settled + dropped + lost)


def _cost(table: Table) -> int:
    """Multiply-adds of a pair: one a term, and two a degree for Chebyshev series, one for powers."""
    return table.terms + sum((2 if table.basis == "chebyshev" else 1) * p.degree for p in table.parts)


def _theta_table(sampler: Sampler, norms: tuple[float, float], tol: float) -> Table:
    """By Chebyshev series in the shifted sine that costs least. Raises Unreached."""
    at = _resolution(sampler, norms, tol)
    for _ in range(4):
        grid = _grid(sampler, norms, at, tol)
        if grid.unresolved <= 0.2 * tol:
            break
        at = at.finer()
    else:
        raise Unreached("log norm and sin(theta)", 5 * grid.unresolved)
    shift, coefficients, tail = _shift(grid.coefficients, tol)
    wanted = (c if p is None else c[:0] for c, p in zip(coefficients, sampler.polynomials, strict=True))
    polynomial = _polynomial(sampler.polynomials)
    template = Table("chebyshev", shift, norms, grid.log_scale, None, None, *polynomial, math.nan)
    even, odd = map(_separate, wanted)
    return _table((even, odd), tol, grid.unresolved + tail, template)


def _shift(coefficients: np.ndarray, tol: float) -> tuple[float, np.ndarray, float]:
    """The shift that needs the fewest terms on a thinned grid of norms; the coefficients with it, and their tail."""
    thin = slice(None, None, max(1, coefficients.shape[2] // 20))
    best = (math.inf, 0.0, coefficients, 0.0)
    for shift in SHIFTS:
        found = _shifted(coefficients, shift) if shift else coefficients
        tail = sum(map(_tail, found)) if shift else 0.0
        if tail <= SHARE * tol:
            values, vectors = np.linalg.eigh(found[:, :, thin, thin])
            squares = np.moveaxis(np.abs(values)[:, :, None] * vectors**2, 3, 2)
            keep, _ = _select(squares.reshape(-1, squares.shape[-1]), tol)
            degrees = np.flatnonzero(keep.reshape(found.shape[:2] + (-1,)).any(axis=(0, 2)))
            best = min(best, (keep.sum() + 2 * max(degrees, default=0), shift, found, tail), key=lambda x: x[0])
    return best[1:]


def _hermite_table(sampler: Activation, norms: tuple[float, float], tol: float) -> Table | None:
    """By the power series in c, W_j = chat_j / scale; None where that converges slowly."""
    s, order = sampler.s, sampler.order

    def over_scale(y, log_scale):
        """chat_j at all y, (POWERS + 1, len(y)), and E[s^2], over the scale."""
        a, scale = _at(norms, y), np.exp(chebval(y, log_scale))
        return hermite(s, POWERS, a, order=order).T / scale, second_moment(s, a, order=order) / scale**2

    last, moment = over_scale(np.ones(1), np.zeros(1))
    if moment[0] - np.sum(last**2) > SHARE * tol * moment[0]:
        return None
    log_scale = _log_scale(sampler.diagonal, norms, tol)
    for n in GRID:
        y, ends = _nodes(n), np.cos(math.pi * np.arange(n + 1) / n)
        features = _transform(over_scale(y, log_scale)[0], 1)
        between, whole = over_scale(ends, log_scale)
        d, top = np.abs(chebval(ends, features.T) - between).max(axis=1), np.abs(between).max(axis=1)
        unresolved = 2 * float(np.sum(d * (2 * top + d)))
        if unresolved <= SHARE * tol:
            break
    else:
        return None
    even, odd = (features[i::2] if p is None else features[:0] for i, p in enumerate(sampler.polynomials))
    parts = (Terms(np.arange(len(even)), np.ones(len(even)), even), Terms(np.arange(len(odd)), np.ones(len(odd)), odd))
    tail = max(0.0, float(np.max(whole - np.sum(between**2, axis=0))))
    template = Table("power", 0.0, norms, log_scale, None, None, *_polynomial(sampler.polynomials), math.nan)
    return _table(parts, tol, unresolved + tail, template)


# ---- building -------------------------------------------------------------------------------------------------------

METHODS = {"chebyshev": "theta-chebyshev", "power": "hermite"}


@dataclass(frozen=True)
class Approximation:
    """Tables of an activation's kernels for a range of norms.

    kdot    of the first derivative; None where the activation jumps (the NTK has no value)
    kddot   of the second derivative, for gradients, to max(100 tol, 1e-6); None where it is infinite, zero, or cannot
            be resolved
    """

    k: Table
    kdot: Table | None
    kddot: Table | None

    @property
    def method(self) -> str:
        return METHODS[self.k.basis]

    @property
    def degree(self) -> int:
        return max(t.degree for t in (self.k, self.kdot) if t is not None)

    @property
    def error_bound(self) -> tuple[float, float]:
        """Of k over sqrt(k11 k22) and of kdot over sqrt(kdot11 kdot22); NaN where there is no kdot."""
        return self.k.error_bound, math.nan if self.kdot is None else self.kdot.error_bound

    @property
    def norms(self) -> tuple[float, float]:
        return self.k.norms


def build(activation, tol: float = 1e-6, norms: tuple[float, float] = NORMS, **parameters) -> Approximation:
    """Tables of k, kdot and kddot with error bounds at most `tol` (kddot: max(100 tol, 1e-6)) for norms in `norms`.

    activation   text, catalog id, SymPy expression, Dual or Profile, with the values of its `parameters`
    ValueError where the tolerance cannot be reached or the activation is not square-integrable.
    """
    s, (tol, norms) = profile(activation, **parameters), checked(tol, norms)
    tables: list[Table | None] = []
    for order, goal in enumerate((tol, tol, max(100 * tol, DERIVATIVES))):
        if any(s.jumps_of(j) for j in range(order)):
            tables.append(None)
            continue
        try:
            tables.append(_activation_table(s, order, goal, norms))
        except (Unreached, ValueError) as error:
            if order < 2:
                raise _refusal(f"{'kdot' if order else 'k'} of {s.activation}", goal, norms, error) from None
            tables.append(None)
    k, kdot, kddot = tables
    assert k is not None
    return Approximation(k, kdot, kddot)


def _activation_table(s: Profile, order: int, tol: float, norms: tuple[float, float]) -> Table:
    sampler = _activation(s, order, norms)
    try:
        by_powers = _hermite_table(sampler, norms, tol)
    except (ValueError, Unreached):  # the coefficients do not converge at these norms
        by_powers = None
    if by_powers is not None and by_powers.terms <= FEW:
        return by_powers
    by_angle = _theta_table(sampler, norms, tol)
    return by_angle if by_powers is None or _cost(by_angle) < _cost(by_powers) else by_powers


def kernel_table(k: Callable, tol: float = 1e-6, norms: tuple[float, float] = NORMS) -> Table:
    """The table of a kernel given as a vectorised function of (q12, q11, q22), smooth in theta and in log norms.

    The function must be right to a few percent of tol, relative to sqrt(k11 k22). ValueError where the tolerance
    cannot be reached.
    """
    tol, norms = checked(tol, norms)
    try:
        return _theta_table(Kernel(k), norms, tol)
    except Unreached as error:
        raise _refusal("this kernel", tol, norms, error) from None


def checked(tol: float, norms: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """Both as floats; ValueError for what is no tolerance or no range of norms."""
    try:
        error, (low, high) = float(tol), map(float, () if isinstance(norms, str) else norms)
    except (TypeError, ValueError):
        error = low = high = math.nan
    if not (1e-12 <= error <= 0.1 and 0 < low < high < math.inf):
        raise ValueError(
            f"tol = {tol!r}, norms = {norms!r} came; expected a tol from 1e-12 to 0.1, and norms (least, greatest), "
            "two finite positive numbers in ascending order"
        )
    return error, (low, high)


def _refusal(what: str, tol: float, norms: tuple[float, float], error: Unreached | ValueError) -> ValueError:
    if isinstance(error, ValueError):
        return error
    remedy = f"about {error.reached:.0e} can be reached; ask for that, or " if error.reached < 0.1 else ""
    return ValueError(
        f"{what} to {tol:g} for norms {norms[0]:g} to {norms[1]:g} is not resolved in {error.what}: {remedy}give a "
        "narrower range of norms"
    )


def gauss_hermite(s: Callable, q12, q11, q22, degree: int = 25) -> np.ndarray:
    """E[s(u) s(v)] by Gauss-Hermite quadrature with degree^2 nodes, for reference: Han et al. 2022, (15)."""
    x, w = np.polynomial.hermite.hermgauss(degree)
    q12, q11, q22 = (np.asarray(q, dtype=float)[..., None, None] for q in (q12, q11, q22))
    sine2, cosine = angle(q12, q11, q22, exact=True)
    u = np.sqrt(2 * q11) * x[:, None]
    v = np.sqrt(2 * q22) * (cosine * x[:, None] + np.sqrt(sine2) * x)
    return np.einsum("...ij,i,j->...", s(u) * s(v), w, w) / math.pi
