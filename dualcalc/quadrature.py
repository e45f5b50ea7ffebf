"""An activation in float64: its values and their quadrature against Hermite functions, for one norm or 20,000.

`Profile` evaluates s and its derivatives piece by piece without overflow and knows where s is not smooth. The half-line
is cut by the midpoint rule where s is smooth (it converges exponentially there) and by Gauss-Legendre panels, graded
towards the breaks, where it is not. Rules are refined until two agree. Norms share their nodes and one matrix product
unless a break away from zero moves with them. `expansions.py` is the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import sympy as sp
from flint import arb

from .balls import precision
from .certified import gauss_legendre
from .dual import Dual, resolve
from .parsing import t
from .pieces import BALLS, COMPLEX, NUMPY, Pieces, Sigmoid, Softplus, derivative, program, split

# ---- complex singularities ------------------------------------------------------------------------------------------

# where a function of u is singular: at the zeros of these
SINGULAR: Mapping[type, Callable[[sp.Expr], sp.Expr]] = {
    sp.log: lambda u: u,
    sp.tanh: sp.cosh,
    sp.tan: sp.cos,
    sp.atan: lambda u: 1 + u**2,
    Sigmoid: lambda u: 1 + sp.exp(u),
    Softplus: lambda u: 1 + sp.exp(u),
}


def singularities(piece: sp.Expr, width: float) -> np.ndarray:
    """Complex singularities of a piece with Im >= 0 and |Re| <= width, by Newton's method from a grid: an estimate."""
    equations = set()
    for e in sp.preorder_traversal(derivative(piece, 0)):
        if e.func in SINGULAR and e.has(t):
            equations.add(SINGULAR[e.func](e.args[0]))
        elif e.is_Pow and e.base.has(t) and not (e.exp.is_Integer and e.exp.is_positive):
            equations.add(e.base)
    x, y = np.linspace(-width, width, 8 * math.ceil(width) + 1), np.array([0.0, 0.1, 0.3, 1.0, 2.0, 3.5, 6.0])
    grid = (x[:, None] + 1j * y).ravel()
    found = [np.empty(0, dtype=complex)]
    for equation in equations:
        f, slope, z = program(equation), program(equation, 1), grid
        with np.errstate(all="ignore"):
            for _ in range(40):
                step = f(z, COMPLEX) / slope(z, COMPLEX)
                z = z - step
        good = (np.abs(step) <= 1e-12 * (1 + np.abs(z))) & (np.abs(z.real) <= width)
        found.append(z[good & (z.imag > -1e-9)])
    return np.concatenate(found)


# ---- an activation as numbers ---------------------------------------------------------------------------------------

SEEN = 12.0  # complex singularities are searched for within |Re t| <= SEEN
FAR = 2.0**20  # where the growth of an activation is read off


@dataclass(frozen=True)
class Profile:
    """An activation as numbers: NumPy functions of s and its derivatives, and where they are not smooth.

    activation   SymPy expression in `t`, without parameters
    parts        its analytic pieces and the breaks between them
    """

    activation: sp.Expr
    parts: Pieces

    def __call__(self, x, order: int = 0) -> np.ndarray:
        """The order-th derivative at x, float64, off the breaks; at a break the mean of both sides."""
        x = np.asarray(x, dtype=float)
        if not self.breaks:
            return self.piece(0, x, order)
        where = np.searchsorted(self.breaks, x, side="right")
        out = np.empty(x.shape)
        for i in range(len(self.breaks) + 1):
            inside = where == i
            if inside.any():
                out[inside] = self.piece(i, x[inside], order)
        for i, b in enumerate(self.breaks):
            if (x == b).any():
                out[x == b] = (self.piece(i, b, order) + self.piece(i + 1, b, order)) / 2
        return out

    def piece(self, i: int, x, order: int = 0) -> np.ndarray:
        """The i-th piece (or its derivative) at x, wherever x lies."""
        with np.errstate(all="ignore"):
            value = program(self.parts.pieces[i], order)(np.asarray(x, dtype=float), NUMPY)
        return value if np.shape(value) == np.shape(x) else np.full(np.shape(x), value)

    @cached_property
    def breaks(self) -> tuple[float, ...]:
        """Ascending: where s or one of its derivatives is not smooth."""
        return tuple(b.at for b in self.parts.breaks)

    @cached_property
    def jumps(self) -> tuple[float, ...]:
        """The breaks where s itself jumps."""
        return self.jumps_of(0)

    def jumps_of(self, order: int) -> tuple[float, ...]:
        """The breaks where the order-th derivative jumps (or has no limit)."""
        return self.parts.jumps(order)

    @cached_property
    def parity(self) -> int | None:
        """1 for an even activation, -1 for an odd one, else None.

        By symbols where SymPy sees it, else by the values at 40 points to 60 digits.
        """
        if not np.allclose(self.breaks, [-b for b in reversed(self.breaks)], rtol=0, atol=1e-12):
            return None
        pieces = self.parts.pieces
        mirrored = [p.xreplace({t: -t}) for p in reversed(pieces)]
        for sign in (1, -1):
            if all(sp.expand(p - sign * m) == 0 for p, m in zip(pieces, mirrored, strict=True)):
                return sign
        with precision(256):
            points = [arb(x) for x in np.random.default_rng(0).uniform(-6, 6, 40)]
            pairs = [(self.ball(x), self.ball(-x)) for x in points]
            for sign in (1, -1):
                gaps = [x - sign * y for x, y in pairs]
                if all(g.contains(0) and g.rad() < 1e-60 for g in gaps):
                    return sign
        return None

    def ball(self, x: arb, order: int = 0) -> arb:
        """The order-th derivative at a point that is not a break, as a ball."""
        i = int(np.searchsorted(self.breaks, float(x.mid())))
        return arb(program(self.parts.pieces[i], order)(x, BALLS))

    @property
    def even_odd(self) -> tuple[Callable, Callable]:
        """The even and the odd part of s, as functions of an array."""
        return (lambda x: (self(x) + self(-x)) / 2), (lambda x: (self(x) - self(-x)) / 2)

    @cached_property
    def strip(self) -> float:
        """Distance of the nearest complex singularity from the real axis (of a piece: from its interval).

        inf where every piece is entire; 0 where one is singular at its own end. Found numerically for |Re t| <= 12.
        """
        ends = [-math.inf, *self.breaks, math.inf]
        distances = [math.inf]
        for piece, (lo, hi) in zip(self.parts.pieces, pairwise(ends), strict=True):
            z = singularities(piece, SEEN)
            distances += [float(x) for x in np.abs(z - np.clip(z.real, lo, hi))]
        least = min(distances)
        return least if least > 1e-9 else 0.0

    @cached_property
    def rate(self) -> float:
        """alpha of the growth exp(alpha t^2), 0 if slower, inf if faster: E[s(aZ)^2] is finite iff 4 alpha a^2 < 1."""
        rates = [0.0]
        with precision(256):
            for side in (-1, 1):
                for x in (FAR, FAR * 1.0625, FAR * 1.1875):
                    sizes = [abs(self.ball(arb(side * y))) for y in (x, 2 * x)]
                    if not all(s.is_finite() for s in sizes):
                        return math.inf
                    if all(s > 0 for s in sizes):
                        rates.append(float((sizes[1].log() - sizes[0].log()) / (3 * arb(x) ** 2)))
        fastest = max(rates)
        return 0.0 if fastest < 1e-6 else math.inf if fastest > 1e6 else round(fastest, 9)


def profile(activation, **parameters) -> Profile:
    """An activation (text, catalog id, SymPy expression, Dual) as numbers; a Profile is returned as it is.

    Parameters that are not given take the catalog's defaults. ValueError where one has no value, or a function of the
    activation is not known.
    """
    if isinstance(activation, Profile):
        if parameters:
            raise ValueError(f"{next(iter(parameters))} came with a profile, which has no parameters left")
        return activation
    if isinstance(activation, Dual):
        dual = activation
    else:
        dual, parameters = resolve(activation, **parameters), {}
    if dual.activation is None:
        raise ValueError("this dual was defined by its kernel: it has no activation to expand; expected an activation")
    values = {s.name: dual.defaults[s.name] for s in dual.parameters if s.name in dual.defaults} | parameters
    missing = [s.name for s in dual.parameters if s.name not in values]
    if missing:
        raise ValueError(f"the parameter {missing[0]} of {dual.activation} has no value; give one, as {missing[0]}=1")
    return _profile(resolve(dual.activation, **values).activation if values else dual.activation)


PROBES = (-2.3456789, -1.1234567, -0.3456789, 0.3456789, 1.1234567, 2.3456789)  # where an activation must be a number


@lru_cache(maxsize=128)
def _profile(activation: sp.Expr) -> Profile:
    p = Profile(activation, split(activation))
    with precision(256):
        lost = [x for x in PROBES if not p.ball(arb(x)).is_finite()]
    if lost or not p.breaks and p.strip == 0:
        where = f"has no finite real value at t = {lost[0]}" if lost else "has a singularity at a real t"
        raise ValueError(f"{activation} {where}; expected a function that is finite and real for all real t")
    return p


# ---- Hermite coefficients in float64 --------------------------------------------------------------------------------

FARTHEST = 52.0  # standard deviations: exp(-t^2/4) is a normal float up to here
MAX_ORDER = 8  # derivatives, written out by SymPy
NODES = 20  # of Gauss-Legendre on a panel
AGREE = 2e-15  # two successive rules, relative to ||s||: the finer one, which is used, is far better than that
FINER, LEVELS = 1.25, 36  # refinement from rule to rule, and how often
TABLE = 50_000_000  # numbers in a table of Hermite functions: 400 MB
CACHE = 1 << 16  # numbers in a tile of activation values, so that it stays in the cache
BLOCK = 1 << 20  # numbers in a block of them that goes into one matrix product: threads meet once per block


@lru_cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights, rounded from balls: NumPy's weights are off by up to 300 eps."""
    with precision(128):
        rule = gauss_legendre(NODES)
    x, w = (np.array([float(y.mid()) for y in column]) for column in zip(*rule, strict=True))
    return x, w


def hermite_functions(nodes: np.ndarray, degree: int):
    """h_j(t)/sqrt(j!) exp(-t^2/4) for j = 0..degree, one after the other; at most 1.09 in absolute value."""
    before, current = np.zeros_like(nodes), np.exp(-(nodes**2) / 4)
    for j in range(degree + 1):
        yield current
        before, current = current, (nodes * current - math.sqrt(j) * before) / math.sqrt(j + 1)


@dataclass(frozen=True)
class Rule:
    """Quadrature on the half-line [0, end]; `scale` 1 is a first guess, smaller is finer.

    The integrand is split into s(x) + s(-x) and s(x) - s(-x), for even and odd j.
    """

    profile: Profile
    degree: int
    order: int
    end: float
    scale: float

    @property
    def shared(self) -> bool:
        """Whether all norms have the same nodes: no break, or one at zero."""
        return self.profile.breaks in ((), (0.0,))

    def nodes(self, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nodes t and weights; one row per norm unless shared."""
        norms = norms.max(keepdims=True) if self.shared else norms
        wave = math.sqrt(self.degree) + 1  # wave number of h_j exp(-t^2/4)
        strip = min(self.profile.strip, 30.0) / norms.max()
        if not self.profile.breaks:
            step = self.scale * min(2 * math.pi * strip / (37 + strip * wave), 2 * math.pi / (9 + wave))
            count = math.ceil(self.end / step)
            if count * (self.degree + 1) > TABLE:
                raise ValueError(
                    f"{self.profile.activation} at the norm {norms.max():g} needs {count:.3g} nodes, too many for a "
                    f"table of {self.degree + 1} Hermite functions; expected a smaller norm or degree"
                )
            return (np.arange(count) + 0.5) * step, np.full(count, step)
        first, longest = self.scale * max(1.5 * strip, 1e-17), self.scale * min(2.5, 28 / wave)
        kinks = np.unique(np.abs(self.profile.breaks))
        ends = np.minimum(kinks[kinks > 0] / norms[:, None], self.end)
        ends = np.hstack([np.zeros((len(norms), 1)), ends, np.full((len(norms), 1), self.end)])
        edges = [ends[:, :1]]
        for i in range(ends.shape[1] - 1):
            length = ends[:, i + 1] - ends[:, i]
            graded = i > 0 or 0.0 in kinks, i + 2 < ends.shape[1]
            cuts = _grades(float(length.max()), first, longest, *graded)
            edges.append(ends[:, i : i + 1] + length[:, None] * cuts)
        all_edges = np.hstack(edges)
        x, w = _legendre()
        half, middle = np.diff(all_edges)[..., None] / 2, (all_edges[:, 1:] + all_edges[:, :-1])[..., None] / 2
        nodes, weights = ((y.reshape(len(norms), -1)) for y in (middle + half * x, half * w))
        return (nodes[0], weights[0]) if self.shared else (nodes, weights)

    @property
    def parity(self) -> int | None:
        """Of the derivative that is expanded."""
        parity = self.profile.parity
        return None if parity is None else parity * (-1) ** self.order

    def parts(self, x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """s(x) + s(-x) and s(x) - s(-x); where s has a parity, s(x) and None."""
        p, last = self.profile, len(self.profile.breaks)
        right = p.piece(last, x, self.order) if self.shared else p(x, self.order)
        if self.parity is not None:
            return (right, None) if self.parity == 1 else (None, right)
        left = p.piece(0, -x, self.order) if self.shared else p(-x, self.order)
        return right + left, np.subtract(right, left, out=left)

    def density(self, nodes: np.ndarray, weights: np.ndarray, power: int) -> np.ndarray:
        """weights exp(-t^2/2)/sqrt(2 pi), less the factor exp(-t^2/4) of Hermite functions; folded as the parts are."""
        folded = 1.0 if self.parity is None else 2.0
        return weights * np.exp(-power * nodes**2 / 4) * folded**power / (power * math.sqrt(2 * math.pi))

    def coefficients(self, norms: np.ndarray) -> np.ndarray:
        """chat_j at n norms, (n, degree + 1)."""
        return self._by_product(norms) if self.shared else self._by_recurrence(norms)

    def _by_product(self, norms: np.ndarray) -> np.ndarray:
        """Shared nodes: the Hermite functions are tabulated once, the rest is one matrix product, block by block."""
        nodes, weights = self.nodes(norms)
        density = self.density(nodes, weights, 1)
        table = np.array([density * phi for phi in hermite_functions(nodes, self.degree)])
        tables = [np.ascontiguousarray(table[parity::2].T) for parity in (0, 1)]
        out = np.zeros((len(norms), self.degree + 1))
        rows, block = (max(1, size // nodes.size) for size in (CACHE, BLOCK))
        block = min(block, len(norms))
        kept = [np.empty((block, nodes.size)) if self.parity in (None, parity) else None for parity in (1, -1)]
        for start in range(0, len(norms), block):
            here = norms[start : start + block, None]
            for i in range(0, len(here), rows):
                for values, into in zip(self.parts(here[i : i + rows] * nodes), kept, strict=True):
                    if into is not None:
                        into[i : min(i + rows, len(here))] = values
            for parity, values in enumerate(kept):
                if values is not None:
                    out[start : start + block, parity::2] = values[: len(here)] @ tables[parity]
        return out

    def _by_recurrence(self, norms: np.ndarray) -> np.ndarray:
        """Nodes that move with the norm; ascending, so that a tile's norms are alike and its panels too."""
        out, ascending = np.zeros((len(norms), self.degree + 1)), np.argsort(norms)
        rows = max(1, CACHE // self.nodes(norms.max(keepdims=True))[0].size)
        for i in range(0, len(norms), rows):
            tile = ascending[i : i + rows]
            nodes, weights = self.nodes(norms[tile])
            density = self.density(nodes, weights, 1)
            values = [None if v is None else v * density for v in self.parts(norms[tile, None] * nodes)]
            for j, phi in enumerate(hermite_functions(nodes, self.degree)):
                if (v := values[j % 2]) is not None:
                    out[tile, j] = np.einsum("nk,nk->n", v, phi)
        return out

    def moments(self, norms: np.ndarray) -> np.ndarray:
        """E[s(norm Z)^2] at n norms, (n,)."""
        out, ascending = np.zeros(len(norms)), np.argsort(norms)
        rows = max(1, CACHE // self.nodes(norms.max(keepdims=True))[0].size)
        for i in range(0, len(norms), rows):
            tile = ascending[i : i + rows]
            nodes, weights = self.nodes(norms[tile])
            density = self.density(nodes, weights, 2)
            for values in self.parts(norms[tile, None] * nodes):
                if values is not None:
                    out[tile] += np.sum(values * values * density, axis=1)
        return out


def _grades(length: float, first: float, longest: float, left: bool, right: bool) -> np.ndarray:
    """Panel ends in (0, 1] of an interval: short next to a graded end, each at most twice as long as the one before."""
    if length == 0:
        return np.ones(1)
    if left and right:
        half = _grades(length / 2, first, longest, True, False) / 2
        return np.concatenate([half, 1 - half[-2::-1], [1.0]])
    if right:
        mirrored = _grades(length, first, longest, True, False)
        return np.concatenate([1 - mirrored[-2::-1], [1.0]])
    ends, x = [], 0.0
    while x < length:
        x += min(longest, first + x) if left else longest
        ends.append(min(x / length, 1.0))
    return np.array(ends)


def _farthest(p: Profile, norm: float, order: int) -> float:
    """Where |s(norm t)| exp(-t^2/4) has fallen below 1e-18 ||s|| for good."""
    x = np.arange(0, FARTHEST + 0.25, 0.25)
    values = np.abs(np.stack([p(norm * x, order), p(-norm * x, order)]))
    with np.errstate(all="ignore"):
        size = np.log(values) - x**2 / 4
        scale = 0.5 * np.log(np.nansum(np.exp(2 * np.where(np.isfinite(size), size, -np.inf))) * 0.1)
    above = np.flatnonzero((size > scale + math.log(1e-18)).any(axis=0) | ~np.isfinite(values).all(axis=0))
    end = max(12.0, x[above[-1]] + 0.25 if above.size else 0.0)
    if end > FARTHEST:
        raise ValueError(
            f"{p.activation} at the norm {norm:g} is too large beyond {FARTHEST:g} standard deviations for float64; "
            "expected a smaller norm"
        )
    return float(end)


def check_rate(p: Profile, norm: float) -> None:
    """Refuses a norm at which E[s(norm Z)^2] is infinite."""
    if p.rate and not 4 * p.rate * norm**2 < 1:
        faster = "faster than exp(c t**2) for every c: no norm is small enough"
        limit = f"like exp({p.rate:g} t**2): expected a norm below {0.5 / math.sqrt(p.rate):.6g}"
        raise ValueError(
            f"{p.activation} is not square-integrable at the norm {norm:g}; it grows "
            f"{faster if math.isinf(p.rate) else limit}"
        )


def check_order(p: Profile, order: int) -> None:
    """Refuses a derivative that is no function in L2."""
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= MAX_ORDER:
        raise ValueError(f"order = {order!r}; expected an integer from 0 to {MAX_ORDER}")
    for lower in range(order):
        if found := p.jumps_of(lower):
            raise ValueError(
                f"derivative {order} of {p.activation} is not square-integrable: derivative {lower} jumps at "
                f"t = {', '.join(f'{x:g}' for x in found[:4])}; expected order at most {lower}"
            )


def choose(p: Profile, degree: int, norms: np.ndarray, order: int = 0) -> Rule:
    """The first rule that agrees with the one before it at the smallest, the middle and the largest norm.

    ValueError where there is none.
    """
    check_rate(p, norms.max())
    check_order(p, order)
    probes = np.unique(np.quantile(norms, [0.0, 0.5, 1.0], method="nearest"))
    end = max(_farthest(p, float(a), order) for a in probes)
    if p.parts.reach < end * norms.max():
        raise ValueError(
            f"the switches of {p.activation} are known for |t| <= {p.parts.reach:g} only; "
            f"expected norms below {p.parts.reach / end:.3g}"
        )
    before = None
    for level in range(LEVELS):
        rule = Rule(p, degree, order, end, FINER ** (1 - level))
        c, m = rule.coefficients(probes), rule.moments(probes)
        if before is not None:
            gap = np.maximum(np.abs(c - before[0]).max(axis=1), np.abs(m - before[1]) / (2 * np.sqrt(m) + 1e-300))
            if (gap <= AGREE * np.sqrt(m)).all():
                return rule
        before = c, m
    raise ValueError(
        f"the quadrature of {p.activation} does not converge at the norms {norms.min():g} to {norms.max():g}: it has "
        "features finer than float64 rules resolve, or is not square-integrable; expected a smoother activation or a "
        "smaller norm"
    )
