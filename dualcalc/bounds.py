"""Error bounds of truncated dual kernels, and of networks made of them.

What is left out of `k_q = sum over j <= q of chat_j(a) chat_j(b) c^j` is bounded by what is left of E[s^2] (Parseval).
The formulas are records in the table FORMULAS: `error_bounds` evaluates those that apply, in float64 or, `certified`,
in balls that are rounded up. `network_bounds` composes them through the layers of a deep kernel, `degree_for` turns
them round: the smallest degree that keeps a tolerance. `truncated` and `truncated_network` are the kernels that the
bounds speak of, `looseness` compares the two. The command line and the notebook are the callers.

Two approximants occur. A *truncation* takes the coefficients of every norm: the best polynomial for that norm. The
paper's Theorem 2 takes one *fixed polynomial* s~, the best at nu, for all norms up to nu. What bounds it bounds the
truncation too: T_q(a) <= ||s - s~||_a^2 <= (nu/a) ||s - s~||_nu^2.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from flint import arb

from .balls import precision
from .certified import CertifiedSet, enclose
from .expansions import MAX_DEGREE, hermite, second_moment
from .parsing import t
from .pieces import BALLS, derivative, program
from .quadrature import Profile, profile

FLOOR = 2e-15  # rounding of E[s^2] - sum chat_j^2 in float64, relative to E[s^2]: every float64 tail is raised by it
BITS = 256  # of balls
MAX_CERTIFIED = 500  # degree: beyond it, balls take minutes
BOTH = ("nngp", "ntk")

# ---- numbers: float64 arrays, or object arrays of balls -------------------------------------------------------------


def _is_ball(x) -> bool:
    return np.asarray(x).dtype == object


def _balls(x) -> np.ndarray:
    """Floats as exact balls."""
    return np.asarray(np.frompyfunc(lambda u: arb(float(u)), 1, 1)(x), dtype=object)


def _array(values: Sequence[arb], shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def _larger(x, y):
    return np.frompyfunc(lambda u, v: u.max(v), 2, 1)(x, y) if _is_ball(x) else np.maximum(x, y)


def _smaller(x, y):
    return -_larger(-x, -y)


def _top(x):
    """The upper ends of balls, exact; float64 as it is."""
    return np.frompyfunc(lambda u: u.upper(), 1, 1)(x) if _is_ball(x) else x


def _largest(x):
    return max(np.ravel(_top(x))) if _is_ball(x) else np.max(x)


def _widened(x, radius):
    """x +- radius as a ball; float64, which encloses nothing, as it is."""
    return x + radius * arb(0, 1) if _is_ball(x) else x


def _up(x) -> np.ndarray:
    """As float64, rounded up."""
    up = np.frompyfunc(lambda u: math.nextafter(float(u.upper()), math.inf), 1, 1)
    return np.asarray(up(x) if _is_ball(x) else x, dtype=float)


def _arithmetic(certified: bool):
    return precision(BITS) if certified else nullcontext()


# ---- what is known of an activation at its norms --------------------------------------------------------------------


@dataclass(frozen=True)
class Truncation:
    """s or s' at some norms: the first Hermite coefficients, and what bounds the rest. float64, or balls.

    norms          (*shape), exact
    coefficients   (degree + 1, *shape): the degree comes first, so that norms (n, 1) and (1, m) broadcast
    moment         E[s(norm Z)^2]
    tail           upper bound of the sum over j > degree of chat_j^2
    drift          upper bound of ||s(x Z) - s(norm Z)|| for the x that `norms` are the rounded values of; else 0
    """

    norms: np.ndarray
    coefficients: np.ndarray
    moment: np.ndarray
    tail: np.ndarray
    drift: Any = 0.0

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def cut(self, degree: int) -> Truncation:
        """The same at a smaller degree (-1 leaves no coefficient)."""
        rest = self.coefficients[degree + 1 :]
        return replace(self, coefficients=self.coefficients[: degree + 1], tail=self.tail + (rest * rest).sum(axis=0))


class Layer(NamedTuple):
    """s to degree q and s' to q - 1, which k_q and kdot_q are made of; `slope` is None where it is not wanted."""

    s: Truncation
    slope: Truncation | None

    def cut(self, degree: int) -> Layer:
        return Layer(self.s.cut(degree), self.slope and self.slope.cut(degree - 1))


def _layer(p: Profile, degree: int, norms: np.ndarray, slope: bool, certified: bool, radius=None) -> Layer:
    """Everything at `norms` (*shape); `radius` (*shape): how far they are from the numbers that they round."""
    if certified:
        found = [_enclosed(p, degree, order, norms, radius) for order in range(1 + slope)]
    else:
        found = [_measured(p, degree - order, order, norms) for order in range(1 + slope)]
    return Layer(found[0], found[1] if slope else None)


def _measured(p: Profile, degree: int, order: int, norms: np.ndarray) -> Truncation:
    unique, where = np.unique(norms, return_inverse=True)
    where = where.reshape(norms.shape)
    c = hermite(p, max(degree, 0), unique, order=order).T[: degree + 1]
    m = second_moment(p, unique, order)
    tail = np.maximum(m - (c * c).sum(axis=0), 0) + FLOOR * m
    return Truncation(norms, c[:, where], m[where], tail[where])


def _enclosed(p: Profile, degree: int, order: int, norms: np.ndarray, radius) -> Truncation:
    sets = [_enclosure(p, degree, float(a)) for a in norms.ravel()]
    coefficients, moments, tails = zip(*(OF_ORDER[order](x) for x in sets), strict=True)
    table = _array([x for column in zip(*coefficients, strict=True) for x in column], (-1, *norms.shape))
    drift: Any = 0.0
    if radius is not None:
        pairs = zip(norms.ravel(), radius.ravel(), strict=True)
        drift = _array([_drift(p, float(a), r, order) for a, r in pairs], norms.shape)
    return Truncation(
        _balls(norms), table, _array(moments, norms.shape), _array([x.abs_upper() for x in tails], norms.shape), drift
    )


@lru_cache(maxsize=256)
def _enclosure(p: Profile, degree: int, norm: float) -> CertifiedSet:
    return hermite(p, degree, norm, certified=True)


def _of_slope(x: CertifiedSet) -> tuple[Sequence[arb], arb, arb]:
    """chat_j of s' is sqrt(j + 1) chat_(j+1) / norm."""
    assert x.slope_moment is not None and x.slope_tail is not None
    a = arb(x.norm)
    return [arb(j).sqrt() * x[j] / a for j in range(1, len(x))], x.slope_moment / a**2, x.slope_tail / a**2


OF_ORDER: tuple[Callable[[CertifiedSet], tuple[Sequence[arb], arb, arb]], ...] = (
    lambda x: (x.coefficients, x.second_moment, x.tail),
    _of_slope,
)


def _drift(p: Profile, norm: float, radius: arb, order: int) -> arb:
    """Upper bound of ||f(x Z) - f(norm Z)|| over |x - norm| <= radius, f = s^(order) with jumps h_i at t_i.

    The rest of f moves by at most radius sup ||Z f'(x Z)|| = radius sup ||g||_x/x, g(t) = t f'(t), and
    ||g||_x^2 <= (high/x) ||g||_high^2; a jump by |h_i| P(t_i/Z between the two)^(1/2), the density of Z at most 0.4.
    """
    low, high = arb(norm) - radius, float(_up((arb(norm) + radius) * _balls(1)))
    moved = tuple(t * derivative(piece, order + 1) for piece in p.parts.pieces)
    total = arb(0)
    if radius > 0 and any(g != 0 for g in moved):
        square = enclose(replace(p.parts, pieces=moved), 0, high, digits=10).second_moment
        total = radius / low * (arb(high) / low * square).sqrt()
    for b, (left, right) in zip(p.parts.breaks, pairwise(p.parts.pieces), strict=True):
        at = b.ball()
        jump = abs(program(right, order)(at, BALLS) - program(left, order)(at, BALLS))
        total += jump * (arb("0.4") * abs(at) * radius / (low * low)).sqrt()
    return total.upper()


# ---- the formulas ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """A bound, and where it comes from.

    name          of its formula
    of            what the error is of: "k", "kdot", "nngp" or "ntk"
    approximant   "truncation" (coefficients for every norm) or "fixed polynomial" (one for all norms)
    value         bounds |error|: float64, of the shape that norms and cosines broadcast to
    relative      the same over sqrt(k11 k22), sqrt(kdot11 kdot22), or the diagonal of the network's kernel
    proved        whether the formula is proved at this degree
    certified     computed in balls and rounded up; otherwise in float64
    """

    name: str
    of: str
    approximant: str
    value: np.ndarray
    relative: np.ndarray
    proved: bool
    certified: bool
    formula: str
    source: str

    def __str__(self) -> str:
        standing = ("certified" if self.certified else "proved") if self.proved else "not proved"
        size, share = np.max(self.value), np.max(self.relative)
        return (
            f"{self.name}, {self.of}, {self.approximant}: {size:.3e} (relative {share:.3e}), {standing}: {self.formula}"
        )


class Case(NamedTuple):
    """What a formula may read.

    q, c, nu          degree, cosines, and the largest norm that the fixed polynomial is for
    x, y, dx, dy, z   truncations of s at a and b, of s' at a and b (None where s jumps), of s at nu
    eps, best         an upper bound of ||s - s~||^2 at nu, and whether s~ is the best polynomial there
    m, smooth         the order of a derivative, and E[s^(m)^2] at nu; None where s^(m) is not in L2, or m > q + 1
    relu              whether s is the ReLU
    """

    q: int
    c: np.ndarray
    nu: Any
    x: Truncation
    y: Truncation
    dx: Truncation | None
    dy: Truncation | None
    z: Truncation
    eps: Any
    best: bool
    m: int
    smooth: Any
    relu: bool

    @property
    def ab(self):
        return self.x.norms * self.y.norms


def _tails(x, y, c):
    return np.sqrt(x.tail * y.tail) * np.abs(c) ** (x.degree + 1)


def _parseval(case: Case):
    """sqrt(T_q(a) T_q(b)) |c|^(q+1), T_q(a) = E[s(aZ)^2] - sum_{j<=q} chat_j(a)^2

    Cauchy-Schwarz on the terms that are left out; equal to the error at a = b, c = 1.
    """
    return _tails(case.x, case.y, case.c)


def _parseval_slope(case: Case):
    """sqrt(D_q(a) D_q(b))/(ab) |c|^q, D_q(a) = a^2 E[s'(aZ)^2] - sum_{j<=q} j chat_j(a)^2

    The same for s', whose coefficients are sqrt(j+1) chat_(j+1)(a)/a.
    """
    return _tails(case.dx, case.dy, case.c)


def _triangle(case: Case):
    """(nu/sqrt(ab)) (2 ||s|| sqrt(eps) + eps), eps >= ||s - s~||^2, for any s~

    N(0, a^2) <= (nu/a) N(0, nu^2) as densities, then Cauchy-Schwarz and the triangle inequality.
    """
    return case.nu / np.sqrt(case.ab) * (2 * np.sqrt(case.z.moment * case.eps) + case.eps)


def _projection(case: Case):
    """2 (nu/sqrt(ab)) ||s|| sqrt(eps), eps = T_q(nu)

    The triangle form where s~ is the best polynomial at nu, so that ||s~|| <= ||s||.
    """
    return 2 * case.nu * np.sqrt(case.z.moment * case.eps / case.ab)


def _derivative(case: Case):
    """2 nu^(m+1) ||s|| ||s^(m)|| / sqrt(ab (q+1)!/(q+1-m)!), q >= m - 1

    The projection form with eps <= nu^(2m) ||s^(m)||^2 (q+1-m)!/(q+1)!.
    """
    below = case.ab * math.perm(case.q + 1, case.m)
    return 2 * case.nu ** (case.m + 1) * np.sqrt(case.z.moment * case.smooth / below)


def _paper_10(case: Case):
    """sqrt(nu^2 eps (6 ||s||^2 + 4 eps)/(ab)), eps >= ||s - s~||^2, for any s~

    Han et al. 2022, Theorem 1, (10). Follows from the triangle form: (2u + v)^2 <= 6 u^2 + 4 v^2.
    """
    return np.sqrt(case.nu**2 * case.eps * (6 * case.z.moment + 4 * case.eps) / case.ab)


def _paper_11(case: Case):
    """5 nu^(m+1) ||s^(m)|| max(||s||, nu^m ||s^(m)||) / sqrt(ab m q^(m-1)), m >= 2, q >= m - 1

    Han et al. 2022, Theorem 2, (11), with the root over the whole denominator: the rate 1/sqrt(m q^(m-1)) that the text
    names right after it. With the root over the norms alone it is false: s = h_5/sqrt(120), nu = 1, q = 4, m = 5,
    a = b = c = 1 has the error 1 and would have the bound 5 * 120/(5 * 4^4) = 0.469. As it is read here it follows from
    the derivative form where 25 (q+1)!/(q+1-m)! >= 4 m q^(m-1): at every q for m <= 4, from some q on for m >= 5.
    """
    larger = _larger(np.sqrt(case.z.moment), case.nu**case.m * np.sqrt(case.smooth))
    below = case.ab * case.m * case.q ** (case.m - 1)
    return 5 * case.nu ** (case.m + 1) * np.sqrt(case.smooth) * larger / np.sqrt(below)


def _paper_11_follows(case: Case) -> bool:
    return 25 * math.perm(case.q + 1, case.m) >= 4 * case.m * case.q ** (case.m - 1)


def _paper_12(case: Case):
    """sqrt(2 nu^6/(q ab)), the ReLU

    Han et al. 2022, Theorem 2, (12). Follows from the projection form: T_q(1) <= E[s'^2]/(q+1) = 1/(2(q+1)).
    """
    return np.sqrt(2 * case.nu**6 / (case.q * case.ab))


def _always(case: Case) -> bool:
    return True


@dataclass(frozen=True)
class Formula:
    """A bound as a value: where it `applies`, `evaluate` maps a Case to an array.

    The first line of `evaluate`'s docstring is the formula, the rest says where it comes from.
    """

    name: str
    of: str
    approximant: str
    evaluate: Callable[[Case], Any]
    applies: Callable[[Case], bool] = _always
    proved: Callable[[Case], bool] = _always

    @property
    def text(self) -> tuple[str, str]:
        """The formula, its source."""
        first, _, rest = (inspect.getdoc(self.evaluate) or "").partition("\n")
        return first, " ".join(rest.split())


TRUNCATION, FIXED = "truncation", "fixed polynomial"

FORMULAS = (
    Formula("Parseval", "k", TRUNCATION, _parseval),
    Formula("Parseval", "kdot", TRUNCATION, _parseval_slope, lambda case: case.dx is not None),
    Formula("triangle", "k", FIXED, _triangle),
    Formula("projection", "k", FIXED, _projection, lambda case: case.best),
    Formula("derivative", "k", FIXED, _derivative, lambda case: case.best and case.smooth is not None),
    Formula("paper (10)", "k", FIXED, _paper_10),
    Formula(
        "paper (11)", "k", FIXED, _paper_11, lambda x: x.best and x.smooth is not None and x.m > 1, _paper_11_follows
    ),
    Formula("paper (12)", "k", FIXED, _paper_12, lambda case: case.best and case.relu and case.q >= 1),
)


def error_bounds(
    activation, degree: int, a, b=None, c=1.0, /, *, nu=None, eps=None, m: int = 2, certified=False, **parameters
) -> tuple[Bound, ...]:
    """Every bound of FORMULAS that applies to k_q, to kdot_q, or to the dual of a fixed polynomial of degree q.

    activation   text, catalog id, SymPy expression, Dual or Profile, with the values of its `parameters`
    a, b, c      norms (b = a unless given) and cosines: numbers or arrays that broadcast
    nu           of the fixed polynomial: at least 1 and every norm; the smallest such number unless given
    eps          for a fixed polynomial that is not the best one (a Taylor polynomial): >= ||s - s~||^2 at nu
    m            the derivative that measures smoothness; its bounds are left out where s^(m) is not in L2
    certified    only what is proved, in balls that are rounded up, for the floats a, b, c and nu as they are. In
                 float64, tails are raised by 2e-15 E[s^2], which covers their rounding: there they end
    ValueError where the activation is not square-integrable at a norm.
    """
    p, degree, m = profile(activation, **parameters), _count(degree, "degree"), _count(m, "m")
    a, b, c, shape = _inputs(a, b, c)
    most = max(1.0, a.max(), b.max())
    if not (nu is None or most <= nu < math.inf):
        raise ValueError(f"nu = {nu!r}; expected at least 1 and every norm, so at least {most:g}")
    number = _balls if certified else np.asarray
    z = np.array([most if nu is None else nu], dtype=float)
    with _arithmetic(certified):
        (x, dx), (y, dy) = (_layer(p, degree, v, not p.jumps, certified) for v in (a, b))
        at_nu = _layer(p, degree, z, False, certified).s
        left_out = at_nu.tail if eps is None else number([eps])
        smooth = _derivative_moment(p, m, z, certified) if 1 <= m <= degree + 1 else None
        relu = p.breaks == (0.0,) and p.parts.pieces == (0, t)
        case = Case(degree, number(c), number(z), x, y, dx, dy, at_nu, left_out, eps is None, m, smooth, relu)
        found = [f for f in FORMULAS if f.applies(case) and (f.proved(case) or not certified)]
        scales = {"k": np.sqrt(x.moment * y.moment), "kdot": dx and dy and np.sqrt(dx.moment * dy.moment)}
        values = [_rounded(f.evaluate(case), scales[f.of], shape) for f in found]
    return tuple(
        Bound(f.name, f.of, f.approximant, value, relative, f.proved(case), certified, *f.text)
        for f, (value, relative) in zip(found, values, strict=True)
    )


def _shaped(v, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(v, np.broadcast_shapes(np.shape(v), shape)).reshape(shape)[()]


def _rounded(value, scale, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A bound, and the same over its scale, as float64."""
    return _shaped(_up(value), shape), _shaped(_up(value / scale), shape)


def _derivative_moment(p: Profile, m: int, norms: np.ndarray, certified: bool):
    """E[s^(m)(norm Z)^2], None where a lower derivative jumps."""
    if any(p.jumps_of(order) for order in range(m)):
        return None
    if not certified:
        return second_moment(p, norms.ravel(), m).reshape(norms.shape)
    if all(derivative(piece, m) == 0 for piece in p.parts.pieces):
        return _balls(np.zeros(norms.shape))
    return _array([hermite(p, 0, float(a), order=m, certified=True).second_moment for a in norms.ravel()], norms.shape)


def _count(n, name: str) -> int:
    if isinstance(n, bool) or n != int(n) or n < 0:
        raise ValueError(f"{name} = {n!r}; expected a whole number, 0 or more")
    return int(n)


def _inputs(a, b, c) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """Norms and cosines, at least one-dimensional, and the shape of the results."""
    a, b, c = (np.asarray(v, dtype=float) for v in (a, a if b is None else b, c))
    if not all((np.isfinite(v) & (v > 0)).all() and v.size for v in (a, b)):
        raise ValueError(f"the norms {a} and {b} came; expected positive finite numbers")
    if not (np.abs(c) <= 1).all():
        raise ValueError(f"c = {c}; expected cosines, from -1 to 1")
    return *map(np.atleast_1d, (a, b, c)), np.broadcast_shapes(a.shape, b.shape, c.shape)  # type: ignore[return-value]


# ---- through the layers ---------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """[activation, Dense(W_std, b_std)] * depth in NTK parameterisation, its diagonal exact."""

    p: Profile
    depth: int
    w: Any
    bias: Any
    ntk: bool
    certified: bool


class Path(NamedTuple):
    """The diagonal pass: the layers' truncations, the norms before each layer and after the last.

    loose   how far, relatively, the norms are from the numbers that they round (certified); 0 in float64
    """

    layers: tuple[Layer, ...]
    norms: tuple[np.ndarray, ...]
    loose: tuple[Any, ...]

    def cut(self, degree: int) -> Path:
        return self._replace(layers=tuple(layer.cut(degree) for layer in self.layers))


class Kernels(NamedTuple):
    """The two kernels of a network; `ntk` is None where it was not asked for."""

    nngp: Any
    ntk: Any


FORMULA_DEEP = Kernels(
    "e' = w (sum_{j<=q} |chat_j(a) chat_j(b)| phi_j + sqrt(T_q(a) T_q(b)) r^(q+1))",
    "E' = e' + w (M E + |Theta~| Y); Y is for kdot what e'/w is for k, and M bounds kdot",
)
SOURCE_DEEP = (
    "In every layer |k(c) - k_q(c~)| <= |k_q(c) - k_q(c~)| + |k(c) - k_q(c)|; phi_j is the most by which two j-th "
    "powers differ, of numbers of size at most r = min(1, |c~| + e/(ab)) that are at most e/(ab) apart."
)


def _network(activation, depth, W_std, b_std, get, certified: bool, parameters) -> tuple[Network, tuple[str, ...]]:
    names = (get,) if isinstance(get, str) else tuple(get)
    if not names or set(names) - set(BOTH):
        raise ValueError(f"get = {get!r}; expected 'nngp', 'ntk' or both")
    p, ntk = profile(activation, **parameters), "ntk" in names
    if ntk and p.jumps:
        raise ValueError(
            f"{p.activation} jumps at t = {', '.join(f'{x:g}' for x in p.jumps[:4])}: kdot is infinite on the diagonal "
            'and the NTK has no value; expected an activation without jumps, or get="nngp"'
        )
    number = arb if certified else float
    return Network(p, _count(depth, "depth"), number(W_std) ** 2, number(b_std) ** 2, ntk, certified), names


def _path(net: Network, degree: int, norms: np.ndarray) -> Path:
    exact = _balls if net.certified else np.asarray
    layers, path, loose, radius = [], [exact(norms)], [exact(0.0 * norms)], None
    for _ in range(net.depth):
        layers.append(_layer(net.p, degree, norms, net.ntk, net.certified, radius))
        s = layers[-1].s
        after = np.sqrt(net.w * _widened(np.sqrt(s.moment), s.drift) ** 2 + net.bias)
        norms = np.array([float(x) for x in after.ravel()]).reshape(after.shape)
        path.append(exact(norms))
        radius = _top(np.abs(after - path[-1])) if net.certified else None
        loose.append(_top(radius / path[-1]) if net.certified else 0.0 * norms)
    return Path(tuple(layers), tuple(path), tuple(loose))


def _powers(rho, eps) -> Iterator[tuple[Any, Any]]:
    """rho^n, and the most that |u^n - v^n| can be over |u|, |v| <= rho with |u - v| <= eps, for n = 0, 1, ...

    The increments of u^n are largest next to rho: rho^n - (rho - eps)^n, by a recurrence without subtraction. Beyond
    eps = rho, where u and v may differ in sign, it gives rho^(n-1) eps >= rho^n + (eps - rho)^n, eps <= 2 rho.
    """
    eps = _smaller(eps, 2 * rho)
    inner = _larger(rho - eps, 0 * rho)
    power, inner_power, change = 1 + 0 * rho, 1 + 0 * rho, 0 * rho
    while True:
        yield power, change
        change = rho * change + eps * inner_power
        power, inner_power = rho * power, inner * inner_power


def _compared(x: Truncation, y: Truncation, c, rho, eps) -> tuple[Any, Any, Any]:
    """k_q(c), a bound of |k(c') - k_q(c)| over |c'| <= rho, |c' - c| <= eps, and one of |k(c')|."""
    value, power = 0 * c, 1 + 0 * c
    error = largest = 0 * rho
    powers = _powers(rho, eps)
    for u, v in zip(x.coefficients, y.coefficients, strict=True):
        outer, change = next(powers)
        size = np.abs(u * v)
        value, error, largest = value + u * v * power, error + size * change, largest + size * outer
        power = power * c
    drift = x.drift * (np.sqrt(y.moment) + y.drift) + np.sqrt(x.moment) * y.drift
    rest = np.sqrt(x.tail * y.tail) * next(powers)[0] + drift
    return value, error + rest, largest + rest


def _pairs(net: Network, x: Path, y: Path, c) -> tuple[Kernels, Kernels]:
    """The truncated network's kernels of pairs, and bounds of their errors."""
    one = 1 + 0 * (x.norms[0] * y.norms[0] * c)
    q = theta = x.norms[0] * y.norms[0] * c
    e = error = 0 * one
    for i, (first, second) in enumerate(zip(x.layers, y.layers, strict=True)):
        ab = x.norms[i] * y.norms[i]
        if i:
            c = _larger(_smaller(q / ab, one), -one)
        eps = _top(e / ab + (1 + x.loose[i]) * (1 + y.loose[i]) - 1)
        rho = _top(_smaller(np.abs(c) + eps, one))
        k, miss, _ = _compared(first.s, second.s, c, rho, eps)
        q, e = net.w * k + net.bias, net.w * miss
        if first.slope and second.slope:
            kdot, miss, most = _compared(first.slope, second.slope, c, rho, eps)
            error = e + net.w * (most * error + np.abs(theta) * miss)
            theta = q + net.w * theta * kdot
    return (Kernels(q, theta), Kernels(e, error)) if net.ntk else (Kernels(q, None), Kernels(e, None))


def _rows(net: Network, x: Path) -> Kernels:
    """P of every row such that the error is at most sqrt(P_i P_j) for every pair of rows and every cosine.

    With rho = 1 and one eps for all pairs, every bound of `_compared` is a sum of products u(a) u(b), so at most the
    geometric mean of the same at (a, a) and at (b, b); and so, by Cauchy-Schwarz, is a sum of such bounds.
    """
    one = 1 + 0 * x.norms[0]
    eps, e, error, most_theta = 0 * one, 0 * one, 0 * one, x.norms[0] ** 2
    for layer, norms, loose in zip(x.layers, x.norms[1:], x.loose[1:], strict=True):
        s, slope = (f and replace(f, drift=_largest(f.drift / np.sqrt(f.moment)) * np.sqrt(f.moment)) for f in layer)
        assert s is not None
        e = net.w * _compared(s, s, one, one, eps)[1]
        if slope:
            _, miss, most = _compared(slope, slope, one, one, eps)
            error = e + net.w * (most * error + most_theta * miss)
            most_theta = ((1 + loose) * norms) ** 2 + net.w * most_theta * most
        eps = _largest(e / norms**2 + (1 + _largest(loose)) ** 2 - 1) * one
    return Kernels(e, error if net.ntk else None)


def _diagonal(net: Network, x: Path) -> Kernels:
    """The exact network's kernels of (x, x); balls enclose them."""
    squares = [_widened(n, n * r) ** 2 for n, r in zip(x.norms, x.loose, strict=True)]
    theta = squares[0]
    for layer, after in zip(x.layers, squares[1:], strict=True):
        if layer.slope:
            theta = after + net.w * theta * _widened(np.sqrt(layer.slope.moment), layer.slope.drift) ** 2
    return Kernels(squares[-1], theta if net.ntk else None)


def network_bounds(
    activation, degree, a, b=None, c=1.0, /, *, depth=1, W_std=1.0, b_std=0.0, get=BOTH, certified=False, **parameters
) -> tuple[Bound, ...]:
    """Bounds of the error of `truncated_network` against the exact network, for pairs of inputs.

    a, b, c     norms (b = a unless given) and cosines of what the first activation sees: numbers or arrays
    get         "nngp", "ntk" or both
    certified   in balls that are rounded up, for the exact network: the rounding of inner norms is accounted for

    At a = b, c = 1 the bounds are equal to the errors, at every depth. ValueError for the NTK of an activation that
    jumps, and where it is not square-integrable at a norm on the way.
    """
    net, names = _network(activation, depth, W_std, b_std, get, certified, parameters)
    degree = _count(degree, "degree")
    a, b, c, shape = _inputs(a, b, c)
    with _arithmetic(certified):
        x, y = _path(net, degree, a), _path(net, degree, b)
        errors = _pairs(net, x, y, _balls(c) if certified else c)[1]
        scales = (np.sqrt(u * v) for u, v in zip(_diagonal(net, x), _diagonal(net, y), strict=True) if u is not None)
        return _deep(net, names, errors, scales, shape)


def uniform_bounds(
    activation, degree: int, norms, /, *, depth=1, W_std=1.0, b_std=0.0, get=BOTH, certified=False, **parameters
) -> tuple[Bound, ...]:
    """The same for all pairs of rows and all cosines at once.

    norms   (n,); the values P are (n,) too. The error for rows i and j is at most sqrt(P_i P_j) at every cosine, its
            relative error at most the geometric mean of the two relative values.
    """
    net, names = _network(activation, depth, W_std, b_std, get, certified, parameters)
    norms, _, _, shape = _inputs(norms, None, 1.0)
    with _arithmetic(certified):
        x = _path(net, _count(degree, "degree"), norms)
        return _deep(net, names, _rows(net, x), _diagonal(net, x), shape)


def _deep(net: Network, names: tuple[str, ...], errors: Kernels, scales, shape: tuple[int, ...]) -> tuple[Bound, ...]:
    return tuple(
        Bound("composition", of, TRUNCATION, *_rounded(e, scale, shape), True, net.certified, formula, SOURCE_DEEP)
        for of, e, scale, formula in zip(BOTH, errors, scales, FORMULA_DEEP, strict=False)
        if of in names
    )


def degree_for(
    activation,
    tol,
    norms=1.0,
    depth=1,
    get="ntk",
    *,
    W_std=1.0,
    b_std=0.0,
    relative=True,
    certified=False,
    **parameters,
) -> int:
    """The smallest degree whose bounds are at most `tol` for every pair of these norms and every cosine.

    Bounded are the network's kernels that `get` names and, at depth 1 with the NTK, kdot on its own scale.

    norms      of what the first activation sees: a number or (n,); nothing is said about norms between them
    relative   tol is over sqrt(k11 k22), sqrt(kdot11 kdot22) and the network's diagonal; else absolute
    ValueError where no degree up to 2000 (certified: 500) keeps the tolerance.
    """
    net, names = _network(activation, depth, W_std, b_std, get, certified, parameters)
    norms = _inputs(norms, None, 1.0)[0].ravel()
    if not tol > 0:
        raise ValueError(f"tol = {tol!r}; expected a positive number")

    def worst(path: Path) -> float:
        found = [(e, d) for of, e, d in zip(BOTH, _rows(net, path), _diagonal(net, path), strict=True) if of in names]
        if (slope := path.layers[0].slope) and depth == 1:
            found.append((slope.tail, slope.moment))
        return max(float(_up(e / d if relative else e).max()) for e, d in found)

    size, reached, most = 16, math.inf, MAX_CERTIFIED if certified else MAX_DEGREE
    with _arithmetic(certified):
        while reached > tol:
            size, before = min(2 * size, most), reached
            reached = worst(path := _path(net, size, norms))
            rounded = 0.9 * before < reached < 1e-10
            if reached > tol and (size == most or rounded):
                raise ValueError(_unreached(net, tol, size, reached, rounded))
        return bisect_left(range(size), True, key=lambda q: worst(path.cut(q)) <= tol)


def _unreached(net: Network, tol: float, size: int, reached: float, rounded: bool) -> str:
    if rounded and net.certified:
        why = "the rounding of inner norms is accounted for and stays. Way out: a larger tol, or depth=1"
    elif rounded:
        why = "float64 tells no smaller tail from rounding. Way out: certified=True"
    elif net.p.breaks:
        why = "the series of what is not smooth converges slowly. Way out: a larger tol, or compile(..., tol=tol)"
    else:
        why = "the degree grows with the square of the norm. Way out: smaller norms, or a larger tol"
    return f"no degree keeps {net.p.activation} within tol = {tol:g}: the bound at {size} is {reached:.2e}; {why}"


# ---- the truncated kernels themselves -------------------------------------------------------------------------------


def truncated(activation, degree: int, q12, q11, q22, order: int = 0, **parameters) -> np.ndarray:
    """k_q (order 0) or kdot_q (order 1, its derivative in q12) in float64, broadcasting; the variances are positive."""
    p, degree = profile(activation, **parameters), _count(degree, "degree")
    q12, q11, q22 = (np.asarray(v, dtype=float) for v in (q12, q11, q22))
    root = np.sqrt(q11 * q22)
    a, b, c, shape = _inputs(np.sqrt(q11), np.sqrt(q22), np.clip(q12 / root, -1, 1))
    x, y = (_measured(p, degree - order, order, v) for v in (a, b))
    return _compared(x, y, c, np.abs(c), 0 * c)[0].reshape(shape)[()]


def truncated_network(
    activation, degree: int, a, b=None, c=1.0, /, *, depth=1, W_std=1.0, b_std=0.0, get=BOTH, **parameters
) -> Kernels:
    """The kernels of the network whose k and kdot off the diagonal are truncated; arguments as of `network_bounds`."""
    net, _ = _network(activation, depth, W_std, b_std, get, False, parameters)
    a, b, c, shape = _inputs(a, b, c)
    x, y = (_path(net, _count(degree, "degree"), v) for v in (a, b))
    values = _pairs(net, x, y, c)[0]
    return Kernels(*(v if v is None else _shaped(v, shape) for v in values))


class Looseness(NamedTuple):
    """The Parseval bound over the true error, at one degree and cosine, over all pairs of norms."""

    degree: int
    cosine: float
    median: float
    maximum: float
    cases: int


def looseness(
    activation, degrees, cosines, norms, /, *, order: int = 0, truth: Callable | None = None, **parameters
) -> list[Looseness]:
    """How loose the Parseval bound of k (order 0) or kdot (order 1) is, by degree and cosine; NaN without a case.

    truth   k or kdot as a function of (q12, q11, q22), for where the series to degree 2000 does not settle the error to
            a thousandth (kinks, c near 1). Pairs are left out whose error neither settles, and tails near rounding
    """
    p, rows = profile(activation, **parameters), []
    every = _measured(p, MAX_DEGREE - order, order, np.ravel(_inputs(norms, None, 1.0)[0]))
    scale, far = (np.sqrt(np.outer(v, v)) for v in (every.moment, every.tail))
    products = every.coefficients[:, :, None] * every.coefficients[:, None, :]
    q11, q22 = np.meshgrid(every.norms**2, every.norms**2, indexing="ij")
    for c in map(float, cosines):
        terms, doubt = products * (c ** np.arange(len(products)))[:, None, None], far * abs(c) ** len(products)
        exact = None if truth is None else truth(c * np.sqrt(q11 * q22), q11, q22)
        for degree in degrees:
            x = every.cut(degree - order)
            error = np.abs(terms[x.degree + 1 :].sum(axis=0))
            known = doubt <= 1e-3 * error
            if exact is not None:
                error = np.where(known, error, np.abs(exact - terms[: x.degree + 1].sum(axis=0)))
                known |= 1e-14 * scale <= 1e-3 * error
            known &= np.logical_and.outer(*[x.tail > 100 * FLOOR * x.moment] * 2)
            ratio = np.sqrt(np.outer(x.tail, x.tail))[known] * abs(c) ** (x.degree + 1) / error[known]
            middle, most = (np.median(ratio), ratio.max()) if ratio.size else (math.nan, math.nan)
            rows.append(Looseness(int(degree), c, float(middle), float(most), int(ratio.size)))
    return rows
