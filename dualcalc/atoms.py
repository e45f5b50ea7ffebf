"""The normal form: an activation as a sum of blocks `poly(t) exp(alpha t^2 + beta t) gate(t)`.

Why: the Gaussian expectation of every pair of blocks has a closed form (`gaussian.py`), so this file is the whole
front end of the calculus. An expression is first read as a piecewise function (break points, and on each piece a sum of
polynomials times exponentials, perhaps times an erf); the pieces are then written as blocks whose steps open away
from the origin, so that a step far out is computed on its small side. `dual.py` is the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import sympy as sp

from .parsing import q11, q12, q22, t
from .rational import is_real

MAX_DEGREE = 64  # of a polynomial factor; the parser has the same cap
MAX_BLOCKS = 24  # of a normal form: the work grows with their square


WAY_OUT = "Way out: dc.compile approximates it to a stated error, dc.hermite expands it"


class NoClosedForm(ValueError):
    """The activation, or this quantity of it, has no closed form in the class; the text says why and what to do."""


@dataclass(frozen=True)
class Gate:
    """A gate of a block.

    kind   "step": Heaviside(kappa (t - at)), kappa = +-1; "sign": sign(t); "erf": erf(kappa t + at);
           "delta": the kappa-th derivative of the Dirac delta at `at`
    """

    kind: str
    kappa: sp.Expr = sp.Integer(1)
    at: sp.Expr = sp.Integer(0)

    def text(self, x: sp.Symbol) -> sp.Expr:
        """The gate as a SymPy function of x."""
        if self.kind == "step":
            return sp.Heaviside(self.kappa * (x - self.at))
        if self.kind == "sign":
            return sp.sign(x)
        if self.kind == "erf":
            return sp.erf(self.kappa * x + self.at)
        return sp.DiracDelta(x - self.at, self.kappa)


@dataclass(frozen=True)
class Block:
    """`sum_n poly[n] t^n  exp(alpha t^2 + beta t)  gate(t)`; a delta gate has a constant poly, no exponential."""

    poly: tuple[sp.Expr, ...]
    alpha: sp.Expr = sp.Integer(0)
    beta: sp.Expr = sp.Integer(0)
    gate: Gate | None = None

    def expr(self, x: sp.Symbol = t) -> sp.Expr:
        """The block as a SymPy expression in x."""
        body = sp.Add(*(c * x**n for n, c in enumerate(self.poly)))
        return body * sp.exp(self.alpha * x**2 + self.beta * x) * (self.gate.text(x) if self.gate else 1)


ONE = Block((sp.Integer(1),))


def is_zero(c: sp.Expr) -> bool:
    """Whether a coefficient vanishes identically (exactly decided for the constants that occur here)."""
    if c.is_Rational:
        return c == 0
    # one value that is not zero decides at once what `simplify` needs seconds for
    symbols = sorted(c.free_symbols, key=lambda x: x.name)
    value = c.evalf(
        15, subs={x: sp.Rational(-7 if x.is_negative else 7, 5 + 2 * i) for i, x in enumerate(symbols)}, maxn=40
    )
    if value.is_number and abs(value) > 1e-10:
        return False
    c = sp.expand(c)
    return c == 0 or c.is_zero is True or (bool(c.has(sp.exp, sp.Pow, sp.cos, sp.sin)) and sp.simplify(c) == 0)


def _trim(poly: Iterable[sp.Expr]) -> tuple[sp.Expr, ...]:
    out = [sp.Integer(0) if is_zero(c) else c for c in poly]
    while out and out[-1] == 0:
        out.pop()
    if len(out) > MAX_DEGREE + 1:
        raise NoClosedForm(f"a polynomial of degree {len(out) - 1} came; at most {MAX_DEGREE} is supported. {WAY_OUT}")
    return tuple(out)


def _poly_add(p, q):
    return [
        (p[i] if i < len(p) else sp.Integer(0)) + (q[i] if i < len(q) else sp.Integer(0))
        for i in range(max(len(p), len(q)))
    ]


def poly_mul(p, q):
    """The product of two coefficient lists."""
    out = [sp.Integer(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            out[i + j] += a * b
    return out


# ---- smooth functions: {(alpha, beta, erf gate or None): polynomial} ------------------------------------------------


class Smooth(dict):
    """A gate-free sum, keyed by (alpha, beta, erf gate or None), valued by coefficient tuples; zero is empty."""

    @staticmethod
    def constant(c) -> Smooth:
        return Smooth({(sp.Integer(0), sp.Integer(0), None): (c,)}) if c != 0 else Smooth()

    def plus(self, other: Smooth, factor=1) -> Smooth:
        out = Smooth(self)
        for key, poly in other.items():
            merged = _trim(_poly_add(out.get(key, ()), [factor * c for c in poly]))
            if merged:
                out[key] = merged
            else:
                out.pop(key, None)
        return out

    def times(self, other: Smooth) -> Smooth:
        out = Smooth()
        for (a1, b1, g1), p1 in self.items():
            for (a2, b2, g2), p2 in other.items():
                if g1 and g2:
                    raise NoClosedForm(
                        f"{g1.text(t)} times {g2.text(t)}: a product of two error functions leaves the closed class. "
                        f"{WAY_OUT}"
                    )
                if len(out) > MAX_BLOCKS:
                    raise _too_many(len(out))
                key = (sp.expand(a1 + a2), sp.expand(b1 + b2), g1 or g2)
                poly = _trim(sp.expand(c) for c in poly_mul(p1, p2))
                out = out.plus(Smooth({key: poly})) if poly else out
        return out

    def polynomial(self) -> tuple[sp.Expr, ...] | None:
        """Its coefficients when it is a polynomial, else None."""
        if not self:
            return ()
        key = (sp.Integer(0), sp.Integer(0), None)
        return self[key] if set(self) == {key} else None

    def value(self, x) -> sp.Expr:
        return sp.Add(*(Block(p, a, b, g).expr(t) for (a, b, g), p in self.items())).subs(t, x)


# ---- piecewise functions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pieces:
    """pieces[i] holds between breaks[i-1] and breaks[i] (ascending)."""

    breaks: tuple[sp.Expr, ...]
    pieces: tuple[Smooth, ...]

    @staticmethod
    def of(smooth: Smooth) -> Pieces:
        return Pieces((), (smooth,))

    def refine(self, breaks: tuple[sp.Expr, ...]) -> Pieces:
        """The same function on a finer partition."""
        out, i = [], 0
        for b in breaks:
            out.append(self.pieces[i])
            if i < len(self.breaks) and self.breaks[i] == b:
                i += 1
        return Pieces(breaks, (*out, self.pieces[i]))

    def combine(self, other: Pieces, op: Callable[[Smooth, Smooth], Smooth]) -> Pieces:
        """Piece by piece, on the common partition, joined again where neighbours agree."""
        breaks = _merge(self.breaks, other.breaks)
        f, g = self.refine(breaks), other.refine(breaks)
        return _join(breaks, [op(p, q) for p, q in zip(f.pieces, g.pieces, strict=True)])

    def __add__(self, other: Pieces) -> Pieces:
        return self.combine(other, Smooth.plus)

    def __mul__(self, other: Pieces) -> Pieces:
        return self.combine(other, Smooth.times)

    def scale(self, c) -> Pieces:
        return self.map(lambda s: Smooth().plus(s, c))

    def map(self, f: Callable[[Smooth], Smooth]) -> Pieces:
        return _join(self.breaks, [f(p) for p in self.pieces])

    def reflected(self) -> Pieces:
        """The function at -t."""

        def flip(s: Smooth) -> Smooth:
            out = Smooth()
            for (a, b, g), p in s.items():
                sign = -1 if g else 1  # erf(-kappa t + d) = -erf(kappa t - d)
                gate = Gate("erf", g.kappa, -g.at) if g else None
                out = out.plus(Smooth({(a, -b, gate): tuple(sign * (-1) ** n * c for n, c in enumerate(p))}))
            return out

        return Pieces(tuple(-b for b in reversed(self.breaks)), tuple(flip(p) for p in reversed(self.pieces)))

    def parity(self) -> int | None:
        """1 for an even function, -1 for an odd one, else None."""
        flipped = self.reflected()
        for sign in (1, -1):
            difference = self + flipped.scale(-sign)
            if all(not p for p in difference.pieces):
                return sign
        return None


def _join(breaks, pieces) -> Pieces:
    kept, out = [], [pieces[0]]
    for b, p in zip(breaks, pieces[1:], strict=True):
        if p != out[-1]:
            kept.append(b)
            out.append(p)
    return Pieces(tuple(kept), tuple(out))


def _less(a, b) -> bool:
    """Whether a < b; both real. Raises where the signs of the parameters do not decide it."""
    d = sp.expand(b - a)
    if d.is_number:
        return bool(d > 0)
    if d.is_positive is None:
        raise NoClosedForm(
            f"the order of the break points {a} and {b} depends on the parameters. "
            "Way out: give the parameters values, or declare their signs"
        )
    return bool(d.is_positive)


def _merge(xs, ys):
    out = list(xs)
    for y in ys:
        if any(sp.expand(x - y) == 0 for x in out):
            continue
        i = next((i for i, x in enumerate(out) if _less(y, x)), len(out))
        out.insert(i, y)
    return tuple(out)


def _sign(c, what) -> int:
    if c.is_positive:
        return 1
    if c.is_negative:
        return -1
    raise NoClosedForm(
        f"the sign of {what} = {c} is not known. Way out: give the parameter a value, or declare its sign"
    )


def _sign_changes(s: Smooth) -> tuple[list[sp.Expr], int]:
    """Real zeros of odd order of s, ascending, and the sign of s on the far right."""
    poly = s.polynomial()
    if poly == ():
        return [], 0
    if poly is not None:
        lead = _sign(poly[-1], "the leading coefficient of a gate's argument")
        if len(poly) == 1:
            return [], lead
        p = sp.Poly(list(reversed(poly)), t)
        if len(poly) == 2:
            return [sp.expand(-poly[0] / poly[1])], lead
        if all(c.is_Rational for c in poly):
            roots = {r: sp.real_roots(p).count(r) for r in sp.real_roots(p)}
        else:
            roots = sp.roots(p)
            if sum(roots.values()) != p.degree() or any(r.is_real is None for r in roots):
                raise NoClosedForm(
                    f"the real roots of {p.as_expr()} are not known. Way out: give the parameters values"
                )
        odd = [r for r, m in roots.items() if m % 2 and r.is_real]
        return list(reduce(_merge, [(r,) for r in odd], ())), lead
    # c0 + c1 exp(beta t): the gate of Max(exp(t) - 1, 0) and its like
    keys = dict(s)
    c0 = keys.pop((sp.Integer(0), sp.Integer(0), None), (sp.Integer(0),))
    if len(keys) == 1 and len(c0) == 1:
        ((a, b, g), p), *_ = keys.items()
        if a == 0 and g is None and len(p) == 1 and is_real(b):
            quotient = -c0[0] / p[0]
            if quotient.is_nonpositive:
                return [], _sign(p[0], "a coefficient")
            if quotient.is_positive:
                rising = _sign(b, "the exponent of a gate's argument") > 0
                return [sp.log(quotient) / b], _sign(p[0] if rising else c0[0], "a coefficient")
    raise NoClosedForm(
        f"a step, Abs, Max, Min or Piecewise switches where {s.value(t)} changes sign, and those points are not "
        "expressible. Way out: write the switch as a polynomial condition; or dc.compile, "
        "which approximates it"
    )


def _step(f: Pieces) -> Pieces:
    """Heaviside(f), almost everywhere."""
    one, zero = Smooth.constant(sp.Integer(1)), Smooth()
    breaks, values = [], []
    edges = [None, *f.breaks, None]
    for (lo, hi), s in zip(pairwise(edges), f.pieces, strict=True):
        roots, sign = _sign_changes(s)
        inside = [r for r in roots if (lo is None or _less(lo, r)) and (hi is None or _less(r, hi))]
        beyond = [r for r in roots if hi is not None and not _less(r, hi)]
        sign *= (-1) ** len(beyond)
        local = [one if sign * (-1) ** (len(inside) - i) > 0 else zero for i in range(len(inside) + 1)]
        breaks += ([lo] if lo is not None else []) + inside
        values += local
    return _join(breaks, values)


def _condition(c) -> Pieces:
    """The indicator of a condition on t, almost everywhere."""
    if c in (sp.true, True):
        return Pieces.of(Smooth.constant(sp.Integer(1)))
    if c in (sp.false, False):
        return Pieces.of(Smooth())
    if isinstance(c, sp.StrictGreaterThan | sp.GreaterThan):
        return _step(read(c.lhs - c.rhs))
    if isinstance(c, sp.StrictLessThan | sp.LessThan):
        return _step(read(c.rhs - c.lhs))
    if isinstance(c, sp.And):
        return reduce(Pieces.__mul__, map(_condition, c.args))
    if isinstance(c, sp.Or | sp.Not):
        flipped = [Pieces.of(Smooth.constant(sp.Integer(1))) + _condition(a).scale(-1) for a in c.args]
        both = reduce(Pieces.__mul__, flipped)
        return both if isinstance(c, sp.Not) else Pieces.of(Smooth.constant(sp.Integer(1))) + both.scale(-1)
    raise NoClosedForm(f"the condition {c} is not a comparison of polynomials in t")


def _exponential(f: Pieces, factor: sp.Expr = sp.S.One) -> Pieces:
    """exp(factor * f) for a piecewise quadratic f."""

    def one(s: Smooth) -> Smooth:
        poly = s.polynomial()
        if poly is None or len(poly) > 3:
            raise NoClosedForm(
                f"exp({s.value(t)}): only exponents that are quadratic in t stay in the closed class. {WAY_OUT}"
            )
        c, b, a = (*(factor * p for p in poly), *[sp.Integer(0)] * (3 - len(poly)))
        return Smooth({(a, b, None): (sp.exp(c),)})

    return f.map(one)


def _trig(f: Pieces, kind) -> Pieces:
    """cos, sin, cosh, sinh of a piecewise quadratic through exponentials; exp(i c) is written out as cos and sin."""
    unit = sp.I if kind in (sp.cos, sp.sin) else sp.Integer(1)
    plus, minus = _exponential(f, unit), _exponential(f, -unit)
    if kind in (sp.cos, sp.cosh):
        out = (plus + minus).scale(sp.Rational(1, 2))
    else:
        out = (plus + minus.scale(-1)).scale(1 / (2 * unit))

    def unfold(s: Smooth) -> Smooth:
        return Smooth({k: tuple(sp.expand(c.rewrite(sp.cos)) if c.has(sp.I) else c for c in p) for k, p in s.items()})

    return out.map(unfold) if unit == sp.I else out


def _erf(f: Pieces) -> Pieces:
    def one(s: Smooth) -> Smooth:
        poly = s.polynomial()
        if poly is None or len(poly) > 2:
            raise NoClosedForm(f"erf({s.value(t)}): only erf of a linear argument is in the closed class. {WAY_OUT}")
        if len(poly) < 2:
            return Smooth.constant(sp.erf(poly[0] if poly else 0))
        d, k = poly
        # one orientation, so that erf(-t) and -erf(t) merge
        sign = -1 if k.could_extract_minus_sign() else 1
        return Smooth({(sp.Integer(0), sp.Integer(0), Gate("erf", sign * k, sign * d)): (sp.Integer(sign),)})

    return f.map(one)


def _maximum(f: Pieces, g: Pieces) -> Pieces:
    difference = f + g.scale(-1)
    return g + difference * _step(difference)


def _absolute(f: Pieces) -> Pieces:
    return f * _signum(f)


def _signum(f: Pieces) -> Pieces:
    """sign(f), almost everywhere: one step where f has one sign, the difference of two where it vanishes on a piece."""
    return _step(f) + _step(f.scale(-1)).scale(-1)


def _power(expr) -> Pieces:
    base, n = expr.args
    if n.is_Integer and n > 0:
        if n > MAX_DEGREE:
            raise NoClosedForm(f"the power {n} in {expr} came; at most {MAX_DEGREE} is supported. {WAY_OUT}")
        square, out, left = read(base), Pieces.of(Smooth.constant(sp.Integer(1))), int(n)
        while left:  # by squaring
            out = out * square if left % 2 else out
            left //= 2
            square = square * square if left else square
        return out
    if not base.has(t):  # 2**t
        return _exponential(read(n * sp.log(base)))
    raise _outside(expr)


def _outside(expr) -> NoClosedForm:
    return NoClosedForm(
        f"{expr} is outside the closed class (polynomials, exponentials of quadratics, sin, cos, sinh, cosh, erf of "
        f"linear arguments, and steps). {WAY_OUT}"
    )


# Each SymPy head and how it is read; what is not here is outside the class.
READERS: dict[type, Callable[[sp.Expr], Pieces]] = {
    sp.Add: lambda e: reduce(Pieces.__add__, map(read, e.args)),
    sp.Mul: lambda e: reduce(Pieces.__mul__, map(read, e.args)),
    sp.Pow: _power,
    sp.exp: lambda e: _exponential(read(e.args[0])),
    sp.sin: lambda e: _trig(read(e.args[0]), sp.sin),
    sp.cos: lambda e: _trig(read(e.args[0]), sp.cos),
    sp.sinh: lambda e: _trig(read(e.args[0]), sp.sinh),
    sp.cosh: lambda e: _trig(read(e.args[0]), sp.cosh),
    sp.erf: lambda e: _erf(read(e.args[0])),
    sp.erfc: lambda e: Pieces.of(Smooth.constant(sp.Integer(1))) + _erf(read(e.args[0])).scale(-1),
    sp.Heaviside: lambda e: _step(read(e.args[0])),
    sp.sign: lambda e: _signum(read(e.args[0])),
    sp.Abs: lambda e: _absolute(read(e.args[0])),
    sp.Max: lambda e: reduce(_maximum, map(read, e.args)),
    sp.Min: lambda e: reduce(_maximum, [read(-a) for a in e.args]).scale(-1),
    sp.Piecewise: lambda e: _piecewise(e),
}


def _piecewise(expr) -> Pieces:
    out, rest = Pieces.of(Smooth()), Pieces.of(Smooth.constant(sp.Integer(1)))
    for value, condition in expr.args:
        here = rest * _condition(condition)
        out = out + _restricted(value, here)
        rest = rest + here.scale(-1)
    return out


def _restricted(value, indicator: Pieces) -> Pieces:
    """value where the indicator is 1, else 0."""
    return read(value) * indicator


def _larger(*args: sp.Expr) -> sp.Expr:
    return reduce(lambda a, b: (a + b + sp.Abs(a - b)) / 2, args)


# of parameters alone, in functions that generated code has
PLAIN = {
    sp.erfc: lambda x: 1 - sp.erf(x),
    sp.Heaviside: lambda x, *_: (1 + sp.sign(x)) / 2,
    sp.Max: _larger,
    sp.Min: lambda *args: -_larger(*(-a for a in args)),
}


def _plain(constant: sp.Expr) -> sp.Expr:
    if constant.has(sp.Piecewise):
        raise NoClosedForm(f"{constant}: which branch holds is not known. Way out: give the parameters values")
    for head, plain in PLAIN.items():
        constant = constant.replace(head, plain)
    return constant


def read(expr: sp.Expr) -> Pieces:
    """A SymPy expression in `t` as a piecewise function of the closed class, or NoClosedForm."""
    if not expr.has(t):
        return Pieces.of(Smooth.constant(_plain(expr)))
    if expr == t:
        return Pieces.of(Smooth({(sp.Integer(0), sp.Integer(0), None): (sp.Integer(0), sp.Integer(1))}))
    reader = READERS.get(expr.func)
    if reader is None:
        raise _outside(expr)
    return reader(expr)


# ---- blocks ---------------------------------------------------------------------------------------------------------


def blocks(f: Pieces) -> tuple[Block, ...]:
    """The normal form: ungated blocks first, then gates; raises NoClosedForm for a gate that the class lacks."""
    out = _signed(f) if f.breaks == (sp.Integer(0),) and _pure_polynomial_exponents(f) else _stepped(f)
    if len(out) > MAX_BLOCKS:
        raise _too_many(len(out))
    gates = [b.gate for b in out if b.gate]
    waves = [b for b in out if not (is_real(b.alpha) and is_real(b.beta))]
    if gates and waves:
        raise _gate_and_wave(gates[0], waves[0].alpha, waves[0].beta)
    return tuple(out)


def _signed(f: Pieces) -> list[Block]:
    """A function with a break at 0 alone, as its even and its odd extension."""
    left, right = f.pieces
    half = sp.Rational(1, 2)
    smooth = Smooth().plus(left, half).plus(right, half)
    return [*_ungated(smooth), *_gated(Smooth().plus(right, half).plus(left, -half), Gate("sign"))]


def _stepped(f: Pieces) -> list[Block]:
    """A piecewise function with steps that open away from the origin."""
    out: list[Block] = []
    zero_at = next((i for i, b in enumerate(f.breaks) if b == 0), None)
    if zero_at is None:
        base = sum(1 for b in f.breaks if b.is_negative)  # the piece that holds the origin, where it is known
        out += _ungated(f.pieces[base])
        first_right, first_left = base, base
    else:
        out += _gated(f.pieces[zero_at + 1], Gate("step"))
        out += _gated(f.pieces[zero_at], Gate("step", sp.Integer(-1)))
        first_right, first_left = zero_at + 1, zero_at
    for i in range(first_right, len(f.breaks)):
        out += _gated(f.pieces[i + 1].plus(f.pieces[i], -1), Gate("step", sp.Integer(1), f.breaks[i]))
    for i in range(first_left - 1, -1, -1):
        out += _gated(f.pieces[i].plus(f.pieces[i + 1], -1), Gate("step", sp.Integer(-1), f.breaks[i]))
    return out


def _too_many(n: int) -> NoClosedForm:
    return NoClosedForm(
        f"the activation expands to {n} blocks or more; at most {MAX_BLOCKS} are supported. "
        "Way out: write it with fewer pieces, frequencies or factors; or "
        "dc.compile, which approximates it"
    )


def _pure_polynomial_exponents(f: Pieces) -> bool:
    return all(is_real(a) and b == 0 and g is None for s in f.pieces for (a, b, g) in s)


def _ungated(s: Smooth) -> list[Block]:
    return [Block(p, a, b, g) for (a, b, g), p in s.items()]


def _gated(s: Smooth, gate: Gate) -> list[Block]:
    for a, b, g in s:
        if g:
            raise NoClosedForm(
                f"{g.text(t)} times {gate.text(t)}: an error function times a step leaves the closed class. {WAY_OUT}"
            )
        if not (is_real(a) and is_real(b)):
            raise _gate_and_wave(gate, a, b)
    return [Block(p, a, b, gate) for (a, b, _), p in s.items()]


def _gate_and_wave(gate: Gate, a, b) -> NoClosedForm:
    return NoClosedForm(
        f"{gate.text(t)} times an oscillating exponential {sp.exp(a * t**2 + b * t)}: a gate times a complex exponent "
        f"leaves the closed class, within the activation and in E[s(u) s(v)]. {WAY_OUT}"
    )


def differentiate(s: tuple[Block, ...]) -> tuple[Block, ...]:
    """The derivative, as blocks: a step's is a delta, erf's a Gaussian; equal blocks are merged, zeros dropped."""
    out: dict[tuple, list[sp.Expr]] = {}

    def add(poly, alpha, beta, gate):
        key = (alpha, beta, gate)
        out[key] = _poly_add(out.get(key, []), poly)

    for b in s:
        p, (a, be, g) = b.poly, (b.alpha, b.beta, b.gate)
        if g and g.kind == "delta":
            add(p, a, be, Gate("delta", g.kappa + 1, g.at))
            continue
        inner = _poly_add([n * c for n, c in enumerate(p)][1:], poly_mul(p, [be, 2 * a]))
        add(inner, a, be, g)
        for extra in gate_derivative(b):
            add(extra.poly, extra.alpha, extra.beta, extra.gate)
    merged = ((_trim(sp.expand(c) for c in p), *key) for key, p in out.items())
    return tuple(Block(p, *key) for p, *key in merged if p)


def gate_derivative(b: Block) -> tuple[Block, ...]:
    """poly(t) exp(...) gate'(t), as blocks; empty without a gate."""
    g = b.gate
    if g is None or not b.poly:
        return ()
    if g.kind == "erf":  # erf' = (2 kappa/sqrt(pi)) exp(-(kappa t + d)^2)
        c = 2 * g.kappa / sp.sqrt(sp.pi) * sp.exp(-(g.at**2))
        k2, kd = sp.expand(g.kappa**2), sp.expand(2 * g.kappa * g.at)
        return (Block(tuple(c * x for x in b.poly), b.alpha - k2, b.beta - kd),)
    weight = 2 if g.kind == "sign" else g.kappa
    value = weight * b.poly[0]
    if g.at != 0:
        value = sp.Add(*(c * g.at**n for n, c in enumerate(b.poly))) * sp.exp(b.alpha * g.at**2 + b.beta * g.at)
        value = sp.expand(weight * value)
    if value == 0 or (not value.has(q11, q12, q22) and is_zero(value)):
        return ()
    return (Block((value,), gate=Gate("delta", sp.Integer(0), g.at)),)
