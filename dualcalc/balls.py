"""Terms and expressions in ball arithmetic: the value that a formula has at exact inputs, with its radius.

Why: the error of generated code is measured against this (`codegen.py` records it, `verify.py` prints it). The inputs
are floats taken as the exact numbers that they are; `q12` beyond `sqrt(q11 q22)` by rounding is projected onto it. The
same conventions hold as in generated code: a coefficient over zero is 0, an argument over zero infinite, 0/0 zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache

import flint
import sympy as sp
from flint import acb, arb, fmpq

from .gaussian import Angle, Argument, ExpNdtr, ExpPhi2, Phi2, Term
from .parsing import q11, q12, q22
from .rational import Delta

BITS = 160
ZERO, ONE, TWO = arb(0), arb(1), arb(2)
INF = arb(float("inf"))


@contextmanager
def precision(bits: int = BITS):
    before, flint.ctx.prec = flint.ctx.prec, bits
    try:
        yield
    finally:
        flint.ctx.prec = before


def exact(x) -> arb:
    """A float, Fraction or SymPy rational as the ball of radius zero (or the rounding of one division) around it."""
    f = Fraction(x) if not isinstance(x, sp.Basic) else Fraction(int(x.p), int(x.q))
    if f.denominator & (f.denominator - 1):
        return arb(fmpq(f.numerator, f.denominator))
    return arb((f.numerator, 1 - f.denominator.bit_length()))  # mantissa and binary exponent: no rounding


def environment(v12, v11, v22, parameters: Mapping[sp.Symbol, object] | None = None) -> dict:
    """q11, q12, q22, Delta and parameters as balls, q12 projected where rounding took it beyond sqrt(q11 q22)."""
    f12, f11, f22 = (Fraction(float(v)) for v in (v12, v11, v22))
    gap = f11 * f22 - f12 * f12
    env = {q11: exact(f11), q22: exact(f22), q12: exact(f12), Delta: exact(max(gap, Fraction(0)))}
    if gap < 0:
        root = exact(f11) if f11 == f22 else (exact(f11) * exact(f22)).sqrt()
        env[q12] = root if f12 > 0 else -root
    env.update({s: ball(v, {}) if isinstance(v, sp.Basic) else exact(v) for s, v in (parameters or {}).items()})
    return env


def value(terms: list[Term], env: Mapping) -> arb:
    """The sum of terms as a ball."""
    total = ZERO
    for x in terms:
        total += product([x.coef, 1 / sp.sqrt(x.rad), x.head], env)
    return total


def product(factors, env) -> arb:
    """A product in which a division by zero makes the whole zero: the Quotient convention."""
    powers = _powers(tuple(factors))
    if any(power.is_negative and base.is_Symbol and _is_zero(env[base]) for base, power in powers):
        return ZERO
    out = ONE
    for base, power in powers:
        out *= _power(ball(base, env), power, env)
    return out


@lru_cache(maxsize=4096)
def _powers(factors: tuple[sp.Expr, ...]) -> tuple[tuple[sp.Expr, sp.Expr], ...]:
    """A product as powers; those of one base meet before anything is divided: Delta/sqrt(Delta)."""
    together: dict[sp.Expr, sp.Expr] = {}
    for f in (f for factor in factors for f in sp.Mul.make_args(factor)):
        base, power = f.as_base_exp() if f.is_Pow else (f, sp.Integer(1))
        together[base] = together.get(base, sp.Integer(0)) + power
    return tuple(together.items())


def _power(x: arb, n: sp.Expr, env) -> arb:
    if n.is_Integer:  # by multiplication: arb's power of a ball around zero is NaN
        out, k = ONE, int(n)
        for _ in range(abs(k)):
            out *= x
        return out if k > 0 else 1 / out
    if n.is_Rational and n.q == 2:
        return x.sqrt() ** int(n.p)
    return x ** ball(n, env)


def ball(e: sp.Expr, env: dict, argument: bool = False) -> arb:
    """One expression; `argument` selects the Ratio convention for divisions by zero. `env` keeps what was computed."""
    if e.is_Symbol:
        return env[e]
    if (e, argument) not in env:
        env[e, argument] = _ball(e, env, argument)
    return env[e, argument]


def _ball(e: sp.Expr, env: dict, argument: bool) -> arb:
    if e.is_Rational:
        return exact(e)
    if e is sp.pi:
        return arb.pi()
    if e is sp.E:
        return ONE.exp()
    if e.is_Add:
        if not argument:
            return sum((product([a], env) for a in e.args), ZERO)
        return sum((ball(a, env, True) for a in e.args), ZERO)
    if e.is_Mul:
        return _ratio(e, env) if argument else product([e], env)
    if e.is_Pow:
        base, n = e.args
        if argument and n.is_negative and _is_zero(ball(base, env)):
            return INF
        return _power(ball(base, env, argument), n, env)
    if isinstance(e, sp.exp):
        return _exp(ball(e.args[0], env, True))
    if isinstance(e, Angle):
        y, x2 = (ball(a, env, True) for a in e.args)
        return arb.atan2(y, x2.sqrt()) if not (_is_zero(y) and _is_zero(x2)) else ZERO
    if isinstance(e, Argument):
        return arb.atan2(*(ball(a, env, True) for a in e.args))
    if isinstance(e, ExpNdtr):
        return _exp_ndtr(*(ball(a, env, True) for a in e.args))
    if isinstance(e, ExpPhi2):
        return _exp_phi2(*(ball(a, env, True) for a in e.args))
    if isinstance(e, Phi2):
        raise ValueError("Phi2 is for reading; evaluate the terms instead")
    if e.is_number and e.func not in FUNCTIONS:  # an algebraic root
        return exact(sp.Rational(sp.N(e, 80)))
    return FUNCTIONS[e.func](ball(e.args[0], env, True))


FUNCTIONS = {
    sp.erf: lambda x: x.erf(),
    sp.sin: lambda x: x.sin(),
    sp.cos: lambda x: x.cos(),
    sp.tan: lambda x: x.tan(),
    sp.sinh: lambda x: x.sinh(),
    sp.cosh: lambda x: x.cosh(),
    sp.tanh: lambda x: x.tanh(),
    sp.log: lambda x: x.log(),
    sp.asin: lambda x: x.asin(),
    sp.acos: lambda x: x.acos(),
    sp.atan: lambda x: x.atan(),
    sp.Abs: lambda x: abs(x),
    sp.sign: lambda x: ZERO if _is_zero(x) else x.sgn(),
}


def _is_zero(x: arb) -> bool:
    return x.is_exact() and x == 0


def _ratio(e: sp.Expr, env) -> arb:
    over: list[tuple] = []
    under: list[tuple] = []
    for f in e.args:
        base, power = f.as_base_exp() if f.is_Pow else (f, sp.Integer(1))
        (under if power.is_negative else over).append((base, abs(power)))
    bottom = ONE
    for base, power in under:
        bottom *= ball(base**power, env, True)
    top = ONE
    for base, power in over:
        top *= ball(base**power, env, True)
    if not _is_zero(bottom):
        return top / bottom
    return ZERO if top.contains(0) else INF * top.sgn()


def _exp(x: arb) -> arb:
    return ZERO if x == -INF else x.exp()


def _exp_ndtr(e, eh, h) -> arb:
    if h in (INF, -INF):
        return e.exp() if h == INF else ZERO
    return e.exp() * (-h / TWO.sqrt()).erfc() / 2


def _exp_phi2(e, eh, ek, er, h, k, th, tk, y, x2) -> arb:
    """exp(e) Phi2 by Owen's wedges: the quadrant below (h, k) cut by the ray through its corner."""
    for bound, other in ((h, k), (k, h)):
        if bound == -INF:
            return ZERO
        if bound == INF:
            return _exp_ndtr(e, None, other)
    if _is_zero(y) and _is_zero(x2):  # a variance is zero: independent
        return e.exp() * (-h / TWO.sqrt()).erfc() * (-k / TWO.sqrt()).erfc() / 4
    if _is_zero(h) and _is_zero(k):
        return e.exp() * (arb(1) / 4 + arb.atan2(y, x2.sqrt()) / (2 * arb.pi()))
    total = e.exp() if h > 0 and k > 0 else ZERO
    for x, t in ((h, th), (k, tk)):
        wedge = _wedge(abs(x), t, e, er)
        total += -wedge if x > 0 else wedge
    return total


def _wedge(x, t, e, er) -> arb:
    """exp(e) P(X > x, Y < t X/x) for x >= 0: exp(er)/(2 pi) times an entire-on-the-path integral over the tail."""
    outside = e.exp() * (x / TWO.sqrt()).erfc() / 2
    if t in (INF, -INF):
        return outside if t == INF else ZERO
    tau = abs(t)
    if _is_zero(tau):
        return outside / 2
    cut = arb(2 * (flint.ctx.prec + 20)).sqrt()  # exp(-cut^2/2) < 2^-prec, what lies beyond is smaller still
    if _is_zero(x):
        inner = ZERO
    else:

        def integrand(v, _):
            w = v + tau
            return (-v * (tau + v / 2)).exp() * x / (x * x + w * w)

        edges = [ZERO, *(b for b in (tau / 8, tau, 4 * tau) if b < cut and x < tau), cut]
        parts = [acb.integral(integrand, acb(a), acb(b)).real for a, b in zip(edges, edges[1:], strict=False)]
        tail = (-cut * (tau + cut / 2)).exp() * (arb.pi() / 2)
        inner = er.exp() / (2 * arb.pi()) * (sum(parts, ZERO) + arb(0, float(tail.upper())))
    return inner if t < 0 else outside - inner
