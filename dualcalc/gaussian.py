"""The Gaussian expectation calculus: every rule that turns a pair of blocks into closed form, on one scroll.

`expectation(f, g)` gives `E[f(u) g(v)]` for `(u, v) ~ N(0, [[q11, q12], [q12, q22]])` and two sums of blocks as a sum
of `Term`s `coef * rad^(-1/2) * head`, where coef and rad are rational in q11, q12, q22 and the head is one of the
transcendental functions below. The determinant `Delta = q11 q22 - q12^2` is a symbol of its own, so that generated
code never subtracts for it. Each rule appends a `Step` to the derivation, which is how a user reads where a formula
came from. `dual.py` is the caller.

Rules, in the order in which they are tried on a pair of blocks:
  Slice   a delta gate:        E[delta^(j)(u - p) g(v)] = (-d/dp)^j of density(p) E[g(v) | u = p]
  Tilt    quadratic exponents: E[exp(alpha1 u^2 + alpha2 v^2) F] = det^(-1/2) E_L[F], L^-1 = Lambda^-1 - 2 diag(alpha)
  Shift   linear exponents:    E_L[exp(beta . (u, v)) F(u, v)] = exp(beta' L beta / 2) E_L[F((u, v) + L beta)]
  Wick    no gates:            E[P(u) R(v)] = sum_l L12^l / l! E[P^(l)(u)] E[R^(l)(v)]
  Turn    complex alpha:       det^(-m-1/2) = |det|^(-m-1/2) exp(-i (m + 1/2) arg det); the real part is kept
  Stein   gates:               E[u F] = L11 E[dF/du] + L12 E[dF/dv] + mean E[F], until only the bare gates are left
  Orthant bare gates:          P(y1 >= 0, y2 >= 0) = Phi2(h, k, rho); 1/4 + asin(rho)/(2 pi) where both thresholds are 0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb, factorial

import sympy as sp
from sympy.polys.rings import ring
from sympy.simplify.fu import TR8

from .atoms import ONE, Block, differentiate, gate_derivative
from .parsing import q11, q12, q22
from .rational import HALF, MANY, Delta, divided, horner, is_real, lowest, parts, size, split_radical, tidy

# ---- heads: the transcendental functions of a kernel ----------------------------------------------------------------


class Angle(sp.Function):
    """atan2(y, x) for x >= 0, that is asin(y / sqrt(x^2 + y^2)), given as Angle(y, x^2)."""

    nargs = 2


class Argument(sp.Function):
    """atan2(y, x), the argument of x + i y; odd in y."""

    nargs = 2

    @classmethod
    def eval(cls, y, x):
        return -cls(-y, x) if y.could_extract_minus_sign() else None


class ExpNdtr(sp.Function):
    """exp(e) Phi(h), with e - h^2/2 as second argument: ExpNdtr(e, e - h^2/2, h)."""

    nargs = 3


class ExpPhi2(sp.Function):
    """exp(e) Phi2(h, k, rho) as ExpPhi2(e, eh, ek, er, h, k, th, tk, y, x^2).

    eh = e - h^2/2, ek = e - k^2/2, er = e - (h^2 + th^2)/2, th = (k - rho h)/sqrt(1 - rho^2), tk likewise,
    rho = y / sqrt(x^2 + y^2): all of them simplified as symbols, because none can be recovered from h, k, rho in
    floating point (`runtime.wedge`).
    """

    nargs = 10


class Phi2(sp.Function):
    """The bivariate normal CDF P(X <= h, Y <= k) at correlation rho, for people to read; evaluates numerically."""

    nargs = 3

    def _eval_evalf(self, prec):
        import mpmath

        if self.free_symbols:
            return None  # evalf then goes on with the arguments
        h, k, rho = (a._to_mpmath(prec + 20) for a in self.args)
        with mpmath.workprec(prec + 20):
            return sp.Expr._from_mpmath(phi2_value(h, k, rho), prec)

    def fdiff(self, argindex=1):
        h, k, rho = self.args
        s = sp.sqrt(1 - rho**2)
        if argindex == 3:
            return sp.exp(-(h**2 - 2 * rho * h * k + k**2) / (2 * s**2)) / (2 * sp.pi * s)
        x, y = (h, k) if argindex == 1 else (k, h)
        return sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi) * (1 + sp.erf((y - rho * x) / (sp.sqrt(2) * s))) / 2


def phi2_value(h, k, rho):
    """Phi2 by Plackett's identity: Phi(h) Phi(k) + the integral of the density over the angle asin(r)."""
    import mpmath as mp

    if abs(rho) >= 1:
        return mp.ncdf(min(h, k)) if rho > 0 else mp.ncdf(h) - mp.ncdf(min(h, -k))

    def density(angle):
        r, c = mp.sin(angle), mp.cos(angle)
        return mp.exp(-(h * h - 2 * r * h * k + k * k) / (2 * c * c)) / (2 * mp.pi)

    top = mp.asin(rho)
    return mp.ncdf(h) * mp.ncdf(k) + mp.quad(density, [0, top / 2, 3 * top / 4, 7 * top / 8, top])


@dataclass(frozen=True)
class Term:
    """coef * rad^(-1/2) * head; `kept` marks a coefficient that is best left in its product form (Wick's)."""

    coef: sp.Expr
    rad: sp.Expr
    head: sp.Expr
    kept: bool = False


@dataclass(frozen=True)
class Step:
    """One applied rule of a derivation: its name, the statement for this case, and the steps that it led to.

    A statement of long formulas is printed when it is read: `text` and `tex` then have places for `about`.
    """

    rule: str
    text: str
    tex: str
    children: tuple[Step, ...] = ()
    about: tuple[sp.Expr, ...] = ()

    @property
    def statement(self) -> str:
        return self.text % self.about if self.about else self.text

    @property
    def latex(self) -> str:
        return self.tex % tuple(map(sp.latex, self.about)) if self.about else self.tex


# ---- collecting terms ------------------------------------------------------------------------------------------------


def collect(terms: list[Term]) -> list[Term]:
    """Equal (rad, head) merged, coefficients in lowest terms, zeros dropped."""
    groups: dict[tuple, list[sp.Expr]] = {}
    for term in terms:
        if term.coef != 0 and not term.kept:
            outside, inside = split_radical(term.rad)
            for coef, head in _real(term.coef * outside, term.head):
                groups.setdefault((inside, head), []).append(coef)
    _complement(groups)
    merged = (Term(divided(_sum_tidy(coefs), rad), rad, head) for (rad, head), coefs in groups.items())
    return _merge_kept(terms) + [m for m in merged if m.coef != 0]


def _real(coef: sp.Expr, head: sp.Expr) -> list[tuple[sp.Expr, sp.Expr]]:
    """c exp(x + i y) as Re(c) exp(x) cos(y) - Im(c) exp(x) sin(y): the conjugate pair supplies the other half."""
    if not head.has(sp.I):  # coefficients of conjugate pairs meet in one head; their imaginary parts cancel
        return [(parts(coef)[0] if coef.has(sp.I) else coef, head)]
    if not isinstance(head, sp.exp):
        return [(coef, head)]
    x, y = map(tidy, parts(head.args[0]))
    sign = -1 if y.could_extract_minus_sign() else 1
    re, im = parts(coef)
    return [(re, sp.exp(x) * sp.cos(sign * y)), (-sign * im, sp.exp(x) * sp.sin(sign * y))]


def _merge_kept(terms: list[Term]) -> list[Term]:
    """Kept products that are equal but for a number, added; their radicals squarefree."""
    sums: dict[tuple, sp.Expr] = {}
    for term in terms:
        if term.kept:
            outside, inside = split_radical(term.rad)
            number, body = (term.coef * outside).as_coeff_Mul()
            key = (body, inside, term.head)
            sums[key] = sums.get(key, sp.Integer(0)) + number
    return [Term(c * body, rad, head, True) for (body, rad, head), c in sums.items() if c != 0]


def _complement(groups: dict[tuple, list[sp.Expr]]) -> None:
    """Phi2(-h, k, -rho) = Phi(k) - Phi2(h, k, rho): where both occur, the first one goes."""

    for rad, head in list(groups):
        if not isinstance(head, ExpPhi2) or (rad, head) not in groups:
            continue
        e, eh, ek, er, h, k, th, tk, y, x2 = head.args
        first = ExpPhi2(e, eh, ek, er, -h, k, th, -tk, -y, x2), ExpNdtr(e, ek, k)
        second = ExpPhi2(e, eh, ek, er, h, -k, -th, tk, -y, x2), ExpNdtr(e, eh, h)
        for other, marginal in (first, second):
            if (rad, other) in groups and other != head:
                coefs = groups.pop((rad, other))
                groups[rad, head] += [-c for c in coefs]
                groups.setdefault((rad, marginal), []).extend(coefs)


def _sum_tidy(coefs: list[sp.Expr]) -> sp.Expr:
    """The sum of coefficients, the q-free irrational constants collected first (they are not polynomial generators)."""
    total = sp.Add(*coefs)
    symbols = total.free_symbols & set(_TILTED)
    many = not total.has(sp.I) and size(total) > MANY
    if symbols:
        total = total if many else sp.expand(total)
        many = many or len(sp.Add.make_args(total)) > MANY
        total = total.xreplace({x: _TILTED[x].value for x in symbols})
        coefs = [total]
    if many:
        return total
    by_constant: dict[sp.Expr, list[sp.Expr]] = {}
    for c in coefs:
        constant, rational = c.as_independent(q11, q12, q22, Delta, as_Add=False)
        number, irrational = constant.as_coeff_Mul()
        by_constant.setdefault(irrational, []).append(number * rational)
    merged: dict[sp.Expr, sp.Expr] = {}
    for irrational, rationals in by_constant.items():
        body = tidy(sp.Add(*rationals))
        constant, rational = body.as_independent(q11, q12, q22, Delta, as_Add=False)
        merged[rational] = merged.get(rational, sp.Integer(0)) + irrational * constant
    return sp.Add(*(_constant(c) * r for r, c in merged.items()))


def _constant(c: sp.Expr) -> sp.Expr:
    """A q-free constant, its imaginary part (which a real kernel does not have) cancelled exactly."""
    c = sp.expand(c)
    return harmonics(c) if c.has(sp.cos, sp.sin) else sp.factor_terms(c)


def harmonics(c: sp.Expr) -> sp.Expr:
    """Products of sines and cosines as sums, so that what cancels does (SymPy's trigsimp is ten times slower)."""
    before = None
    while c != before:
        before, c = c, sp.expand(TR8(sp.expand(c)))
    return c


# ---- one dimension: E[block(v)], v ~ N(mean, var), times exp(extra) -------------------------------------------------


def expect1(block: Block, mean, var, extra) -> list[Term]:
    """`exp(extra) E[block(v)]` for `v ~ N(mean, var)`; the rules in one dimension."""
    g = block.gate
    if g and g.kind == "delta":  # the j-th delta: var^(-j/2) He_j((p - mean)/sigma) density(p)
        x = g.at - mean
        head = sp.exp(tidy(extra - x**2 / (2 * var)))
        return [Term(block.poly[0] * _slope_of_density(int(g.kappa), x, var) / sp.sqrt(2 * sp.pi), var, head)]
    if g and g.kind == "step" and g.at != 0:
        p = g.at
        extra, mean, block = extra + block.alpha * p**2 + block.beta * p, mean - p, _at_threshold(block)
        g = block.gate
    a, b = block.alpha, block.beta
    d = 1 - 2 * a * var
    extra = extra + (a * mean**2 + b * mean + b**2 * var / 2) / d
    m, v = (mean + b * var) / d, var / d
    ((average, slope),) = stein(block.poly, m, v)  # E[P gate] = E[P] E[gate] + v E[S gate']
    out = [Term(average * c, d * r, h) for c, r, h in _bare1(g, m, v, extra)]
    if g:
        for inner in gate_derivative(Block(tuple(v * c for c in slope), a, b, g)):
            out += expect1(inner, mean, var, extra_before(extra, a, b, mean, var, d))
    return out


def _at_threshold(block: Block) -> Block:
    """A block with a step in x = t - threshold: there Stein's boundary is one coefficient, not a polynomial's value."""
    assert block.gate is not None
    p, n = block.gate.at, len(block.poly)
    poly = (sp.Add(*(block.poly[i] * comb(i, k) * p ** (i - k) for i in range(k, n))) for k in range(n))
    gate = replace(block.gate, at=sp.Integer(0))
    return Block(tuple(map(sp.expand, poly)), block.alpha, sp.expand(block.beta + 2 * block.alpha * p), gate)


def _slope_of_density(j: int, x, var):
    """(-d/dx)^j density / density = var^(-j/2) He_j(x / sqrt(var)) of N(0, var), as a polynomial in x and 1/var."""
    terms = (
        sp.Rational((-1) ** i * factorial(j), 2**i * factorial(i) * factorial(j - 2 * i))
        * x ** (j - 2 * i)
        / var ** (j - i)
        for i in range(j // 2 + 1)
    )
    return sp.Add(*terms)


def extra_before(extra, a, b, mean, var, d):
    """The exponent before the one-dimensional tilt (the boundary block carries its own alpha and beta)."""
    return extra - (a * mean**2 + b * mean + b**2 * var / 2) / d


@lru_cache
def _ring(coefficients: int):
    return ring(["m", "v", *(f"c{i}" for i in range(coefficients))], sp.QQ)


@lru_cache(maxsize=4096)
def stein(poly: tuple[sp.Expr, ...], mean, var, levels: int = 1) -> tuple[tuple[sp.Expr, tuple[sp.Expr, ...]], ...]:
    """Stein's equation for x ~ N(mean, var), solved `levels` times: ((E[P_0], P_1), (E[P_1], P_2), ...), P_0 = poly.

    P_(l+1) solves P_l - E[P_l] = (x - mean - var d/dx) P_(l+1), so that E[P_l F(x, y)] = E[P_l] E[F] +
    E[P_(l+1) (var dF/dx + Cov(x, y) dF/dy)]; and E[P_l] = E[P^(l)]/l!. Coefficients that are not rational stay symbols.
    """
    symbols = list(dict.fromkeys(c for c in poly if not c.is_Rational))
    R, m, v, *names = _ring(len(symbols))
    m = m if mean != 0 else R(0)
    p = [R(sp.QQ(int(c.p), int(c.q))) if c.is_Rational else names[symbols.index(c)] for c in poly]
    out = []
    for _ in range(levels):
        s = [R(0)] * (len(p) + 2)
        for j in range(len(p) - 1, 0, -1):
            s[j - 1] = p[j] + m * s[j] + (j + 1) * v * s[j + 1]
        average, p = (p[0] if p else R(0)) + m * s[0] + v * s[1], s[: max(len(p) - 1, 0)]
        nested = [horner(dict(x.terms()), (mean, var, *symbols)) for x in (average, *p)]
        out.append((nested[0], tuple(nested[1:])))
    return tuple(out)


# A bare gate 1[y >= 0]-like: value = low + span * 1[y >= 0], y = slope x + offset + noise of variance e.
def _affine(g):
    """(low, span, slope, offset, e) of a gate: step and sign without noise, erf with a standard normal's."""
    if g.kind == "step":
        return 0, 1, g.kappa, -g.kappa * g.at, 0
    if g.kind == "sign":
        return -1, 2, sp.Integer(1), sp.Integer(0), 0
    return -1, 2, sp.sqrt(2) * g.kappa, sp.sqrt(2) * g.at, 1


def _bare1(g, m, v, e):
    """exp(e) E[gate] for N(m, v), as (coef, rad, head)."""
    if g is None:
        return [(sp.Integer(1), sp.Integer(1), sp.exp(tidy(e)))]
    low, span, slope, offset, noise = _affine(g)
    my, vy = slope * m + offset, slope**2 * v + noise
    if tidy(my) == 0:
        return [(low + sp.Rational(span, 2), sp.Integer(1), sp.exp(tidy(e)))]
    out = [(sp.Integer(span), sp.Integer(1), exp_ndtr(e, my, vy))]
    return out + ([(sp.Integer(low), sp.Integer(1), sp.exp(tidy(e)))] if low else [])


def over_root(numerator, variance):
    """numerator / sqrt(variance), both rational in the q's, with no square left inside the root."""
    outside, inside = split_radical(variance)
    return tidy(numerator * outside) / sp.sqrt(inside)


def exp_ndtr(e, mean, variance):
    """exp(e) Phi(mean/sqrt(variance)); plain exp or a multiple of it where that is exact."""
    h = over_root(mean, variance)
    return ExpNdtr(tidy(e), _minus_half_square(e, h), h)


def _minus_half_square(e, h):
    """e - h^2/2, the two apart where Delta divides the square: there 0/0 means h = 0, and e stays."""
    merged = tidy(e - h**2 / 2)
    return tidy(e) - h**2 / 2 if merged.as_numer_denom()[1].has(Delta) else merged


# ---- two dimensions -------------------------------------------------------------------------------------------------


def expect2(f: Block, g: Block) -> tuple[list[Term], Step]:
    """`E[f(u) g(v)]` for one pair of blocks, with its derivation."""
    for x, y, swap in ((f, g, False), (g, f, True)):
        if x.gate and x.gate.kind == "delta":
            return _slice(x, y, swap)
    if not (is_real(f.alpha) and is_real(g.alpha)):
        return _oscillating(f, g)
    if f == ONE or g == ONE:
        block, q = (g, q22) if f == ONE else (f, q11)
        terms = expect1(block, sp.Integer(0), q, sp.Integer(0))
        return terms, Step("Marginal", "E[%s], one-dimensional", "%s", (), (block.expr(),))
    det, L11, L12, L22, detL = tilted(f.alpha, g.alpha)
    mu = (f.beta * L11 + g.beta * L12, f.beta * L12 + g.beta * L22)
    e = (f.beta * mu[0] + g.beta * mu[1]) / 2
    children = []
    if f.alpha != 0 or g.alpha != 0:
        text = f"alpha = ({f.alpha}, {g.alpha}), det = %s"
        children.append(Step("Tilt", text, r"\det D = %s", (), (tidy(det),)))
    if f.beta != 0 or g.beta != 0:
        children.append(Step("Shift", f"beta = ({f.beta}, {g.beta}), exponent %s", "%s", (), (tidy(e),)))
    if f.gate is None and g.gate is None:
        children.append(_step("Wick", f"polynomials of degree {len(f.poly) - 1} and {len(g.poly) - 1}", ""))
        terms = _wick_terms(f, g, det, (L11, L12, L22), sp.exp(tidy(e)))
    else:
        terms, inner = _gated_pair(f, g, (det, L11, L12, L22, detL), mu, e)
        children += inner
    x, y = sp.Symbol("u"), sp.Symbol("v")
    about = f.expr(x) * g.expr(y)
    return terms, Step("Pair", "E[%s]", r"\mathbb{E}\left[%s\right]", tuple(children), (about,))


def _step(rule, statement, latex, children=()):
    return Step(rule, statement, latex, tuple(children))


def tilted(a1, a2):
    """det, L11, L12, L22, det L of the Gaussian tilted by exp(a1 u^2 + a2 v^2), written with Delta (no subtraction)."""
    det = 1 - 2 * a1 * q11 - 2 * a2 * q22 + 4 * a1 * a2 * Delta
    return det, (q11 - 2 * a2 * Delta) / det, q12 / det, (q22 - 2 * a1 * Delta) / det, Delta / det


def _derivative(poly, order):
    return tuple(c * sp.ff(n, order) for n, c in enumerate(poly))[order:]


def _wick_terms(f: Block, g: Block, det, L, head) -> list[Term]:
    """E[P(u) R(v)] of a Gaussian pair: sum over l of L12^l/l! E[P^(l)(u)] E[R^(l)(v)], the Wick rule."""
    shifted = f.beta != 0 or g.beta != 0
    if shifted and (f.alpha != 0 or g.alpha != 0):
        L = _tilt_symbols(f.alpha, g.alpha)
    L11, L12, L22 = L
    mu = (f.beta * L11 + g.beta * L12, f.beta * L12 + g.beta * L22)
    out = []
    for i in range(min(len(f.poly), len(g.poly))):
        left = stein(_derivative(f.poly, i), mu[0], L11)[0][0]
        right = stein(_derivative(g.poly, i), mu[1], L22)[0][0]
        if not shifted:  # each factor depends on one norm: for He_n it is a power of (q - 1)
            left, right = lowest(left), lowest(right)
        out.append(Term(tidy(L12) ** i / factorial(i) * left * right, det, head, not shifted))
    return [x for x in out if x.coef != 0]


def _oscillating(f: Block, g: Block) -> tuple[list[Term], Step]:
    """Wick's rule under complex quadratic exponents: the real parts of N exp(e) det^(-m - 1/2), N and e polynomials.

    The principal branch is right. det is the product of the two eigenvalues of 1 - 2 S diag(alpha) S, S^2 = Lambda, and
    the expectation is the product of their principal powers -1/2: both are continuous where it exists, and agree at
    alpha = 0. It exists where the matrix has a positive definite real part, hence eigenvalues with one: |arg| < pi/2
    each, so that |arg det| < pi is their sum, and the powers of the product are the products of the powers.
    """
    w = sp.Symbol("1/det")
    det, *tilt = tilted(f.alpha, g.alpha)
    L11, L12, L22 = (x * det * w for x in tilt[:3])
    mu = (f.beta * L11 + g.beta * L12, f.beta * L12 + g.beta * L22)
    total = sp.Integer(0)
    for i in range(min(len(f.poly), len(g.poly))):
        ((left, _),) = stein(_derivative(f.poly, i), mu[0], L11)
        ((right, _),) = stein(_derivative(g.poly, i), mu[1], L22)
        total += L12**i / factorial(i) * left * right
    (x, y), (u, v) = parts(det), parts((f.beta * mu[0] + g.beta * mu[1]) / (2 * w))
    flip = -1 if y.could_extract_minus_sign() else 1  # the conjugate has the same real part
    y, v = flip * y, flip * v
    modulus = x**2 + y**2
    size, phase = sp.exp((u * x + v * y) / modulus), (v * x - u * y) / modulus
    terms = []
    for (m,), numerator in sp.Poly(sp.expand(total), w).terms():
        turned = phase - (m + HALF) * Argument(y, x)
        for c, wave in zip(parts(numerator), (sp.cos(turned), -flip * sp.sin(turned)), strict=True):
            sign, wave = wave.as_coeff_Mul()
            if c != 0 and sign != 0:
                terms.append(Term(sign * c * modulus ** (-(m + HALF) / 2), sp.Integer(1), size * wave, True))
    about = (f.expr(sp.Symbol("u")) * g.expr(sp.Symbol("v")),)
    turn = _step("Turn", f"det = {det}, |det|^2 = {modulus}", rf"\det D = {sp.latex(det)}")
    return terms, Step("Pair", "E[%s]", r"\mathbb{E}\left[%s\right]", (turn,), about)


@dataclass(frozen=True)
class _Tilted:
    """An entry of a tilted covariance that stands for itself until coefficients are collected."""

    value: sp.Expr
    mirror: sp.Symbol


_TILTED: dict[sp.Symbol, _Tilted] = {}


@lru_cache(maxsize=256)
def _tilt_symbols(a1, a2):
    """L11, L12, L22 as symbols: polynomials in them stay short where those in the q's do not."""
    here, there = (
        [sp.Symbol(f"L{n}[{x},{y}]", real=True) for n in ("11", "12", "22")] for x, y in ((a1, a2), (a2, a1))
    )
    for one, two, p, q in ((here, there, a1, a2), (there, here, a2, a1)):
        for i, value in enumerate(tilted(p, q)[1:4]):
            _TILTED[one[i]] = _Tilted(tidy(value), two[2 - i])
    return tuple(here)


def _gated_pair(f: Block, g: Block, tilt, mu, e):
    """Stein down to the bare gates; each gate's derivative is a simpler pair, treated by the same rules.

    E[P R g1 g2] = sum over l of L12^l times, with P_l from `stein` and S its first solution for R^(l),
        E[P_l] E[R^(l)] E[g1 g2] + L11 E[P_(l+1) R^(l) g1' g2] + L12 E[P_(l+1) R^(l) g1 g2']
                                 + L12 E[P_l] E[S g1' g2]      + L22 E[P_l] E[S g1 g2'],
    products of polynomials in one variance each: few terms, and none negative that P, R and the means do not make so.
    """
    det, L11, L12, L22, _ = tilt
    bare: list[sp.Expr] = []
    edges = []  # (P, R, factor where gate 1 is differentiated, factor where gate 2 is)
    for i, (average, above) in enumerate(stein(f.poly, mu[0], L11, len(f.poly))):
        rest = _derivative(g.poly, i)
        ((other, below),) = stein(rest, mu[1], L22)
        if above and rest:
            edges.append((above, rest, (L12**i * L11, L12 ** (i + 1))))
        if average != 0:
            bare += [L12**i * average * other] if other != 0 else []
            edges += [((sp.Integer(1),), below, (average * L12 ** (i + 1), average * L12**i * L22))] if below else []
    heads = orthant(f.gate, g.gate, tilt, mu, e)
    terms = [Term(b * c, det, head) for c, head in heads for b in bare]
    steps = [_step("Stein", "bare gates and boundary terms", "")] if edges or bare not in ([], [1]) else []
    steps += [_orthant_step(f.gate, g.gate, heads)] if bare else []
    for side, (gated, partner) in enumerate(((f, g), (g, f))):
        for *polys, factors in edges:
            other = replace(partner, poly=polys[1 - side])
            for slope in gate_derivative(replace(gated, poly=polys[side])):
                inner, step = expect2(slope, other) if side == 0 else expect2(other, slope)
                terms += [replace(x, coef=factors[side] * x.coef) for x in inner]
                steps.append(step)
    return terms, list(dict.fromkeys(steps))


def _orthant_step(g1, g2, heads) -> Step:
    gates = " ".join(str(g.text(sp.Symbol(x))) for g, x in ((g1, "u"), (g2, "v")) if g)
    by = {ExpPhi2: "Phi2", Angle: "an arcsine", ExpNdtr: "erf"}
    found = next(
        (name for head, name in by.items() if any(value.has(head) for _, value in heads)),
        "a constant" if heads else "0",
    )
    return _step("Orthant", f"E[{gates}], {found}", "")


def orthant(g1, g2, tilt, mu, e):
    """exp(e) E[gate1 gate2] under the tilted, shifted Gaussian, as (coef, head): the Orthant rule."""
    _, L11, L12, L22, detL = tilt
    if g1 is None or g2 is None:
        (g, m, v) = (g2, mu[1], L22) if g1 is None else (g1, mu[0], L11)
        return [(c, head) for c, _, head in _bare1(g, m, v, e) if c != 0]
    low1, span1, s1, o1, e1 = _affine(g1)
    low2, span2, s2, o2, e2 = _affine(g2)
    m1, m2, v1, v2, c = s1 * mu[0] + o1, s2 * mu[1] + o2, s1**2 * L11 + e1, s2**2 * L22 + e2, s1 * s2 * L12
    x2 = s1**2 * s2**2 * detL + e2 * s1**2 * L11 + e1 * s2**2 * L22 + e1 * e2  # (1 - rho^2) v1 v2, no subtraction
    m1, m2 = tidy(m1), tidy(m2)
    plain = sp.exp(tidy(e))
    if m1 == 0 and m2 == 0:  # P = 1/4 + angle/(2 pi)
        mean = (low1 + HALF * span1) * (low2 + HALF * span2)
        out = [(sp.Rational(span1 * span2, 2) / sp.pi, plain * angle(c, x2)), (mean, plain)]
        return [(a, b) for a, b in out if a != 0]
    out = [(sp.Integer(span1 * span2), exp_phi2(e, m1, m2, v1, v2, c, x2)), (sp.Integer(low1 * low2), plain)]
    for coef, m, v in ((span1 * low2, m1, v1), (low1 * span2, m2, v2)):
        if coef:
            out.append((sp.Integer(coef), exp_ndtr(e, m, v)) if m != 0 else (sp.Rational(coef, 2), plain))
    return [(a, b) for a, b in out if a != 0]


def angle(y, x2):
    """Angle(y, x^2) of rational arguments, scaled to polynomials (only y : x matters)."""
    numerator, denominator = tidy(y).as_numer_denom()
    return Angle(numerator, tidy(x2 * denominator**2))


def exp_phi2(e, m1, m2, v1, v2, c, x2):
    """exp(e) P(y1 >= 0, y2 >= 0) for means m, variances v, covariance c and x2 = v1 v2 - c^2."""
    e = tidy(e)
    h, k = over_root(m1, v1), over_root(m2, v2)
    th, tk = over_root(m2 * v1 - c * m1, v1 * x2), over_root(m1 * v2 - c * m2, v2 * x2)
    eh, ek = tidy(e - h**2 / 2), tidy(e - k**2 / 2)
    return ExpPhi2(e, eh, ek, _minus_half_square(eh, th), h, k, th, tk, tidy(c), tidy(x2))


def _slice(delta: Block, other: Block, swap: bool) -> tuple[list[Term], Step]:
    """E[delta^(j)(u - p) g(v)] = (-d/dp)^j [density(p) E[g(v) | u = p]], by Leibniz; d/dp acts on g as q12/q11 g'."""
    own, gate, coef = q22 if swap else q11, delta.gate, delta.poly[0]
    assert gate is not None
    p, j = gate.at, int(gate.kappa)
    if other == ONE:
        return expect1(delta, sp.Integer(0), own, sp.Integer(0)), _step("Slice", "density", "")
    mean, var, extra = q12 / own * p, Delta / own, -(p**2) / (2 * own)
    terms: list[Term] = []
    blocks: tuple[Block, ...] = (other,)
    for i in range(j + 1):
        slope = _slope_of_density(j - i, p, own)
        factor = coef * comb(j, i) * (-1) ** i * slope * (q12 / own) ** i / sp.sqrt(2 * sp.pi)
        if factor != 0:
            for block in blocks:
                for x in expect1(block, mean, var, extra):
                    terms.append(Term(factor * x.coef, own * x.rad, x.head))
        if i < j:
            blocks = differentiate(blocks)
    variable = "v" if swap else "u"
    return terms, _step("Slice", f"delta at {variable} = {p}", rf"\delta({variable} - {sp.latex(p)})")


def expectation(f: tuple[Block, ...], g: tuple[Block, ...]) -> tuple[list[Term], Step]:
    """`E[f(u) g(v)]` of two sums of blocks, collected, with the derivation."""
    terms, steps = [], []
    symmetric = f == g
    for i, x in enumerate(f):
        for j, y in enumerate(g):
            if symmetric and j < i:
                continue
            got, step = expect2(x, y)
            terms += got
            if symmetric and j > i:
                terms += got if _conjugate(x, y) else [swap(z) for z in got]
            steps.append(step)
    return collect(terms), Step("Sum over pairs", f"{len(steps)} pairs of blocks", "", tuple(steps))


def _conjugate(x: Block, y: Block) -> bool:
    """Whether E[x y] and E[y x] are conjugate, as two blocks of a real sum are: their real parts are then equal."""
    return not is_real(x.alpha) and x.alpha == y.alpha.conjugate() and x.beta == y.beta.conjugate()


_SWAP = {q11: q22, q22: q11}


def swap(term: Term) -> Term:
    """The term with u and v exchanged."""
    mirrored = {x: _TILTED[x].mirror for x in term.coef.free_symbols & set(_TILTED)}
    coef, rad, head = (x.xreplace(_SWAP | mirrored) for x in (term.coef, term.rad, term.head))
    return Term(coef, rad, head.replace(ExpPhi2, _swap_phi2), term.kept)


def _swap_phi2(e, eh, ek, er, h, k, th, tk, y, x2):
    er = ek - tk**2 / 2 if er.has(Delta) else er  # one form of er, so that equal heads are found equal
    return ExpPhi2(e, ek, eh, er, k, h, tk, th, y, x2)
