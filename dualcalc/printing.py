"""From SymPy to array code: printers over one table of heads, and the stability rewrites as values.

`body` turns the terms of a member into assignments and a returned expression for any target: it applies the rewrites,
guards every division by something that can vanish, and names common subexpressions. `codegen.py` is the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import sympy as sp

from .gaussian import Angle, Argument, ExpNdtr, ExpPhi2, Term, harmonics
from .parsing import q11, q12, q22
from .rational import Delta

VANISHING = (q11, q22, Delta)  # may be zero at admissible inputs: never divided by without a guard


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


class Together(sp.Function):
    """A sum that is computed before it is multiplied."""

    nargs = 1


class Larger(sp.Function):
    """The larger of two exponents, Larger(e1, e2, x) with x = (e1 - e2)/2."""

    nargs = 3


@dataclass(frozen=True)
class Rewrite:
    """A named rewriting of a list of terms, with the reason for it."""

    name: str
    why: str
    apply: Callable[[list[Term]], list[Term]]


def _pair_exponentials(terms: list[Term]) -> list[Term]:
    """c1 exp(S + x) + c2 exp(S - x) -> exp(S) ((c1 + c2) cosh x + (c1 - c2) sinh x), x odd in q12.

    Where x grows with the norms (no tilt, so no radical) and c1, c2 depend on them, the two are left apart: far from
    the origin one of c1, c2 may be much the smaller (t*cos(t): (q11 - q12)(q22 - q12) beside their sums)."""
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
        top = Larger(e1, e2, x)
        for c, head in ((first.coef + partner.coef, ExpCosh), (first.coef - partner.coef, ExpSinh)):
            c = harmonics(c) if c.has(sp.cos, sp.sin) else sp.expand(c)
            if c != 0:
                out.append(Term(c, first.rad, head(top, x)))
    return out


def _mirrored(a: Term, b: Term) -> bool:
    if not (isinstance(a.head, sp.exp) and isinstance(b.head, sp.exp) and a.rad == b.rad and a.head.has(q12)):
        return False
    mirrored = sp.expand(a.head.args[0].subs(q12, -q12) - b.head.args[0]) == 0
    return mirrored and (a.rad != 1 or not (a.coef / b.coef).has(q11, q12, q22, Delta))


def _gap(e: sp.Expr) -> sp.Expr:
    """c q11 + c q22 -+ 2c q12 -> c ((q11 -+ q12) + (q22 -+ q12)), and c q12 - c q11 -> c (q12 - q11).

    The differences are exact by Sterbenz where the q's are close; multiplied out they are not."""

    def one(add):
        c = {s: add.coeff(s) for s in (q11, q22, q12)}
        if c[q11] == c[q22] != 0 and c[q12] in (2 * c[q11], -2 * c[q11]):
            rest = sp.expand(add - c[q11] * q11 - c[q22] * q22 - c[q12] * q12)
            sign = c[q12] / c[q11] / 2
            return rest + c[q11] * (Together(q11 + sign * q12) + Together(q22 + sign * q12))
        numbers = {abs(x.as_coeff_Mul()[0]) for x in add.args}
        if len(numbers) == 1 and (number := numbers.pop()) != 1:
            return number * Together(sp.Add(*(x / number for x in add.args)))
        return add

    return e.replace(lambda x: x.is_Add, one)


def _gaps(terms: list[Term]) -> list[Term]:
    return [replace(x, head=x.head.func(*map(_gap, x.head.args))) if x.head.args else x for x in terms]


REWRITES = (
    Rewrite("pair exponentials", "sin at small norms: exp - exp loses every digit, sinh none", _pair_exponentials),
    Rewrite("gap", "exponents such as (q11 + q22 - 2 q12)/Delta near c = 1", _gaps),
)


# ---- the printer ----------------------------------------------------------------------------------------------------


def guard(e: sp.Expr, quotient=Quotient) -> sp.Expr:
    """Every division by something that can vanish, as a Quotient (in coefficients) or Ratio (in arguments)."""
    if e.is_number:
        return e if e.is_Rational else sp.N(e, 20)
    if not e.args:
        return e
    if isinstance(e, sp.Function):
        return e.func(*(guard(a, Ratio) for a in e.args))
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
        numbers = sp.Mul(*(f for f in over if f.is_number))
        over = [f for f in over if not f.is_number]
        if numbers != 1 or not over:
            over.insert(0, numbers if numbers.is_Rational else sp.N(numbers, 20))
        top = sp.Mul(*over, evaluate=False) if len(over) > 1 else over[0]
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
    Larger: "where({2} < 0, {1}, {0})",
    Together: "({0})",
    Ratio: "ratio({0}, {1})",
    Quotient: "quotient({0}, {1})",
    Angle: "angle({0}, root({1}))",
    Argument: "xp.arctan2({0}, {1})",
    ExpNdtr: "exp_ndtr({0}, {1}, {2})",
    ExpSinh: "exp_sinh({0}, {1})",
    ExpCosh: "exp_cosh({0}, {1})",
}


def literal(c: sp.Expr) -> str:
    """A number as the shortest float text that is right to the last bit."""
    value = float(sp.N(c, 30))
    if not math.isfinite(value):
        raise ValueError(f"the constant {str(c)[:40]} came, which float64 cannot hold; expected less than 1.8e308")
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
    filled = e.func in (Argument, ExpNdtr, ExpSinh, ExpCosh)
    return CALLS[e.func].format(*(argument(a) if filled else _bare(text(a)) for a in e.args))


def argument(e: sp.Expr) -> str:
    """An argument of a primitive that takes arrays only."""
    return f"filled({literal(e)}, q11)" if e.is_number else _bare(text(e))


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


def inner(e: sp.Expr) -> sp.Expr:
    """e with its parameters under the names A_ that they have inside the code, where nothing else ends in _."""
    own = e.free_symbols - {q11, q12, q22, Delta}
    return e.xreplace({s: sp.Symbol(f"{s.name}_", **s.assumptions0) for s in own})


def body(terms: list[Term], stack: bool) -> tuple[list[str], str]:
    """Assignments and the returned expression of one member; its Phi2 calls are stacked into one."""
    terms = [Term(inner(x.coef), inner(x.rad), inner(x.head)) for x in terms]
    for rewrite in REWRITES:
        terms = rewrite.apply(terms)
    parts = [x.coef / sp.sqrt(x.rad) * x.head if x.head != 1 else x.coef / sp.sqrt(x.rad) for x in terms]
    return statements(sp.Add(*(guard(p) for p in parts), evaluate=False) if parts else sp.Integer(0), stack)


def statements(total: sp.Expr, stack: bool) -> tuple[list[str], str]:
    """Common subexpressions named, in dependency order, Phi2 calls between those that feed them and those they feed."""
    calls = sorted(total.atoms(ExpPhi2), key=sp.default_sort_key)
    feeding = [a if i < 9 else sp.sqrt(a) for c in calls for i, a in enumerate(c.args)]  # the last is x^2
    names = sp.symbols(f"p0:{len(calls)}", real=True)
    total = total.xreplace(dict(zip(calls, names, strict=True)))
    shared, reduced = sp.cse([*feeding, total], symbols=sp.numbered_symbols("x"))
    after: set[sp.Symbol] = set(names)
    early: list[str] = []
    late: list[str] = []
    for symbol, value in shared:
        depends = bool(value.free_symbols & after)
        after |= {symbol} if depends else set()
        (late if depends else early).append(f"{symbol} = {_bare(text(value))}")
    lines = early
    if calls:
        rows = [", ".join(argument(a) for a in reduced[10 * i : 10 * i + 10]) for i in range(len(calls))]
        if stack and len(calls) > 2:
            lines = [*early, f"{', '.join(n.name for n in names)} = stacked_phi2(", *(f"    ({r})," for r in rows), ")"]
        else:
            lines = [*early, *(f"{n.name} = exp_phi2({r})" for n, r in zip(names, rows, strict=True))]
    return [*lines, *late], _bare(text(reduced[-1]))
