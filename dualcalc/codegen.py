"""From terms to code that stands alone: printers over shared tables, stability rewrites as values, `emit`, `compile`.

The bridge between the symbolic half and the numeric one. A generated module imports nothing but its target; it carries
the source of the runtime primitives that it uses, the members K_mn of Price's family, and `k` and `kdot` on top.
Numerics (MATH.md section 3): Delta by an error-free product, guarded quotients where a norm or Delta can vanish,
`exp(..) Phi(..)` and `exp(..) Phi2(..)` in log space, sinh for paired exponentials, and kdot integrated where the
closed form of k cancels at small norms.
"""

from __future__ import annotations

import builtins
import math
import re
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import sympy as sp

from . import balls, runtime
from .atoms import NoClosedForm
from .dual import Dual, derive, exact
from .gaussian import Angle, ExpNdtr, ExpPhi2, Term, harmonics
from .parsing import q11, q12, q22
from .rational import Delta

TARGETS = ("jax", "numpy", "numba", "torch", "latex")
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
    both = isinstance(a.head, sp.exp) and isinstance(b.head, sp.exp) and a.rad == b.rad
    bounded = a.rad != 1 or not (a.coef / b.coef).has(q11, q12, q22, Delta)
    return bool(
        both and bounded and a.head.args[0].has(q12) and sp.expand(a.head.args[0].subs(q12, -q12) - b.head.args[0]) == 0
    )


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


def _exchange(e: sp.Expr) -> sp.Expr:
    return e.xreplace({q11: q22, q22: q11})


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
    filled = e.func in (ExpNdtr, ExpSinh, ExpCosh)
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


def body(terms: list[Term], stack: bool) -> tuple[list[str], str]:
    """Assignments and the returned expression of one member; its Phi2 calls are stacked into one."""
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
        if stack and len(calls) > 1:
            lines = [*early, f"{', '.join(n.name for n in names)} = stacked_phi2(", *(f"    ({r})," for r in rows), ")"]
        else:
            lines = [*early, *(f"{n.name} = exp_phi2({r})" for n, r in zip(names, rows, strict=True))]
    return [*lines, *late], _bare(text(reduced[-1]))


# ---- members --------------------------------------------------------------------------------------------------------


def needs_integral(dual: Dual, order: int) -> bool:
    """Whether the blocks of s^(order) cancel at the origin, so that the closed form loses digits at small norms."""
    s = dual.derivative(order)
    if any(b.gate and b.gate.kind == "delta" for b in (*s, *dual.derivative(order + 1))):
        return False
    paired = all(b.gate is None and b.beta != 0 and (b.alpha != 0 or len(b.poly) == 1) for b in s)
    if paired and len({b.beta**2 for b in s}) == 1:
        return False  # one frequency: the sinh rewrite is exact
    sums = [_near_origin(s, x) for x in (1e-3, -1e-3)]
    size = max(sum(map(abs, values)) for values in sums)
    return bool(max(abs(sum(values)) for values in sums) < 0.05 * size)


def _near_origin(s, x: float) -> list[complex]:
    """The values of the blocks at x."""
    values = []
    for b in s:
        g = b.gate
        if g is not None and g.kind == "step" and ((x - _number(g.at)) * _number(g.kappa)).real <= 0:
            continue
        poly: complex = sum(_number(c) * x**n for n, c in enumerate(b.poly))
        value = poly * np.exp(_number(b.alpha) * x * x + _number(b.beta) * x)
        if g is not None and g.kind == "erf":
            value *= math.erf((_number(g.kappa) * x + _number(g.at)).real)
        elif g is not None and g.kind == "sign":
            value *= math.copysign(1.0, x)
        values.append(value)
    return values


def _number(e: sp.Expr) -> complex:
    """A constant as a complex number, its parameters at 1."""
    value = complex(e.subs(dict.fromkeys(e.free_symbols, sp.Integer(1))))
    return value if value.imag else complex(value.real)


# ---- emission -------------------------------------------------------------------------------------------------------

# Where the error of generated code is recorded: (q12, q11, q22), scaled into the domain where it is bounded.
CHECKS = ((0.4, 1.3, 0.7), (-0.9, 0.9, 1.0), (0.09, 0.01, 0.9), (2.5, 2.5, 2.5), (0.999, 1.0, 1.0))


@dataclass(frozen=True)
class Members:
    """The members of one dual as functions `kmn(q12, q11, q22, Delta, *parameters)` for one target."""

    dual: Dual
    target: str

    @property
    def parameters(self) -> str:
        return "".join(f", {s.name}" for s in self.dual.parameters)

    def function(self, name, lines, result, note, arguments="q12, q11, q22, Delta") -> str:
        """One function's text; outside the domain of norms it is inf."""
        if self.dual.growth != 0:
            limit = text(4 * self.dual.growth)
            inside = " & ".join(f"({limit}*{q} < 1.0)" for q in ("q11", "q22") if q in arguments)
            result = f"where({inside}, {result}, xp.inf)"
        head = '@numba.njit(error_model="numpy")\n' if self.target == "numba" else ""
        if not re.search(r"\bq(11|12|22)?\b|\bx\d|\bp\d", result):
            result = f"filled({result}, {arguments.split(',')[0]})"
        rows = [f'    """{note}"""', *(f"    {line}" for line in lines), f"    return {result}"]
        return "\n".join([f"{head}def {name}({arguments}{self.parameters}):", *rows])

    def texts(self) -> list[str]:
        """All functions, in an order of definition."""
        if self.dual.activation is None:
            pairs = (("k00", self.dual.k, "the kernel"), ("k11", self.dual.kdot, "dk/dq12"))
            return [self.function(name, *statements(guard(_with_delta(e)), False), note) for name, e, note in pairs]
        # those that others call first; by Price, JAX needs K22, K31, K20 for the derivatives
        needed = [(2, 2), (3, 1), (2, 0)] if self.target == "jax" else []
        if not needed and needs_integral(self.dual, 1):
            needed = [(2, 2)]
        return [x for m, n in (*needed, (1, 1), (0, 0)) for x in self.member(m, n)]

    def member(self, m: int, n: int) -> list[str]:
        """K_mn, in two forms where the closed one cancels at small norms."""
        name, note, stack = f"k{m}{n}", f"E[{_prime(m)}(u) {_prime(n)}(v)]", self.target == "jax"
        lines = body(self.dual.member(m, n), stack)
        if m != n or m > 1 or not needs_integral(self.dual, m):
            return [self.function(name, *lines, note)]
        p, slope, start = self.parameters, f"k{m + 1}{n + 1}", text(_at_origin(self.dual, m))
        curvature = body(self.dual.mean(m + 2), False)
        mean = f"mean_by_norm({name}_curvature, {start}, {name}_mean_closed, q11{p})"
        small = f"integrated({slope}, {name}_mean, q12, q11, q22, Delta{p})"
        oscillates = any(b.beta.is_imaginary and b.beta != 0 for b in self.dual.derivative(m))
        tiny = 0.0 if oscillates else 0.05  # at norms of 30 the integrand oscillates too fast for the rule
        chosen = f"by_norm({tiny}, {name}_small, {name}_closed, q12, q11, q22, Delta{p})"
        return [
            self.function(f"{name}_closed", *lines, f"{note}, closed form"),
            self.function(f"{name}_curvature", *curvature, f"E[{_prime(m + 2)}(u)]", "q11"),
            self.function(
                f"{name}_mean_closed", *body(self.dual.mean(m), False), f"E[{_prime(m)}(u)], closed form", "q11"
            ),
            self.function(f"{name}_mean", [], mean, f"E[{_prime(m)}(u)]", "q11"),
            self.function(f"{name}_small", [], small, f"{note}, {slope} integrated: the closed form cancels here"),
            self.function(name, [], chosen, note),
        ]


def _prime(order: int) -> str:
    return "s" + "'" * order


def _at_origin(dual: Dual, order: int) -> sp.Expr:
    """s^(order)(0) of an activation that is continuous there."""
    total = sp.Integer(0)
    for b in dual.derivative(order):
        g = b.gate
        if g is None or (g.kind == "step" and (g.at == 0 and g.kappa == 1 or (g.at * g.kappa).is_negative)):
            total += b.poly[0]
        elif g.kind == "erf":
            total += b.poly[0] * sp.erf(g.at)
    return total


def _with_delta(e: sp.Expr) -> sp.Expr:
    """q11 q22 - q12^2 as Delta, in a kernel that a user wrote."""
    return e.replace(lambda x: x.is_Add and sp.expand(x - (q11 * q22 - q12**2)) == 0, lambda _: Delta)


def refusal(dual: Dual) -> str:
    """Why the NTK has no value, or an empty text."""
    try:
        dual.require_ntk()
    except NoClosedForm as reason:
        return str(reason)
    return ""


def _public(dual: Dual, target: str) -> str:
    """`k` and `kdot` on top of the members."""
    names = [s.name for s in dual.parameters]
    keywords = "".join(f", {n}" + (f"={_default(dual.defaults[n])}" if n in dual.defaults else "") for n in names)
    keywords, given = (", *" + keywords if names else ""), "".join(f", {n}" for n in names)
    parts = ["K11, K00 = at_covariance(k11), at_covariance(k00)"]
    if target == "jax":
        if dual.activation is not None:
            leaves = "K22, K31, K20 = at_covariance(k22), at_covariance(k31), at_covariance(k20)"
            parts = [f"{leaves}\nK11 = price(k11, K22, K31)\nK00 = price(k00, K11, K20)"]
        parts[0] += "\njitted_K11, jitted_K00 = jax.jit(K11), jax.jit(K00)"
    elif target == "numba":
        parts = []
        for member in ("11", "00"):
            parts.append(
                f"@numba.vectorize\ndef K{member}(q12, q11, q22{given}):\n    Delta, q12 = gram_det(q12, q11, q22)\n"
                f"    return k{member}(q12, q11, q22, Delta{given})"
            )
    meanings = (("k", "K00", "E[s(u) s(v)]: one NNGP layer"), ("kdot", "K11", "E[s'(u) s'(v)]: the NTK's factor"))
    for name, member, meaning in meanings:
        if name == "kdot" and (reason := refusal(dual)):
            parts.append(
                f'def kdot(q12, q11, q22{keywords}):\n    """Has no value here."""\n    raise ValueError({reason!r})'
            )
            continue
        call = f"{'jitted_' if target == 'jax' else ''}{member}(q12, q11, q22{given})"
        lines = [
            f"def {name}(q12, q11, q22{keywords}):",
            f'    """{meaning}."""',
            "    q12, q11, q22 = inputs(q12, q11, q22)",
            *(f"    {n} = parameter({n}, q12)" for n in names if target != "numba"),
            f"    return checked({call}, q12, q11, q22)",
        ]
        parts.append("\n".join(lines))
    return "\n\n\n".join(parts)


def _default(value) -> str:
    return literal(exact(value, "default"))


def _code(dual: Dual, target: str) -> list[str]:
    """Imports, the runtime primitives that are used, members, public functions."""
    members, public = "\n\n\n".join(Members(dual, target).texts()), _public(dual, target)
    used = [n for n in runtime.PRIMITIVES if re.search(rf"(?<![\w.]){n}\b", members + "\n" + public)]
    return [runtime.HEADERS[target], runtime.source(used, target), members, public]


def emit(dual, target: str = "jax", **parameters) -> str:
    """The source of a module that stands alone and defines `k(q12, q11, q22)` and `kdot(q12, q11, q22)`.

    dual     a Dual, or whatever `derive` takes (with its parameters)
    target   "jax" | "numpy" | "numba" | "torch" | "latex"
    The text is the same to the byte for the same input and version; it imports nothing but its target.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} came; one of {', '.join(TARGETS)} was expected")
    dual = derive(dual, **parameters)
    if target == "latex":
        return _latex(dual)
    if dual.kernel is not None and not isinstance(dual.kernel, sp.Expr):
        raise NoClosedForm("a kernel given as a callable has no formula to emit. Way out: dc.compile evaluates it")
    checks = check_rows(dual)
    parts = [
        _docstring(dual, target, worst_error(dual, checks)),
        *_code(dual, target),
        _self_check(target, checks, dual),
    ]
    return "\n\n\n".join(p for p in parts if p) + "\n"


def load(source: str, name: str) -> types.ModuleType:
    """A generated module, executed. The text comes from this file's printers, never from a user."""
    module = types.ModuleType(f"dualcalc_generated_{name}")
    exec(builtins.compile(source, f"<dualcalc {name}>", "exec"), module.__dict__)
    return module


# ---- recorded error -------------------------------------------------------------------------------------------------


def default_values(dual: Dual) -> dict[sp.Symbol, sp.Expr]:
    """The parameters at their defaults, at 1 where there is none."""
    return {s: exact(dual.defaults.get(s.name, 1), s.name) for s in dual.parameters}


def check_rows(dual: Dual) -> list[tuple[float, ...]]:
    """Rows (q12, q11, q22, k, sqrt(k11 k22), kdot, sqrt(kdot11 kdot22)) from balls, parameters as in default_values."""
    if dual.activation is None:
        return []
    values, rows = default_values(dual), []
    growth = float(dual.growth.subs(values))
    shrink = min(1.0, 0.3 / (4 * growth)) if growth > 0 else 1.0
    for point in CHECKS:
        v12, v11, v22 = (x * shrink for x in point)
        row: list[float] = []
        with balls.precision(120):
            for m in (0, 1):
                if m == 1 and dual.jumps:
                    row += [math.nan, math.nan]
                    continue
                places = ((v12, v11, v22), (v11, v11, v11), (v22, v22, v22))
                k, k11, k22 = (balls.value(dual.member(m, m), balls.environment(*v, values)).mid() for v in places)
                row += [float(k), float((k11 * k22).sqrt().mid())]
        rows.append((v12, v11, v22, *row))
    return rows


def worst_error(dual: Dual, checks) -> float:
    """The largest error of the NumPy form at the check points over its scale, in eps, rounded up to a power of two."""
    if not checks:
        return math.nan
    module = load("\n\n\n".join(_code(dual, "numpy")), "numpy")
    values = {s.name: float(v) for s, v in default_values(dual).items()}
    worst = 1.0
    for row in checks:
        for f, truth, scale in ((module.k, *row[3:5]), (module.kdot, *row[5:7])):
            if scale > 0:
                worst = max(worst, abs(float(f(*row[:3], **values)) - truth) / scale / 2.0**-52)
    return 2.0 ** math.ceil(math.log2(worst))


def _docstring(dual: Dual, target: str, worst: float) -> str:
    what = f"s(t) = {dual.activation}" if dual.activation is not None else "a kernel without activation"
    usage = "".join(f", {s.name}={literal(v)}" for s, v in default_values(dual).items())
    error = (
        f"at most {worst:g} eps of float64 at the recorded points, over sqrt(k11 k22) and sqrt(kdot11 kdot22)"
        if checks_exist(worst)
        else "not recorded: a kernel without activation has no second form to compare with"
    )
    rows = [
        *_wrap("Dual activation of ", f"{what}, for {target}."),
        "",
        *_wrap("k      = ", str(dual.k)),
        *_wrap("kdot   = ", refusal(dual) or str(dual.kdot)),
        f"domain: {dual.domain}",
        *_wrap("source: ", dual.source or "a SymPy expression"),
        *_wrap("error:  ", error),
        f"usage:  k(0.4, 1.3, 0.7{usage}) is E[s(u) s(v)] for cov12 = 0.4, var1 = 1.3, var2 = 0.7",
        "",
        f"Generated by dualcalc {version('dualcalc')}; `python FILE` checks it against recorded values.",
    ]
    safe = "\n".join(rows).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}\n"""'


def checks_exist(worst: float) -> bool:
    return worst == worst


def _wrap(label: str, content: str) -> list[str]:
    indent = " " * (len(label) if len(label) < 12 else 4)
    return textwrap.wrap(content, 110, initial_indent=label, subsequent_indent=indent, break_long_words=False)


SELF_CHECK = '''# q12, q11, q22, k, sqrt(k11 k22), kdot, sqrt(kdot11 kdot22), from ball arithmetic
CHECKS = (
{rows}
)


def self_check():
    """The largest error at the recorded points, relative to the scales, in float64."""
    worst = 0.0
    for row in CHECKS:
        q = [{number} for x in row[:3]]
        worst = max(worst, abs(float(k(*q{values})) - row[3]) / row[4])
        if row[6] > 0:
            worst = max(worst, abs(float(kdot(*q{values})) - row[5]) / row[6])
    return worst


if __name__ == "__main__":
{setup}    error = self_check()
    print(f"largest relative error at {{len(CHECKS)}} recorded points: {{error:.1e}}")
    raise SystemExit(error > 1e-12)'''


def _self_check(target: str, checks, dual: Dual) -> str:
    if not checks:
        return ""
    return SELF_CHECK.format(
        rows="\n".join(f"    ({', '.join('-1.0' if x != x else repr(x) for x in row)})," for row in checks),
        number="xp.tensor(x, dtype=xp.float64)" if target == "torch" else "x",
        values="".join(f", {s.name}={literal(v)}" for s, v in default_values(dual).items()),
        setup='    jax.config.update("jax_enable_x64", True)\n' if target == "jax" else "",
    )


def _latex(dual: Dual) -> str:
    name = f"% s(t) = {dual.activation}" if dual.activation is not None else "% a kernel without activation"
    rows = [rf"k &= {sp.latex(dual.k)}"]
    rows.append(f"% kdot: {reason}" if (reason := refusal(dual)) else rf"\dot{{k}} &= {sp.latex(dual.kdot)}")
    joined = "\n".join(rows) if refusal(dual) else " \\\\\n".join(rows)
    return "\n".join([name, f"% domain: {dual.domain}", r"\begin{align}", joined, r"\end{align}"]) + "\n"


# ---- compile --------------------------------------------------------------------------------------------------------


class ErrorBound(NamedTuple):
    """Bounds on |error| of k over sqrt(k11 k22), and of kdot over sqrt(kdot11 kdot22)."""

    k: float
    kdot: float


@dataclass(frozen=True)
class Compiled:
    """Jitted JAX functions of one dual.

    k, kdot       `(q12, q11, q22, **parameters)`, broadcasting, differentiable in everything
    method        how they are computed: "closed form" or "given kernel"
    error_bound   of a closed form the recorded float64 rounding error (it has no other); NaN where none is known
    """

    k: Callable
    kdot: Callable
    method: str
    error_bound: ErrorBound
    dual: Dual
    source: str

    def __repr__(self) -> str:
        return f"Compiled({self.dual}, method={self.method!r}, error_bound={tuple(self.error_bound)})"


def compile(dual, **parameters) -> Compiled:
    """Jitted JAX functions `k` and `kdot` of a dual, an activation, or a catalog id.

    Raises NoClosedForm where the activation has no closed form; `fns.kdot` raises it where the NTK has no value.
    """
    dual = derive(dual, **parameters)
    if callable(dual.kernel) and not isinstance(dual.kernel, sp.Basic):
        return _compile_callable(dual)
    source = emit(dual)
    module = load(source, "jax")

    def no_kdot(q12, q11, q22, **_):
        dual.require_ntk()

    eps = worst_error(dual, check_rows(dual)) * 2.0**-52
    method = "closed form" if dual.activation is not None else "given kernel"
    return Compiled(module.k, no_kdot if refusal(dual) else module.kdot, method, ErrorBound(eps, eps), dual, source)


def _compile_callable(dual: Dual) -> Compiled:
    import jax
    import jax.numpy as jnp

    kernel = dual.kernel
    assert callable(kernel)

    def kdot(q12, q11, q22):
        """Theorem 3: the derivative in q12; at c = +-1 by continuity, from just inside."""
        inside = (1 - jnp.finfo(q12.dtype).eps ** 0.5) * jnp.sqrt(q11 * q22)
        near = jnp.clip(q12, -inside, inside)
        return jax.jvp(lambda q: kernel(q, q11, q22), (near,), (jnp.ones_like(near),))[1]

    def broadcasting(f):
        jitted = jax.jit(f)
        return lambda q12, q11, q22: jitted(*runtime.inputs(q12, q11, q22))

    unknown = ErrorBound(math.nan, math.nan)
    return Compiled(broadcasting(kernel), broadcasting(kdot), "given kernel", unknown, dual, "")
