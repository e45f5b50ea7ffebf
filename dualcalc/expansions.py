"""Hermite and Taylor coefficients of any activation: float64, certified, symbolic.

`chat_j(a) = E[s(a Z) h_j(Z)]/sqrt(j!)`, Z standard normal, h_j the probabilists' polynomials (orthonormal: a plain
`c_j j!` overflows beyond j = 170). Then `k(a, b, c) = sum_j chat_j(a) chat_j(b) c^j` for any square-integrable s and
any norms a, b: error bounds, approximations and features all start from these numbers. The paper's Theorem 1 (Taylor
polynomials) and Theorem 2 (one polynomial for all norms) stand beside it for comparison. `bounds.py`,
`approximate.py`, sketches and the command line are the callers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import flint
import numpy as np
import sympy as sp
from flint import arb, arb_series
from numpy.polynomial import hermite_e

from .atoms import Block, NoClosedForm
from .balls import precision
from .certified import CertifiedSet, enclose
from .dual import Dual, derive, formula
from .parsing import q11, t
from .pieces import BALLS, Erfc, Expm1, Sigmoid, Softplus, constant, program
from .quadrature import Profile, check_order, check_rate, choose, profile, singularities

__all__ = ["CertifiedSet", "Profile", "profile", "hermite", "second_moment", "taylor", "growth", "taylor_r"]
__all__ += ["fixed_polynomial", "convert"]

MAX_DEGREE = 2000
MAX_SYMBOLIC = 64  # as the closed class has it for polynomials
DEGREE, SYMBOLIC_DEGREE = 100, 20  # where none is given
NORM = sp.Symbol("norm", positive=True)


# ---- Hermite --------------------------------------------------------------------------------------------------------


def hermite(
    activation, degree: int | None = None, norm=1.0, *, order: int = 0, certified=False, symbolic=False, **parameters
):
    """The orthonormal Hermite coefficients `chat_j(norm) = E[s^(order)(norm Z) h_j(Z)]/sqrt(j!)`, j = 0..degree.

    activation   text, catalog id, SymPy expression, Dual or Profile; parameters not given take the catalog's defaults
    degree       up to 2000 (default 100); up to 64 where symbolic (default 20)
    norm         sqrt(q11), one or an array of n
    returns      float64 (degree + 1,), or (n, degree + 1); errors at most 2e-15 of sqrt(E[s(norm Z)^2])
    certified    a `CertifiedSet` of balls instead, to about 30 digits, for one norm
    symbolic     a list of SymPy expressions in the positive symbol `norm` instead (closed class only; parameters may
                 stay symbols; `norm` is not used; NoClosedForm elsewhere)
    ValueError where s^(order) is not square-integrable at a norm, or resolves too finely for float64.
    """
    if symbolic:
        degree = _degree(SYMBOLIC_DEGREE if degree is None else degree, MAX_SYMBOLIC)
        source = activation.activation if isinstance(activation, Profile) else activation
        return _symbolic(derive(source, **parameters), degree, order)
    degree = _degree(DEGREE if degree is None else degree, MAX_DEGREE)
    p = profile(activation, **parameters)
    norms, scalar = _norms(norm)
    if certified:
        if not scalar:
            raise ValueError(f"{len(norms)} norms came; certified coefficients are for one norm at a time")
        check_rate(p, norms[0])
        check_order(p, order)
        return enclose(p.parts, degree, float(norms[0]), order)
    coefficients = choose(p, degree, norms, order).coefficients(norms)
    return coefficients[0] if scalar else coefficients


def second_moment(activation, norm=1.0, order: int = 0, **parameters):
    """E[s^(order)(norm Z)^2] in float64: a float for one norm, an array (n,) for n norms."""
    norms, scalar = _norms(norm)
    moments = choose(profile(activation, **parameters), 0, norms, order).moments(norms)
    return float(moments[0]) if scalar else moments


def _degree(degree, most: int) -> int:
    if isinstance(degree, bool) or not isinstance(degree, int | np.integer) or not 0 <= degree <= most:
        raise ValueError(f"degree = {degree!r}; expected an integer from 0 to {most}")
    return int(degree)


def _norms(norm) -> tuple[np.ndarray, bool]:
    norms = np.asarray(norm, dtype=float)
    if norms.ndim > 1 or norms.size == 0 or not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError(f"norm = {norm!r}; expected a positive finite number, or a one-dimensional array of them")
    return np.atleast_1d(norms), norms.ndim == 0


def _symbolic(dual: Dual, degree: int, order: int) -> list[sp.Expr]:
    """By parts j times: E[s(aZ) h_j(Z)] = a^j E[s^(j)(aZ)], where the j-th derivative may hold deltas."""
    if any(b.gate is not None and b.gate.kind == "delta" for b in dual.derivative(order)):
        raise ValueError(f"derivative {order} of {dual.activation} holds a delta: it is not square-integrable")
    factors = (NORM**j / sp.sqrt(sp.factorial(j)) for j in range(degree + 1))
    return [f * formula(dual.mean(order + j)).xreplace({q11: NORM**2}) for j, f in enumerate(factors)]


# ---- Taylor ---------------------------------------------------------------------------------------------------------


def _by_exp(f: Callable) -> Callable:
    return lambda x: f(x.exp())


# series know exp, log, trigonometric functions and erf; the rest is written by exp
SERIES = BALLS._replace(
    root=lambda x: x.sqrt(),
    real=lambda x, n: x ** constant(n),
    functions={
        **BALLS.functions,
        sp.log: lambda x: x.log(),
        sp.atan: lambda x: x.atan(),
        sp.sinh: _by_exp(lambda e: (e - 1 / e) / 2),
        sp.cosh: _by_exp(lambda e: (e + 1 / e) / 2),
        sp.tanh: _by_exp(lambda e: 1 - 2 / (e * e + 1)),
        Expm1: _by_exp(lambda e: e - 1),
        Sigmoid: _by_exp(lambda e: 1 - 1 / (e + 1)),
        Softplus: _by_exp(lambda e: (e + 1).log()),
        Erfc: lambda x: x.erfc(),
    },
)


def taylor(activation, degree: int = 20, **parameters) -> np.ndarray:
    """a_j of the power series sum a_j t^j at 0, j = 0..degree, float64 (rounded from balls).

    ValueError where the activation is not analytic at 0.
    """
    p, degree = profile(activation, **parameters), _degree(degree, MAX_DEGREE)
    return np.array([0.0 if a.contains(0) else float(a.mid()) for a in _series(p, degree)])


def _series(p: Profile, degree: int) -> list[arb]:
    if any(abs(b) < 1e-12 for b in p.breaks):
        raise ValueError(f"{p.activation} is not analytic at 0, so it has no Taylor series; use dc.hermite")
    before, flint.ctx.cap = flint.ctx.cap, degree + 1
    try:
        with precision(128 + 8 * degree):
            middle = int(np.searchsorted(p.breaks, 0.0))
            series = program(p.parts.pieces[middle])(arb_series([0, 1], prec=degree + 1), SERIES)
            found = series.coeffs() if isinstance(series, arb_series) else [series]
    finally:
        flint.ctx.cap = before
    return [*found, *[arb(0)] * (degree + 1 - len(found))]


@dataclass(frozen=True)
class Growth:
    """How a power series at 0 grows, and where Theorem 1's series converges.

    radius       of convergence: distance of the nearest singularity or break
    order, type  `max_{|z| = r} |s(z)|` grows as exp(type r^order); inf where the radius is finite
    threshold    `taylor_r` converges in L2 for norms below it: 1/(2 sqrt(type)) at order 2; inf below, 0 above
    """

    radius: float
    order: float
    type: float
    threshold: float


def growth(activation, **parameters) -> Growth:
    """Radius, order and type of the power series at 0 (an upper bound of them outside the closed class)."""
    p = profile(activation, **parameters)
    around_zero = p.parts.pieces[int(np.searchsorted(p.breaks, 0.0))]
    ends = [*np.abs(p.breaks), *np.abs(singularities(around_zero, 12.0))]
    if ends:
        return Growth(float(min(ends)), math.inf, math.inf, 0.0)
    try:
        order, kind = max(map(_block_growth, Dual(p.activation).blocks), default=(0.0, 0.0))
    except NoClosedForm:
        order, kind = _growth(around_zero)
    threshold = math.inf if order < 2 else 0.5 / math.sqrt(kind) if order == 2 else 0.0
    return Growth(math.inf, order, kind, threshold)


def _block_growth(b: Block) -> tuple[float, float]:
    """Order and type of poly exp(alpha t^2 + beta t) gate; erf(kappa t) adds a term as exp(-kappa^2 t^2)."""
    rates = [b.alpha] if b.gate is None else [b.alpha, b.alpha - b.gate.kappa**2]
    square = max(abs(complex(r)) for r in rates)
    linear = abs(complex(b.beta))
    return (2.0, square) if square else (1.0, linear) if linear else (0.0, 0.0)


def _growth(e: sp.Expr) -> tuple[float, float]:
    """Order and type of an entire function, read off its formula; an upper bound where terms cancel."""
    if not e.has(t) or e == t:
        return 0.0, 0.0
    if e.is_Add:
        return max(map(_growth, e.args))
    if e.is_Mul:
        orders = [_growth(f) for f in e.args]
        top = max(order for order, _ in orders)
        return top, sum(kind for order, kind in orders if order == top)
    if e.is_Pow and e.exp.is_Integer and e.exp.is_positive:
        order, kind = _growth(e.base)
        return order, kind * float(e.exp)
    twice = ENTIRE.get(e.func)
    if twice is None or not e.args[0].is_polynomial(t):
        return math.inf, math.inf
    inner = sp.Poly(e.args[0], t)
    return float(twice * inner.degree()), float(abs(inner.LC())) ** twice


ENTIRE: Mapping[type, int] = {  # f(u) grows as exp(|u|^n)
    **dict.fromkeys((sp.exp, sp.sin, sp.cos, sp.sinh, sp.cosh, Expm1), 1),
    **dict.fromkeys((sp.erf, sp.erfc, Erfc), 2),
}


def taylor_r(activation, degree: int, norm: float, **parameters) -> np.ndarray:
    """Theorem 1: r_l(norm), l = 0..degree, of the Taylor polynomial of that degree; k ~ sum_l r_l(a) r_l(b) c^l.

    `r_l(x) = sum_i a_(l+2i) (l+2i)!/(2^i i! sqrt(l!)) x^(l+2i)`. ValueError outside the threshold, where the sums
    diverge as the degree grows; polynomials are exact at every norm.
    """
    p, degree = profile(activation, **parameters), _degree(degree, MAX_DEGREE)
    norms, scalar = _norms(norm)
    if not scalar:
        raise ValueError(f"{len(norms)} norms came; taylor_r is for one norm at a time")
    found = growth(p)
    if not norms[0] < found.threshold:
        why = f"order {found.order:g}, type {found.type:g}" if found.radius == math.inf else f"radius {found.radius:g}"
        where = f"for norms below {found.threshold:.12g} only" if found.threshold else "at no norm"
        raise ValueError(
            f"the Taylor series of {p.activation} ({why}) converges in L2 {where}, and {norms[0]:.12g} came. "
            "Way out: dc.hermite, which converges at every norm"
        )
    a = _series(p, degree)
    with precision(128 + 8 * degree):
        x, out = arb(float(norms[0])), []
        for low in range(degree + 1):
            factor, total = x**low * arb(low).fac().sqrt(), arb(0)  # (l+2i)!/(2^i i! sqrt(l!)) x^(l+2i) at i = 0
            for i, j in enumerate(range(low, degree + 1, 2)):
                total += a[j] * factor
                factor *= x * x * ((j + 1) * (j + 2)) / (2 * (i + 1))
            out.append(float(total.mid()))
    return np.array(out)


# ---- one polynomial for all norms -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FixedPolynomial:
    """Theorem 2's approximation `s~(t) = sum_j c_j h_j(t/nu)`, the best polynomial in L2(N(0, nu^2)).

    coefficients   c_j, unnormalised: c_j = E[s(nu Z) h_j(Z)]/j!
    orthonormal    chat_j(nu) = c_j sqrt(j!)
    """

    nu: float
    orthonormal: np.ndarray

    @property
    def coefficients(self) -> np.ndarray:
        return convert(self.orthonormal, "unnormalised")

    def __call__(self, x) -> np.ndarray:
        """s~(x), float64."""
        return hermite_e.hermeval(np.asarray(x, dtype=float) / self.nu, self.coefficients)

    def r(self, norm: float) -> np.ndarray:
        """r_l(norm) of Theorem 1, l = 0..degree: `k ~ sum_l r_l(a) r_l(b) c^l`.

        With rho = norm/nu, h_j(rho z) = sum_i j!/(2^i i! (j-2i)!) rho^(j-2i) (rho^2 - 1)^i h_(j-2i)(z). The sums
        diverge as the degree grows where norm > sqrt(2) nu or so: a fixed polynomial serves norms up to nu.
        """
        (norm,), _ = _norms(norm)
        rho, degree = norm / self.nu, len(self.orthonormal) - 1
        out = np.empty(degree + 1)
        for low in range(degree + 1):
            j = np.arange(low, degree + 1, 2)
            i = np.arange(len(j))
            steps = np.sqrt((j + 1.0) * (j + 2.0)) / (2 * (i + 1)) * (rho * rho - 1)
            factors = np.concatenate([[1.0], np.cumprod(steps[:-1])])
            out[low] = rho**low * (self.orthonormal[j] @ factors)
        return out


def fixed_polynomial(activation, degree: int, nu: float = 1.0, **parameters) -> FixedPolynomial:
    """Theorem 2: the polynomial of that degree which is best for the norm nu, and serves all norms in (0, nu]."""
    return FixedPolynomial(float(nu), hermite(activation, degree, float(nu), **parameters))


# ---- conventions ----------------------------------------------------------------------------------------------------


def _power_basis(c: np.ndarray, norm: float) -> np.ndarray:
    power = hermite_e.herme2poly(c)
    return np.pad(power, (0, len(c) - len(power))) / norm ** np.arange(len(c))


# from c_j = chat_j/sqrt(j!), with s(norm z) = sum_j c_j He_j(z), at the norm
CONVENTIONS: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "probabilists": lambda c, norm: c,
    "unnormalised": lambda c, norm: c,
    "physicists": lambda c, norm: c * 2.0 ** (-np.arange(len(c)) / 2),
    "power": _power_basis,
}


def convert(coefficients, to: str, norm: float = 1.0) -> np.ndarray:
    """Orthonormal coefficients chat_j(norm) (degree + 1,) in another convention.

    "probabilists"   c with s(norm z) = sum c_j He_j(z): numpy.polynomial.hermite_e.hermeval(z, c)
    "unnormalised"   the paper's c_j, the same numbers: s(x) = sum c_j h_j(x/norm), c_j = E[s(norm Z) h_j(Z)]/j!
    "physicists"     d with s(norm z) = sum d_j H_j(z/sqrt(2)): numpy.polynomial.hermite.hermval(z/sqrt(2), d)
    "power"          b with s(x) = sum b_j x^j: numpy.polynomial.polynomial.polyval(x, b); the only one that uses norm
    "orthonormal"    themselves
    """
    chat = np.asarray(coefficients, dtype=float)
    if chat.ndim != 1 or not chat.size:
        raise ValueError(f"coefficients of shape {chat.shape} came; expected chat_0..chat_degree, (degree + 1,)")
    if to == "orthonormal":
        return chat.copy()
    if to not in CONVENTIONS:
        raise ValueError(f"to = {to!r}; expected one of orthonormal, {', '.join(CONVENTIONS)}")
    (a,), _ = _norms(norm)
    roots = np.cumprod(np.concatenate([[1.0], 1 / np.sqrt(np.arange(1.0, len(chat)))]))  # 1/sqrt(j!)
    return CONVENTIONS[to](chat * roots, float(a))
