"""From terms to code that stands alone: printers over shared tables, stability rewrites as values, `emit`, `compile`.

The bridge between the symbolic half and the numeric one. A generated module imports nothing but its target; it carries
the source of the runtime primitives that it uses, the members K_mn of Price's family, and `k` and `kdot` on top.
Numerics (MATH.md section 3): Delta by an error-free product, guarded quotients where a norm or Delta can vanish,
`exp(..) Phi(..)` and `exp(..) Phi2(..)` in log space, sinh for paired exponentials, and kdot integrated where the
closed form of k cancels at small norms.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import sympy as sp

from . import runtime
from .atoms import NoClosedForm
from .dual import Dual, derive
from .gaussian import Angle, Delta, ExpNdtr, ExpPhi2, Term, swap
from .parsing import q11, q12, q22, t

TARGETS = ("jax", "numpy", "numba", "torch", "latex")
VANISHING = (q11, q22, Delta)  # may be zero at admissible inputs: never divided by without a guard
SMALL = 1.0  # below this variance the closed form of a cancelling activation gives way to the integral of kdot


# ---- stability rewrites: values, each with its own test -------------------------------------------------------------


class Ratio(sp.Function):
    """x / y in the argument of a head: x/0 is infinite, 0/0 is 0."""

    nargs = 2


class Quotient(sp.Function):
    """x / y in a coefficient: anything over 0 is 0 (the head beside it, or the numerator, vanishes faster)."""

    nargs = 2


class ExpSinh(sp.Function):
    """exp(g - |x|) sinh(x)"""

    nargs = 2


class ExpCosh(sp.Function):
    """exp(g - |x|) cosh(x)"""

    nargs = 2


@dataclass(frozen=True)
class Rewrite:
    """A named rewriting of a list of terms, with the reason for it."""

    name: str
    why: str
    apply: Callable[[list[Term]], list[Term]]


def _pair_exponentials(terms: list[Term]) -> list[Term]:
    """c1 exp(S + x) + c2 exp(S - x) -> exp(S) ((c1 + c2) cosh x + (c1 - c2) sinh x), x odd in q12."""
    out, left = [], list(terms)
    while left:
        first = left.pop(0)
        partner = next((o for o in left if _mirrored(first, o)), None)
        if partner is None:
            out.append(first)
            continue
        left.remove(partner)
        e1, e2 = first.head.args[0], partner.head.args[0]
        x = sp.factor(sp.together((e1 - e2) / 2))
        top = sp.Max(e1, e2, evaluate=False)
        for c, head in ((first.coef + partner.coef, ExpCosh), (first.coef - partner.coef, ExpSinh)):
            c = sp.trigsimp(sp.factor_terms(sp.expand(c)))
            if c != 0:
                out.append(Term(c, first.rad, head(top, x)))
    return out


def _mirrored(a: Term, b: Term) -> bool:
    both = isinstance(a.head, sp.exp) and isinstance(b.head, sp.exp) and a.rad == b.rad
    return bool(both and a.head.args[0].has(q12) and sp.expand(a.head.args[0].subs(q12, -q12) - b.head.args[0]) == 0)


def _gap(e: sp.Expr) -> sp.Expr:
    """q11 + q22 -+ 2 q12 -> (q11 -+ q12) + (q22 -+ q12): exact by Sterbenz where q12 is close to both."""

    def one(add):
        c = {s: add.coeff(s) for s in (q11, q22, q12)}
        if c[q11] == c[q22] != 0 and c[q12] in (2 * c[q11], -2 * c[q11]):
            rest = sp.expand(add - c[q11] * q11 - c[q22] * q22 - c[q12] * q12)
            sign = sp.sign(c[q12] / c[q11])
            near = [sp.Add(q, sign * q12, evaluate=False) for q in (q11, q22)]
            grouped = sp.Mul(c[q11], sp.Add(*near, evaluate=False), evaluate=False)
            return grouped if rest == 0 else sp.Add(rest, grouped, evaluate=False)
        return add

    return e.replace(lambda x: x.is_Add, one)


def _gaps(terms: list[Term]) -> list[Term]:
    return [Term(x.coef, x.rad, x.head.func(*map(_gap, x.head.args)) if x.head.args else x.head) for x in terms]


def _horner(terms: list[Term]) -> list[Term]:
    """Polynomial factors of four terms or more in nested form."""

    def nest(add):
        return sp.horner(add) if add.is_polynomial() and len(add.args) > 3 and add.free_symbols <= {q11, q22} else add

    return [Term(x.coef.replace(lambda e: e.is_Add, nest), x.rad, x.head) for x in terms]


REWRITES = (
    Rewrite("pair exponentials", "sin at small norms: exp - exp loses every digit, sinh none", _pair_exponentials),
    Rewrite("gap", "exponents such as (q11 + q22 - 2 q12)/Delta near c = 1", _gaps),
    Rewrite("horner", "polynomials of high degree: expanded monomials cancel", _horner),
)


def _exchange(e: sp.Expr) -> sp.Expr:
    return e.xreplace({q11: q22, q22: q11})


# ---- the printer ----------------------------------------------------------------------------------------------------


def guard(e: sp.Expr, quotient=Quotient) -> sp.Expr:
    """Every division by something that can vanish, as a Quotient (in coefficients) or Ratio (in arguments)."""
    if not e.args or not e.has(*VANISHING):
        return e
    if isinstance(e, Angle):
        return Angle(*(guard(a, Ratio) for a in e.args))
    if isinstance(e, sp.Function | sp.Max):
        return e.func(*(guard(a, Ratio) for a in e.args), **({"evaluate": False} if isinstance(e, sp.Max) else {}))
    if e.is_Add:
        return sp.Add(*(guard(a, quotient) for a in e.args), evaluate=False)
    if e.is_Mul or e.is_Pow:
        over, under = [], []
        for f in sp.Mul.make_args(e):
            base, power = f.as_base_exp() if f.is_Pow else (f, sp.Integer(1))
            if base in VANISHING and power.is_negative:
                under.append(base ** (-power))
            elif f.is_Pow:
                over.append(sp.Pow(guard(base, quotient), power))
            else:
                over.append(guard(f, quotient))
        top = sp.Mul(*over, evaluate=False) if len(over) > 1 else (over or [sp.Integer(1)])[0]
        return quotient(top, sp.Mul(*under)) if under else top
    return e


# SymPy head -> how it reads in array code; one table for every target (xp is its array module)
CALLS = {
    sp.exp: "xp.exp({0})",
    sp.log: "xp.log({0})",
    sp.sin: "xp.sin({0})",
    sp.cos: "xp.cos({0})",
    sp.tan: "xp.tan({0})",
    sp.sinh: "xp.sinh({0})",
    sp.cosh: "xp.cosh({0})",
    sp.tanh: "xp.tanh({0})",
    sp.atan: "xp.arctan({0})",
    sp.asin: "angle({0}, root((1.0 - {0}) * (1.0 + {0})))",
    sp.acos: "(1.5707963267948966 - angle({0}, root((1.0 - {0}) * (1.0 + {0}))))",
    sp.erf: "erf({0})",
    sp.Abs: "xp.abs({0})",
    sp.sign: "xp.sign({0})",
    sp.Max: "xp.maximum({0}, {1})",
    Ratio: "ratio({0}, {1})",
    Quotient: "quotient({0}, {1})",
    Angle: "angle({0}, root({1}))",
    ExpNdtr: "exp_ndtr({0}, {1}, {2})",
    ExpSinh: "exp_sinh({0}, {1})",
    ExpCosh: "exp_cosh({0}, {1})",
}


def literal(c: sp.Expr) -> str:
    """A number as the shortest float text that is right to the last bit."""
    value = float(sp.N(c, 30))
    return repr(value)


def text(e: sp.Expr) -> str:
    """An expression as array code, numbers folded to one literal each."""
    if e.is_number:
        return literal(e)
    if e.is_Symbol:
        return e.name
    if e.is_Add:
        parts = []
        for a in e.args:
            s = text(a)
            parts.append(f" - {s[1:]}" if s.startswith("-") else f" + {s}")
        joined = "".join(parts)
        return f"({joined[3:]})" if joined.startswith(" + ") else f"(-{joined[3:]})"
    if e.is_Mul:
        return _product(e)
    if e.is_Pow:
        return _power(*e.args)
    return CALLS[e.func].format(*(_bare(text(a)) for a in e.args))


def _bare(s: str) -> str:
    """Without the outer parentheses, where they enclose everything."""
    if not (s.startswith("(") and s.endswith(")")):
        return s
    depth = 0
    for i, ch in enumerate(s):
        depth += (ch == "(") - (ch == ")")
        if depth == 0 and i < len(s) - 1:
            return s
    return s[1:-1]


def _product(e: sp.Expr) -> str:
    numbers = [f for f in e.args if f.is_number]
    number = sp.Mul(*numbers)
    over, under = [], []
    for f in e.args:
        if f.is_number:
            continue
        if f.is_Pow and f.args[1].is_number and f.args[1].is_negative:
            under.append(text(f.args[0] ** -f.args[1]))
        else:
            over.append(text(f))
    value = float(sp.N(number, 30))
    lead = "" if value == 1 and over else "-" if value == -1 and over else repr(value) + ("*" if over else "")
    body = lead + "*".join(over)
    if not under:
        return body
    return f"{body}/{under[0] if len(under) == 1 else '(' + '*'.join(under) + ')'}"


def _power(base: sp.Expr, n: sp.Expr) -> str:
    b = text(base)
    root = f"root({_bare(b)})" if base in VANISHING else f"xp.sqrt({_bare(b)})"
    if n.is_Integer and n > 0:
        return "*".join([b] * int(n)).join("()") if n <= 4 and base.is_Symbol else f"{b}**{n}"
    if n == sp.Rational(1, 2):
        return root
    if n.is_Rational and n.q == 2 and n > 0:
        return f"({root}*{_power(base, n - sp.Rational(1, 2))})"
    if n.is_number and n.is_negative:
        return f"1.0/{_power(base, -n) if n != -1 else b}"
    return f"{b}**{text(n)}"


def body(terms: list[Term]) -> tuple[list[str], str]:
    """Assignments and the returned expression of one member; its Phi2 calls are stacked into one."""
    for rewrite in REWRITES:
        terms = rewrite.apply(terms)
    parts = [x.coef / sp.sqrt(x.rad) * x.head if x.head != 1 else x.coef / sp.sqrt(x.rad) for x in terms]
    return statements(sp.Add(*(guard(p) for p in parts), evaluate=False) if parts else sp.Integer(0))


def statements(total: sp.Expr) -> tuple[list[str], str]:
    """Common subexpressions named, in dependency order, Phi2 calls between those that feed them and those they feed."""
    calls = sorted(total.atoms(ExpPhi2), key=sp.default_sort_key)
    names = sp.symbols(f"p0:{len(calls)}", real=True)
    total = total.xreplace(dict(zip(calls, names, strict=True)))
    shared, reduced = sp.cse([a for c in calls for a in c.args] + [total], symbols=sp.numbered_symbols("x"))
    after: set[sp.Symbol] = set(names)
    early, late = [], []
    for symbol, value in shared:
        depends = bool(value.free_symbols & after)
        after |= {symbol} if depends else set()
        (late if depends else early).append(f"{symbol} = {_bare(text(value))}")
    lines = early
    if calls:
        rows = [", ".join(_bare(text(a)) for a in reduced[10 * i : 10 * i + 10]) for i in range(len(calls))]
        left = ", ".join(n.name for n in names) + ("," if len(names) == 1 else "")
        lines = [*early, f"{left} = stacked_phi2(", *(f"    ({row})," for row in rows), ")"]
    return [*lines, *late], _bare(text(reduced[-1]))


# ---- members --------------------------------------------------------------------------------------------------------


def needs_integral(dual: Dual, order: int) -> bool:
    """Whether the blocks of s^(order) cancel at the origin, so that the closed form loses digits at small norms."""
    s = dual.derivative(order)
    if any(b.gate and b.gate.kind == "delta" for b in (*s, *dual.derivative(order + 1))):
        return False
    if all(b.gate is None and b.beta.is_imaginary for b in s):
        return len({b.beta**2 for b in s}) > 1  # one frequency: the sinh rewrite is exact
    return any(_cancel(s, x) for x in (1e-3, -1e-3))


def _cancel(s, x: float) -> bool:
    values = []
    for b in s:
        g = b.gate
        is_open = g is None or g.kind != "step" or ((x - _number(g.at)) * _number(g.kappa)).real > 0
        size: complex = sum(_number(c) * x**n for n, c in enumerate(b.poly)) * np.exp(_number(b.alpha) * x * x + _number(b.beta) * x)
        if g is not None and g.kind == "erf":
            size *= math.erf((_number(g.kappa) * x + _number(g.at)).real)
        elif g is not None and g.kind == "sign":
            size *= math.copysign(1.0, x)
        values += [size] if is_open else []
    return bool(values) and abs(sum(values)) < 0.05 * sum(map(abs, values))


def _number(e: sp.Expr) -> complex:
    """A constant as a complex number, its parameters at 1."""
    value = complex(e.subs(dict.fromkeys(e.free_symbols, sp.Integer(1))))
    return value if value.imag else complex(value.real)


# ---- emission -------------------------------------------------------------------------------------------------------

# The members behind k and kdot: itself, and by Price its derivatives in q12 and in q11 (that in q22 is the mirror).
PRICE = {(0, 0): ((1, 1), (2, 0)), (1, 1): ((2, 2), (3, 1))}
NODES, WEIGHTS = (0.5 * (x + s) for x, s in zip(np.polynomial.legendre.leggauss(16), (1.0, 0.0), strict=True))

GLUE = {
    "quotient": '''def quotient(x, y):
    """x / y where y is not zero, else 0."""
    safe = where(y == 0, 1.0, y)
    return where(y == 0, 0.0, x / safe)''',
    "stacked_phi2": {
        "jax": '''def stacked_phi2(*calls):
    """All bivariate normals of a member in one call: one body for the compiler."""
    like = [next(a for a in call if not isinstance(a, float)) for call in calls][0]
    rows = ([xp.broadcast_to(xp.asarray(a, like.dtype), like.shape) for a in row] for row in zip(*calls))
    out = exp_phi2(*(xp.stack(row) for row in rows))
    return tuple(out[i] for i in range(len(calls)))''',
        "numpy": '''def stacked_phi2(*calls):
    """The bivariate normals of a member."""
    like = next(a for a in calls[0] if not isinstance(a, float))
    return tuple(exp_phi2(*(a if not isinstance(a, float) else xp.full_like(like, a) for a in call)) for call in calls)''',
        "numba": "",
        "torch": '''def stacked_phi2(*calls):
    """The bivariate normals of a member."""
    like = next(a for a in calls[0] if not isinstance(a, float))
    return tuple(exp_phi2(*(a if not isinstance(a, float) else xp.full_like(like, a) for a in call)) for call in calls)''',
    },
}
