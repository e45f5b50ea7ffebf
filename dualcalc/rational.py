"""Rational functions of the covariances in lowest terms, through FLINT's multivariate polynomials.

Why: every coefficient of a kernel is one, and SymPy's own `cancel` takes seconds where FLINT takes a millisecond.
`gaussian.py` is the caller, and `dual.py` of the power series. Delta stands for q11 q22 - q12^2 wherever that is a
factor, or makes one shorter.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import lru_cache, reduce
from itertools import islice
from math import comb
from typing import Any

import flint
import sympy as sp

from .parsing import q11, q12, q22

Delta = sp.Symbol("Delta", positive=True, prime=False)  # q11 q22 - q12^2; prime: unlike any parameter Delta of a user
SUBTRACTED = q11 * q22 - q12**2
HALF = sp.Rational(1, 2)
MANY = 40  # terms of a numerator beyond which lowest terms cost more than they give


def _generators(e: sp.Expr) -> Iterator[sp.Expr]:
    """What a rational function is made of: symbols, irrational constants, and functions of parameters."""
    if e.is_Add or e.is_Mul or (e.is_Pow and e.args[1].is_Integer):
        for a in e.args:
            yield from _generators(a)
    elif not e.is_Rational:
        yield _root(e)[0]


def _root(e: sp.Expr) -> tuple[sp.Expr, int]:
    """The generator of which something that is no sum, product or power of one is a power, and this power."""
    if e.is_Pow and e.args[1].is_Rational:
        return e.args[0] ** sp.Rational(1, e.args[1].q), int(e.args[1].p)
    return e, 1


def _fraction(e: sp.Expr, gens):
    """(numerator, denominator) of an expression as FLINT polynomials, in lowest terms."""
    one = gens[None]
    if e.is_Rational:
        return one * flint.fmpq(int(e.p), int(e.q)), one
    if not (e.is_Add or e.is_Mul):
        if e.is_Pow and e.args[1].is_Integer:
            (n, d), k = _fraction(e.args[0], gens), int(e.args[1])
        else:
            root, k = _root(e)
            n, d = gens[root], one
        return (n**k, d**k) if k >= 0 else (d**-k, n**-k)
    parts = [_fraction(a, gens) for a in e.args]
    if e.is_Mul:
        n = reduce(lambda x, y: x * y, (p[0] for p in parts))
        d = reduce(lambda x, y: x * y, (p[1] for p in parts))
        return _lowest(n, d)
    same: dict[str, list] = {}  # equal denominators meet first
    for n, d in parts:
        row = same.setdefault(str(d), [n * 0, d])
        row[0] = row[0] + n
    total, below = same.pop(next(iter(same)))
    for n, d in same.values():
        shared = below.gcd(d)
        total, below = total * (d // shared) + n * (below // shared), below * (d // shared)
    return _lowest(total, below)


def _lowest(n, d):
    g = n.gcd(d)
    return n // g, d // g


@lru_cache(maxsize=1024)
def _polynomials(expr: sp.Expr):
    """(numerator, denominator, generators) of an expression, Delta multiplied out."""
    found = dict.fromkeys((*_generators(expr), q12))
    if Delta in found:
        del found[Delta]
        found |= dict.fromkeys((q11, q22))
    names = {g: g.name if g.is_Symbol else f"c{i}!" for i, g in enumerate(found)}  # no user's name has a "!"
    generators = sorted(found, key=lambda g: (g != sp.I, names[g]))
    context = flint.fmpq_mpoly_ctx.get([names[g] for g in generators], flint.Ordering.lex)
    gens = dict(zip(generators, context.gens(), strict=True)) | {None: context.constant(1)}
    if q11 in gens and q22 in gens:
        gens[Delta] = gens[q11] * gens[q22] - gens[q12] ** 2
    n, d = _fraction(expr, gens)
    if sp.I in gens:
        n = divmod(n, gens[sp.I] ** 2 + 1)[1]
        n, d = _lowest(n, d)
    return n, d, generators


def _expression(terms: Mapping[tuple, Any], symbols) -> sp.Expr:
    """Of {exponents: coefficient}."""
    return sp.Add(*(_product(c, exponents, symbols) for exponents, c in terms.items()))


def _product(c, exponents, factors) -> sp.Expr:
    powers = (x ** int(n) for x, n in zip(factors, exponents, strict=True) if n)
    return sp.Mul(sp.Rational(int(c.p), int(c.q)), *powers)


def _factors(p, symbols) -> tuple[sp.Expr, list[tuple[sp.Expr, int]]]:
    """The constant and the irreducible factors, Delta recognised."""
    constant, factors = p.factor()
    number, out = sp.Rational(int(constant.p), int(constant.q)), []
    for f, n in factors:
        e = _delta_form(f, symbols)
        if e == -Delta:
            number, e = number * (-1) ** n, Delta
        out.append((e, int(n)))
    return number, out


def _delta_form(factor, symbols) -> sp.Expr:
    """A polynomial factor with q12^2 = q11 q22 - Delta used where that leaves fewer minus signs, or fewer terms."""
    own = {tuple(map(int, powers)): c for powers, c in factor.to_dict().items()}
    at = symbols.index(q12)
    if len(own) > 30 or not any(powers[at] > 1 for powers in own) or not {q11, q22} <= set(symbols):
        return _expression(own, symbols)
    reduced: dict[tuple[int, ...], Any] = {}  # with the power of Delta last
    for powers, c in own.items():
        half, odd = divmod(powers[at], 2)
        for k in range(half + 1):  # of (q11 q22 - Delta)^half
            new = [*powers, k]
            new[at] = odd
            for q in (q11, q22):
                new[symbols.index(q)] += half - k
            reduced[tuple(new)] = reduced.get(tuple(new), 0) + c * (comb(half, k) * (-1) ** k)
    reduced = {powers: c for powers, c in reduced.items() if c != 0}
    if (_minus_signs(reduced), len(reduced)) < (_minus_signs(own), len(own)):
        return _expression(reduced, [*symbols, Delta])
    return _expression(own, symbols)


def _minus_signs(terms: dict) -> int:
    return sum(c < 0 for c in terms.values())


def ugliness(e: sp.Expr) -> tuple[int, int]:
    """What a formula is compared by: minus signs, then terms."""
    terms = sp.Add.make_args(e)
    return sum(1 for x in terms if x.could_extract_minus_sign()), len(terms)


def size(expr: sp.Expr) -> int:
    """The number of terms of the numerator in lowest terms, multiplied out."""
    return len(_polynomials(expr)[0])


@lru_cache(maxsize=8192)
def tidy(expr: sp.Expr) -> sp.Expr:
    """A rational function of the q's in lowest terms, factored, with Delta for q11 q22 - q12^2 wherever it occurs."""
    if not expr.has(q11, q12, q22, Delta):
        return expr
    n, d, generators = _polynomials(expr)
    if n == 0:
        return sp.Integer(0)
    (a, over), (b, under) = _factors(n, generators), _factors(d, generators)
    return sp.Mul(a / b, *(f**k for f, k in over), *(f**-k for f, k in under))


def lowest(expr: sp.Expr) -> sp.Expr:
    """`tidy` where that is short; a longer one stays in the products in which the rules built it, which round less."""
    return tidy(expr) if size(expr) <= MANY else expr


@lru_cache(maxsize=4096)
def split_radical(rad: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """rad^(-1/2) = outside * inside^(-1/2) with a squarefree polynomial inside; rad is positive, and outside is."""
    n, d, generators = _polynomials(rad)
    outside, inside = sp.Integer(1), sp.Integer(1)
    for part, sign in ((n, 1), (d, -1)):
        constant, factors = _factors(part, generators)
        outside *= constant ** (-sign * HALF)
        for f, k in factors:
            k *= sign
            power = -(k // 2)  # k odd: f^(-k/2) = f^(-(k-1)/2) f^(-1/2)
            outside *= (_absolute(f) if power % 2 else f) ** power
            inside *= f if k % 2 else 1
    return outside, inside


def _absolute(f: sp.Expr) -> sp.Expr:
    """|f| of a factor of a variance or determinant: where these exist it has no zero but at q = 0, and one sign."""
    first = f.xreplace(dict.fromkeys((q11, q12, q22, Delta), sp.Integer(0)))
    return f if first.is_nonnegative else -f if first.is_negative else sp.Abs(f)


def divided(expr: sp.Expr, rad: sp.Expr) -> sp.Expr:
    """The numerator as quotient * rad + rest where that reads better: (a rad + b)/.. in the kernel of GELU."""
    if rad in (1, Delta) or not rad.has(q12, Delta) or longer(expr, 400) or sp.count_ops(expr) > 60:
        return expr
    numerator, denominator = expr.as_numer_denom()
    gens = (q11, q22, q12)
    (top, above), (by, below) = (_multiplied(x.xreplace({Delta: SUBTRACTED}), *gens) for x in (numerator, rad))
    others = {*above, *below} - {*gens}
    if len(top) > 30 or any(x.has(*gens) for x in others):
        return expr
    if not others:
        quotient, rest = (_expression(x.to_dict(), gens) for x in divmod(top, by))
    else:  # parameters and irrational numbers are coefficients, by which FLINT does not divide
        both = _expression(top.to_dict(), above), _expression(by.to_dict(), below)
        quotients, rest = sp.reduced(both[0], [both[1]], *gens)
        quotient = sp.Add(*quotients)  # of one divisor one, or none
    if quotient == 0:
        return expr
    candidate = tidy(quotient) * rad + tidy(rest)
    return candidate / denominator if ugliness(candidate) < ugliness(multiplied_out(numerator)) else expr


def longer(expr: sp.Basic, nodes: int) -> bool:
    """Whether an expression has more nodes than that; a long one is not walked to its end."""
    return next(islice(sp.preorder_traversal(expr), nodes, None), None) is not None


def horner(terms: dict, values) -> sp.Expr:
    """A ring polynomial {exponents: coefficient} at SymPy values, by Horner's rule, the last variable outermost."""
    if len(terms) < 3:
        numbers = (sp.Rational(int(c.numerator), int(c.denominator)) for c in terms.values())
        powers = (sp.Mul(*(x**k for x, k in zip(values, e, strict=True))) for e in terms)
        return sp.Add(*(c * x for c, x in zip(numbers, powers, strict=True)))
    *rest, x = values
    by_power: dict[int, dict] = {}
    for (*e, k), c in terms.items():
        by_power.setdefault(k, {})[tuple(e)] = c
    out, last = sp.Integer(0), max(by_power)
    for k in sorted(by_power, reverse=True):
        out, last = out * x ** (last - k) + horner(by_power[k], rest), k
    return out * x**last


def is_real(expr: sp.Expr) -> bool:
    """Of an expression in real symbols, whatever their signs: SymPy leaves 1/A open, which is none at A = 0."""
    return bool(expr.is_real) or not expr.has(sp.I)


def parts(expr: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """Real and imaginary part of a complex sum of products in real symbols, Delta among them, multiplied out.

    As SymPy's `expand` would, which takes a hundred times as long; denominators and functions stay as they are."""
    split = {a: a.as_real_imag() for a in set(_atoms(expr)) if a != sp.I and a.has(sp.I)}
    if split:
        return parts(expr.xreplace({a: x + sp.I * y for a, (x, y) in split.items()}))
    product, (_, *atoms) = _multiplied(expr, sp.I)
    i = product.context().gens()[0]
    sides: tuple[list[sp.Expr], list[sp.Expr]] = ([], [])
    for (power, *powers), c in divmod(product, i**2 + 1)[1].to_dict().items():
        sides[power].append(_product(c, powers, atoms))
    return sp.Add(*sides[0]), sp.Add(*sides[1])


def multiplied_out(expr: sp.Expr) -> sp.Expr:
    """SymPy's `expand` of a sum of products, much faster; denominators and functions stay as they are."""
    product, atoms = _multiplied(expr)
    return _expression(product.to_dict(), atoms)


def _multiplied(expr: sp.Expr, *first: sp.Expr):
    """The FLINT polynomial in the `_atoms`, and these, with the ones that are given before the others."""
    atoms = list(dict.fromkeys((*first, *_atoms(expr))))
    context = flint.fmpq_mpoly_ctx.get([f"x{i}" for i in range(len(atoms))], flint.Ordering.lex)
    gens = dict(zip(atoms, context.gens(), strict=True))

    def polynomial(e):
        if e.is_Rational:
            return context.constant(flint.fmpq(int(e.p), int(e.q)))
        if e.is_Add or e.is_Mul:
            return reduce(operator.add if e.is_Add else operator.mul, map(polynomial, e.args))
        if e.is_Pow and e.args[1].is_Integer:
            x, n = e.args
            return polynomial(x) ** int(n) if n > 0 else gens[1 / x] ** -int(n)
        return gens[e]

    return polynomial(expr), atoms


def _atoms(e: sp.Expr) -> Iterator[sp.Expr]:
    """What sums, products and positive powers are made of, but for numbers."""
    if e.is_Add or e.is_Mul:
        for a in e.args:
            yield from _atoms(a)
    elif e.is_Pow and e.args[1].is_Integer:
        yield from _atoms(e.args[0]) if e.args[1] > 0 else (1 / e.args[0],)
    elif not e.is_Rational:
        yield e


# ---- power series in the cosine -------------------------------------------------------------------------------------

SERIES = {  # SymPy head -> the same of a flint.arb_series
    sp.exp: lambda x: x.exp(),
    sp.log: lambda x: x.log(),
    sp.sin: lambda x: x.sin(),
    sp.cos: lambda x: x.cos(),
    sp.tan: lambda x: x.tan(),
    sp.sinh: lambda x: (x.exp() - (-x).exp()) / 2,
    sp.cosh: lambda x: (x.exp() + (-x).exp()) / 2,
    sp.tanh: lambda x: ((2 * x).exp() - 1) / ((2 * x).exp() + 1),
    sp.atan: lambda x: x.atan(),
    sp.asin: lambda x: x.asin(),
    sp.acos: lambda x: x.acos(),
    sp.erf: lambda x: x.erf(),
    sp.erfc: lambda x: x.erfc(),
}


def power_series(expr: sp.Expr, values: dict, scale: sp.Rational, degree: int) -> list[flint.arb]:
    """The coefficients of c^0 .. c^degree of an expression at q12 = scale c, as balls; `values` are those of the q's.

    Fewer, or NaN, from where this arithmetic does not find them: for a kernel that has no power series at c = 0, say.
    """

    def series(e):
        if e == q12:
            return flint.arb_series([0, constant(scale)])
        if e.is_Add or e.is_Mul:
            return reduce(operator.add if e.is_Add else operator.mul, map(series, e.args))
        if e.is_Pow:
            return series(e.args[0]) ** (int(e.args[1]) if e.args[1].is_Integer else series(e.args[1]))
        if e.func in SERIES:
            return SERIES[e.func](series(e.args[0]))
        return flint.arb_series([constant(values.get(e, e))])

    def constant(e) -> flint.arb:
        if e is sp.pi or e is sp.E:
            return flint.arb.pi() if e is sp.pi else flint.arb(1).exp()
        if not (e.is_Rational or e.is_Float):
            raise ValueError(f"{e} is no number that has a ball here")
        e = sp.Rational(e)
        return flint.arb(flint.fmpq(int(e.p), int(e.q)))

    before, flint.ctx.prec, flint.ctx.cap = (flint.ctx.prec, flint.ctx.cap), 200, degree + 1
    try:
        found = series(expr)
        known = list(found.coeffs())
        return known + [flint.arb(0)] * (min(found.prec, degree + 1) - len(known))
    except (ValueError, ArithmeticError):  # flint's words for "no power series"
        return []
    finally:
        flint.ctx.prec, flint.ctx.cap = before
