"""Activations as piecewise analytic functions, and programs that evaluate them on numbers of any kind.

An activation of any shape (Abs, Max, Min, sign, Heaviside, Piecewise included) is split into analytic pieces; each
piece becomes a `Program`, a list of steps that runs alike on NumPy arrays (float64 or complex), real and complex balls,
and power series. Why: what lies outside the closed class has no formula, only its values and where it is not smooth.
`certified.py` and `expansions.py` are the callers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import flint
import numpy as np
import sympy as sp
from flint import acb, arb

from .balls import exact, precision
from .parsing import is_positive, t

# ---- stable forms ---------------------------------------------------------------------------------------------------


class Softplus(sp.Function):
    """log(1 + exp(x)), which does not overflow."""

    nargs = 1

    def fdiff(self, argindex=1):
        return Sigmoid(self.args[0])


class Sigmoid(sp.Function):
    """1/(1 + exp(-x)), which does not overflow."""

    nargs = 1

    def fdiff(self, argindex=1):
        return Sigmoid(self.args[0]) * Sigmoid(-self.args[0])


class Expm1(sp.Function):
    """exp(x) - 1, accurate near zero."""

    nargs = 1

    def fdiff(self, argindex=1):
        return sp.exp(self.args[0])


class Erfc(sp.Function):
    """erfc(x), which SymPy does not turn into 2 - erfc(-x)."""

    nargs = 1

    def fdiff(self, argindex=1):
        return -2 * sp.exp(-(self.args[0] ** 2)) / sp.sqrt(sp.pi)


def _one_plus_exp(e: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """(c, u) with e = c (1 + exp(u)) and c > 0, where e has that form."""
    c, rest = e.as_coeff_Add() if e.is_Add else (sp.Integer(0), e)
    k, f = rest.as_independent(t, as_Add=False)
    if isinstance(f, sp.exp) and c.is_positive and k.is_positive:
        return c, f.args[0] + sp.log(k / c)
    return None


def exponent_form(e: sp.Expr) -> sp.Expr:
    """c**f(t) -> exp(f(t) log c)."""
    return sp.exp(e.exp * sp.log(e.base)) if e.is_Pow and e.exp.has(t) else e


def softplus_form(e: sp.Expr) -> sp.Expr:
    """log(c (1 + exp(u))) -> log c + Softplus(u)."""
    found = _one_plus_exp(e.args[0]) if isinstance(e, sp.log) else None
    return sp.log(found[0]) + Softplus(found[1]) if found else e


def sigmoid_form(e: sp.Expr) -> sp.Expr:
    """1/(c (1 + exp(u))) -> Sigmoid(-u)/c, and its powers."""
    if not (e.is_Pow and e.exp.is_negative):
        return e
    found = _one_plus_exp(e.base)
    return found[0] ** e.exp * Sigmoid(-found[1]) ** -e.exp if found else e


# c (1 + sign f(u)) without the cancellation where sign f is near -1, by (the class of f, sign)
COMPLEMENTS: Mapping[tuple[type, int], Callable[[sp.Expr], sp.Expr]] = {
    (sp.exp, -1): lambda u: -Expm1(u),
    (sp.erf, 1): lambda u: Erfc(-u),
    (sp.erf, -1): lambda u: Erfc(u),
    (sp.tanh, 1): lambda u: 2 * Sigmoid(2 * u),
    (sp.tanh, -1): lambda u: 2 * Sigmoid(-2 * u),
}


def complement_form(e: sp.Expr) -> sp.Expr:
    """exp(u) - 1 -> Expm1(u), 1 + erf(u) -> Erfc(-u), 1 + tanh(u) -> 2 Sigmoid(2 u), and their multiples."""
    if not e.is_Add:
        return e
    constant, rest = e.as_independent(t, as_Add=True)
    for term in sp.Add.make_args(rest):
        c, f = term.as_independent(t, as_Add=False)
        for sign in (1, -1):
            form = COMPLEMENTS.get((f.func, sign))
            if form and constant != 0 and sp.expand(constant - sign * c) == 0:
                return sp.Add(rest - term, constant * form(f.args[0]))
    return e


def slope_form(e: sp.Expr) -> sp.Expr:
    """c (1 - tanh(u)**2) -> 4 c Sigmoid(2 u) Sigmoid(-2 u)."""
    if not e.is_Add or len(e.args) != 2:
        return e
    constant, term = e.as_independent(t, as_Add=True)
    c, f = term.as_independent(t, as_Add=False)
    if f.is_Pow and f.exp == 2 and isinstance(f.base, sp.tanh) and constant != 0 and constant + c == 0:
        u = f.base.args[0]
        return 4 * constant * Sigmoid(2 * u) * Sigmoid(-2 * u)
    return e


STABLE = (exponent_form, softplus_form, sigmoid_form, complement_form, slope_form)


def stable(e: sp.Expr) -> sp.Expr:
    """The expression in forms that neither overflow nor cancel, by the rewrites of STABLE from the leaves up."""
    if e == t or not e.has(t):
        return e
    e = e.func(*map(stable, e.args))
    for rewrite in STABLE:
        e = rewrite(e)
    return e


# ---- programs -------------------------------------------------------------------------------------------------------


def _integer_power(x, n: int):
    out = None
    for bit in bin(n)[2:]:
        out = x if out is None else out * out * x if bit == "1" else out * out
    return out


def power(x, n: sp.Expr, root: Callable, real: Callable):
    """x**n, n a number: integers by squaring, halves by the square root."""
    if n.is_Integer:
        y = _integer_power(x, abs(int(n)))
    elif n.is_Rational and n.q == 2:
        y = _integer_power(root(x), abs(int(n.p)))
    else:
        return real(x, n)
    return y if n.is_positive else 1 / y


class Algebra(NamedTuple):
    """What the steps of a program mean: `number` of a constant expression, `root` and `real` powers, functions."""

    number: Callable[[sp.Expr], Any]
    root: Callable[[Any], Any]
    real: Callable[[Any, sp.Expr], Any]
    functions: Mapping[type, Callable[[Any], Any]]


class Program:
    """An expression in t as steps, functions of (x, values so far, algebra); equal subexpressions are one step."""

    def __init__(self, e: sp.Expr):
        self.steps: list[Callable[[Any, list, Algebra], Any]] = [lambda x, values, algebra: x]
        self._index: dict[sp.Expr, int] = {t: 0}
        self._place(e)

    def _place(self, e: sp.Expr) -> int:
        """The number of the step that computes e."""
        if e not in self._index:
            self.steps.append(self._step(e))
            self._index[e] = len(self.steps) - 1
        return self._index[e]

    def _step(self, e: sp.Expr) -> Callable:
        if not e.has(t):
            return lambda x, values, algebra: algebra.number(e)
        if (coefficients := _monomials(e)) is not None:
            places = [self._place(c) for c in coefficients]
            return lambda x, values, algebra: reduce(lambda y, c: y * x + c, [values[i] for i in places])
        if e.is_Add or e.is_Mul:
            operation, places = operator.add if e.is_Add else operator.mul, [self._place(a) for a in e.args]
            return lambda x, values, algebra: reduce(operation, [values[i] for i in places])
        if not (e.is_Pow or (e.func in KNOWN and len(e.args) == 1)):
            raise ValueError(f"the function {e.func.__name__} in {e} is not known; expected one of {_names()}")
        place = self._place(e.args[0])
        if e.is_Pow:
            return lambda x, values, algebra: power(values[place], e.exp, algebra.root, algebra.real)
        return lambda x, values, algebra: algebra.functions[e.func](values[place])

    def __call__(self, x, algebra: Algebra):
        values: list[Any] = []
        for step in self.steps:
            values.append(step(x, values, algebra))
        return values[-1]


def _monomials(e: sp.Expr) -> list[sp.Expr] | None:
    """The coefficients of a sum of monomials c t^n, the highest first, where e is one of degree 2 or more."""
    if not e.is_Add:
        return None
    found: dict[int, sp.Expr] = {}
    for term in e.args:
        c, f = term.as_independent(t, as_Add=False)
        base, n = (t, sp.Integer(0)) if f == 1 else f.as_base_exp()
        if base != t or not (n.is_Integer and n >= 0):
            return None
        found[int(n)] = found.get(int(n), sp.Integer(0)) + c
    top = max(found)
    return [found.get(n, sp.Integer(0)) for n in range(top, -1, -1)] if 2 <= top <= 3 * len(found) + 2 else None


@lru_cache(maxsize=4096)
def _float(e: sp.Expr) -> float:
    return float(sp.N(e, 30))


def _scipy(name: str) -> Callable:
    def function(x):
        from scipy import special  # loading it takes longer than all the rest

        return getattr(special, name)(x)

    return function


NUMPY = Algebra(
    _float,
    np.sqrt,
    lambda x, n: np.power(x, _float(n)),
    {
        **{f: getattr(np, f.__name__) for f in (sp.exp, sp.log, sp.sin, sp.cos, sp.tan, sp.sinh, sp.cosh, sp.tanh)},
        sp.atan: np.arctan,
        sp.erf: _scipy("erf"),
        **dict.fromkeys((sp.erfc, Erfc), _scipy("erfc")),
        Expm1: np.expm1,
        Sigmoid: lambda x: 1 / (1 + np.exp(-x)),  # exp may overflow: 1/inf is the right value
        Softplus: lambda x: np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))),
    },
)
COMPLEX = NUMPY._replace(functions={**NUMPY.functions, Softplus: lambda z: np.log(1 + np.exp(z))})
KNOWN = frozenset(NUMPY.functions)


def _names() -> str:
    return ", ".join(sorted(f.__name__ for f in KNOWN))


def _log(x):
    return x.log(analytic=True) if isinstance(x, acb) else x.log()


def _root(x):
    return x.sqrt(analytic=True) if isinstance(x, acb) else x.sqrt()


def _atan(x):
    if not isinstance(x, acb):
        return x.atan()
    turned = x * acb(0, 1)  # by logarithms, which see their cuts
    return (_log(1 + turned) - _log(1 - turned)) * acb(0, -0.5)


def _left(x) -> bool:
    return (x.real if isinstance(x, acb) else x).mid() < 0


def _sigmoid(x):
    e = x.exp() if _left(x) else (-x).exp()  # never large: in balls 1/(1 + large) would be lost
    return e / (1 + e) if _left(x) else 1 / (1 + e)


def _softplus(x):
    return _log(1 + x.exp()) if _left(x) else x + _log(1 + (-x).exp())


def _real_power(x, n):
    return x.pow(acb(constant(n)), analytic=True) if isinstance(x, acb) else x ** constant(n)


BALL_FUNCTIONS: Mapping[type, Callable] = {
    **{f: operator.methodcaller(f.__name__) for f in (sp.exp, sp.sin, sp.cos, sp.tan, sp.sinh, sp.cosh, sp.tanh)},
    **{f: operator.methodcaller(f.__name__.lower()) for f in (sp.erf, sp.erfc, Erfc)},
    sp.log: _log,
    sp.atan: _atan,
    Expm1: lambda x: x.expm1(),
    Sigmoid: _sigmoid,
    Softplus: _softplus,
}
CONSTANTS: Mapping[sp.Expr, Callable[[], arb]] = {sp.pi: arb.pi, sp.E: arb.const_e}


def constant(e: sp.Expr) -> arb:
    """A number's ball at the current precision."""
    return _constant(e, flint.ctx.prec)


@lru_cache(maxsize=4096)
def _constant(e: sp.Expr, bits: int) -> arb:
    if e.is_Rational:
        return exact(e)
    if e in CONSTANTS:
        return CONSTANTS[e]()
    if e.is_Add or e.is_Mul:
        return reduce(operator.add if e.is_Add else operator.mul, map(constant, e.args))
    if e.is_Pow:
        return power(constant(e.base), e.exp, _root, _real_power)
    if e.func in BALL_FUNCTIONS:
        return BALL_FUNCTIONS[e.func](constant(e.args[0]))
    if e.is_Float:
        return exact(sp.Rational(e))
    raise ValueError(f"the constant {e} is not known; expected a number made of rationals, pi, e and {_names()}")


BALLS = Algebra(constant, _root, _real_power, BALL_FUNCTIONS)


# ---- pieces ---------------------------------------------------------------------------------------------------------

WINDOW = 256.0  # switches that are neither linear nor polynomial are searched for |t| <= WINDOW
APART = 1e-9  # switches nearer than this are one
TINY = 1e-14  # intervals shorter than this are not halved again
SWITCHES = (sp.Abs, sp.sign, sp.Heaviside, sp.Max, sp.Min, sp.Piecewise)


@dataclass(frozen=True)
class Break:
    """A point where pieces meet: `value` where it is known in closed form, else the one zero of `gate` in [lo, hi].

    proved   whether there is exactly one zero in [lo, hi] and the gate changes sign there
    """

    at: float
    value: sp.Expr | None
    gate: sp.Expr | None = None
    lo: float = 0.0
    hi: float = 0.0
    proved: bool = True

    def is_zero_of(self, other: Break) -> bool:
        """Whether this is certainly where the other break lies, or the other's gate vanishes."""
        if self.value is None or (other.value is None and other.gate is None):
            return self.gate is not None and self.gate == other.gate
        gate = other.gate if other.value is None else t - other.value
        assert gate is not None
        return sp.expand(gate.xreplace({t: self.value})) == 0

    def ball(self) -> arb:
        """The point at the current precision, by interval Newton steps."""
        if self.value is not None:
            return constant(self.value)
        assert self.gate is not None
        f, slope, x = program(self.gate), program(self.gate, 1), arb(self.lo).union(arb(self.hi))
        for _ in range(flint.ctx.prec.bit_length() + 60):
            middle = x.mid()
            step = middle - f(middle, BALLS) / slope(x, BALLS)
            if not step.overlaps(x):
                break
            x, before = x.intersection(step), x
            if not x.rad() < 0.9 * before.rad():
                break
        return x


@dataclass(frozen=True)
class Pieces:
    """pieces[i], analytic, between breaks[i-1] and breaks[i].

    reach    the breaks are known for |t| <= reach
    proved   whether it is certain that there are no others
    """

    breaks: tuple[Break, ...]
    pieces: tuple[sp.Expr, ...]
    reach: float
    proved: bool

    def jumps(self, order: int) -> tuple[float, ...]:
        """The breaks where the order-th derivative jumps, or has no limit."""
        found = []
        with precision(256):
            for b, (left, right) in zip(self.breaks, pairwise(self.pieces), strict=True):
                gap = program(right, order)(b.ball(), BALLS) - program(left, order)(b.ball(), BALLS)
                if not (gap.contains(0) and gap.rad() < 1e-30):
                    found.append(b.at)
        return tuple(found)


@lru_cache(maxsize=1024)
def derivative(piece: sp.Expr, order: int) -> sp.Expr:
    """The order-th derivative of a piece, in stable form."""
    return stable(piece) if order == 0 else stable(sp.diff(derivative(piece, order - 1), t))


@lru_cache(maxsize=1024)
def program(piece: sp.Expr, order: int = 0) -> Program:
    return Program(derivative(piece, order))


@lru_cache(maxsize=256)
def split(e: sp.Expr) -> Pieces:
    """The activation as analytic pieces. ValueError where a function is not known or a switch cannot be resolved."""
    splitter = _Splitter()
    with precision(192):
        splitter.split(e, None, None)
    (_, first), *rest = splitter.found
    breaks, pieces = [], [first]
    for left, piece in rest:
        assert left is not None
        if piece != pieces[-1]:
            breaks.append(left)
            pieces.append(piece)
    for piece in pieces:
        program(piece)  # unknown functions are refused here
    return Pieces(tuple(breaks), tuple(pieces), splitter.reach, splitter.proved)


class _Splitter:
    """Resolves the switches of an expression, the innermost first, and keeps what it could not see."""

    def __init__(self):
        self.found: list[tuple[Break | None, sp.Expr]] = []  # left end and piece, from left to right
        self.reach = math.inf
        self.proved = True

    def split(self, e: sp.Expr, left: Break | None, right: Break | None) -> None:
        switches = [s for s in e.atoms(*SWITCHES) if not any(a.has(*SWITCHES) for a in s.args)]
        if not switches:
            self.found.append((left, e))
            return
        inner: list[Break] = []
        for gate in dict.fromkeys(g for s in switches for g in _gates(s)):
            for b in self.sign_changes(gate, left, right):
                near = [x for x in inner if abs(b.at - x.at) <= APART * (1 + abs(b.at))]
                self.proved = self.proved and all(b.is_zero_of(x) or x.is_zero_of(b) for x in near)
                inner += [] if near else [b]
        for start, end in pairwise([left, *sorted(inner, key=lambda b: b.at), right]):
            inside = arb(_between(start.at if start else -math.inf, end.at if end else math.inf))
            self.split(e.xreplace({s: _resolved(s, inside) for s in switches}), start, end)

    def sign_changes(self, gate: sp.Expr, left: Break | None, right: Break | None) -> list[Break]:
        """Where the gate changes its sign inside (left, right), less a little at the ends, where breaks are known."""
        if gate.is_polynomial(t) and all(c.is_Rational for c in sp.Poly(gate, t).all_coeffs()):
            factors = [f.as_expr() for f, m in sp.Poly(gate, t).factor_list()[1] if m % 2]
        else:
            powers = [f.as_base_exp() for f in sp.Mul.make_args(gate) if f.has(t)]
            factors = [b if n.is_Integer else b**n for b, n in powers if not (n.is_Integer and n % 2 == 0)]
        lo = left.at + APART * (1 + abs(left.at)) if left else -math.inf
        hi = right.at - APART * (1 + abs(right.at)) if right else math.inf
        for f in factors:  # what is skipped at the ends holds no other zero
            for end in filter(None, (left, right)):
                nearby = program(f)(arb(end.at, 2 * APART * (1 + abs(end.at))), BALLS)
                self.proved = self.proved and (end.is_zero_of(Break(end.at, None, f)) or not nearby.contains(0))
        return [b for f in factors for b in self.zeros(f, lo, hi) if lo < b.at < hi]

    def zeros(self, f: sp.Expr, lo: float, hi: float) -> list[Break]:
        window = WINDOW
        if f.is_polynomial(t):
            coefficients = sp.Poly(f, t).all_coeffs()
            if len(coefficients) == 2:
                root = sp.expand(-coefficients[1] / coefficients[0])
                return [Break(float(constant(root)), root)]
            sizes = [abs(constant(c)) for c in coefficients]
            window = 1.5 + max(float((s / sizes[0]).upper()) for s in sizes)  # Cauchy: all zeros are inside
        a, b = max(lo, -window - 0.10987), min(hi, window + 0.1234)
        found = self.isolate(f, a, b) if a < b else []
        if not f.is_polynomial(t) and (lo < a or hi > b):
            slope = sp.diff(f, t)
            alone = found and (is_positive(slope) or is_positive(-slope))  # monotone: it has no other zero
            self.reach = self.reach if alone else min(self.reach, window)
        return found

    def isolate(self, f: sp.Expr, lo: float, hi: float) -> list[Break]:
        """The sign changes of f in [lo, hi], each in an interval of its own; by bisection in balls."""
        values, slopes, found, todo = program(f), program(f, 1), [], [(lo, hi)]
        while todo:
            a, b = todo.pop()
            box = arb(a).union(arb(b))
            value = values(box, BALLS)
            if value.is_finite() and not value.contains(0):
                continue
            slope = slopes(box, BALLS)
            alone = slope.is_finite() and not slope.contains(0)
            if alone or b - a < APART:
                sides = _sign(f, arb(a)) * _sign(f, arb(b))
                if sides < 0:
                    found.append(_polished(Break((a + b) / 2, None, f, a, b, alone)))
                self.proved = self.proved and alone and b - a > TINY
                if sides != 0 or not alone or b - a <= TINY:
                    continue
            middle = a + 0.4987654 * (b - a)
            todo += [(middle, b), (a, middle)]
        return found


def _polished(b: Break) -> Break:
    return replace(b, at=float(b.ball().mid())) if b.proved else b


def _between(lo: float, hi: float) -> float:
    """A point inside, on no round number."""
    if math.isinf(lo) and math.isinf(hi):
        return 0.1234567
    if math.isinf(lo) or math.isinf(hi):
        return hi - 1.234567 if math.isinf(lo) else lo + 1.234567
    return lo + 0.512345 * (hi - lo)


def _gates(switch: sp.Expr) -> list[sp.Expr]:
    """The expressions whose sign decides the switch."""
    if isinstance(switch, sp.Max | sp.Min):
        gates = [a - b for a, b in combinations(switch.args, 2)]
    elif isinstance(switch, sp.Piecewise):
        gates = [r.lhs - r.rhs for _, c in switch.args for r in c.atoms(sp.core.relational.Relational)]
    else:
        gates = [switch.args[0]]
    return [g for g in gates if g.has(t)]


def _sign(e: sp.Expr, x: arb) -> int:
    """The sign of e at x, 0 where it cannot be told from zero."""
    value = program(e)(x, BALLS)
    return 1 if value > 0 else -1 if value < 0 else 0


def _holds(condition, x: arb) -> bool:
    if condition in (sp.true, sp.false):
        return bool(condition)
    if isinstance(condition, sp.And | sp.Or):
        return (all if isinstance(condition, sp.And) else any)(_holds(c, x) for c in condition.args)
    if isinstance(condition, sp.Not):
        return not _holds(condition.args[0], x)
    greater = isinstance(condition, sp.StrictGreaterThan | sp.GreaterThan)
    if not greater and not isinstance(condition, sp.StrictLessThan | sp.LessThan):
        raise ValueError(f"the condition {condition} came; expected comparisons with < <= > >=")
    return _sign(condition.lhs - condition.rhs, x) == (1 if greater else -1)


def _resolved(switch: sp.Expr, x: arb) -> sp.Expr:
    """The smooth expression that the switch is on the piece around x."""
    if isinstance(switch, sp.Piecewise):
        for value, condition in switch.args:
            if _holds(condition, x):
                return value
        raise ValueError(f"{switch} has no value at t = {float(x.mid())}; expected a last branch (..., True)")
    if isinstance(switch, sp.Max | sp.Min):
        wanted = 1 if isinstance(switch, sp.Max) else -1
        return reduce(lambda a, b: a if _sign(a - b, x) == wanted else b, switch.args)
    sign = _sign(switch.args[0], x)
    if isinstance(switch, sp.Heaviside):
        return sp.Rational(1 + sign, 2)
    return sign * switch.args[0] if isinstance(switch, sp.Abs) else sp.Integer(sign)
