"""Profiles, Hermite and Taylor coefficients: against mpmath, exact formulas, balls at twice the precision, NumPy."""

import importlib.util
import json
import math
import time
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from flint import arb
from numpy.polynomial import Polynomial, hermite, hermite_e

import dualcalc as dc
from dualcalc import catalog, certified
from dualcalc.balls import precision
from dualcalc.expansions import (
    NORM,
    convert,
    fixed_polynomial,
    growth,
    profile,
    second_moment,
    taylor,
    taylor_r,
)
from dualcalc.parsing import t
from dualcalc.pieces import NUMPY, STABLE, Erfc, Expm1, Program, Sigmoid, Softplus, split, stable

FIGURE1 = json.loads((Path(__file__).parent / "data" / "figure1.json").read_text())
NAMED = ("tanh", "silu", "softplus", "mish", "gelu", "relu", "elu", "hard_swish", "softsign")
POINTS = (-200.0, -37.3, -6.1, -1.7, -0.3, 1e-4, 0.4, 2.2, 5.9, 41.0, 200.0)
ENTRIES = [name for name in catalog.load() if catalog.get(name).kernel is None]
WIDE = ("rectified_monomial", "hermite", "exp", "sinh", "cosh", "elu", "selu", "gelu", "sign", "tanh_gelu", "morlet")

# an activation, its breaks, its jumps, its parity
SHAPES = {
    "Max(t, 0)": ((0,), (), None),
    "Abs(t)": ((0,), (), 1),
    "sign(t)": ((0,), (0,), -1),
    "t*Heaviside(t - 1)": ((1,), (1,), None),
    "Max(-1, Min(1, t))": ((-1, 1), (), -1),
    "Max(1 - Abs(t), 0)": ((-1, 0, 1), (), 1),
    "Abs(t**2 - 2)": ((-math.sqrt(2), math.sqrt(2)), (), 1),
    "Heaviside(t**3)": ((0,), (0,), None),
    "Abs(t**3 - t)": ((-1, 0, 1), (), 1),
    "Max(exp(t) - 1, 0)": ((0,), (), None),
    "Piecewise((t, t < -1), (exp(t), 1 < t), (sin(t), True))": ((-1, 1), (-1, 1), None),
    "Piecewise((1, -1 < t < 1), (0, True))": ((-1, 1), (-1, 1), 1),
    "Max(t, tanh(t)/2, -1)": ((0,), (), None),
    "sign(t)*Abs(t)": ((), (), -1),
    "t/(1 + Abs(t))": ((0,), (), -1),
    "Abs(erf(t) - 1/2)": ((0.47693627620446987,), (), None),
    "cos(t)*tanh(t)": ((), (), -1),
    "sqrt(1 + t**2)": ((), (), 1),
    "tanh(t) + exp(-t**2)": ((), (), None),
    "1/(1 + exp(-t)) - 1/2": ((), (), -1),
}


def exact_profile(name):
    """The activation of a profile as an mpmath function."""
    return sp.lambdify(t, profile(name).activation, "mpmath")


# ---- profiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENTRIES)
def test_profile_values(name):
    """s and s' at points up to 200, against mpmath at 400 digits (which evaluates the formula as it stands)."""
    p, f = profile(name), exact_profile(name)
    with mp.workdps(400):
        for order in (0, 1):
            for x in POINTS:
                truth = mp.diff(f, mp.mpf(x), order) if order else f(mp.mpf(x))
                value = float(p(np.array([x]), order)[0])
                # cancellation within a formula as written (sums of monomials, sin(5 t)) is the argument's condition
                scale = abs(truth) + (0 if abs(x) > 10 else 1) + 1e-290
                assert abs(value - truth) <= 4e-15 * (1 + abs(x)) * scale, (order, x, value, truth)


@pytest.mark.parametrize("text", SHAPES)
def test_shapes(text):
    p = profile(text)
    breaks, jumps, parity = SHAPES[text]
    assert p.breaks == pytest.approx(breaks, abs=1e-15) and len(p.breaks) == len(breaks)
    assert p.jumps == pytest.approx(jumps, abs=1e-15) and p.parity == parity


def test_values_at_breaks_and_outside():
    step = profile("Heaviside(t)")
    assert step(np.array([-1.0, 0.0, 2.0])).tolist() == [0.0, 0.5, 1.0]
    assert profile("Abs(t)")(np.array([0.0]), 1) == 0
    assert profile("3")(np.array([[1.0, 2.0]])).tolist() == [[3.0, 3.0]]
    even, odd = profile("exp(t)").even_odd
    x = np.linspace(-2, 2, 7)
    assert np.allclose(even(x), np.cosh(x), rtol=1e-15) and np.allclose(odd(x), np.sinh(x), atol=1e-15)


STRIPS = {
    "tanh": math.pi / 2,
    "sigmoid": math.pi,
    "softplus": math.pi,
    "mish": 3 * math.pi / 4,  # 1 + exp(t) = +-i
    "quick_gelu": math.pi / 1.702,
    "softsign": 1.0,
    "atan(3*t)": 1 / 3,
    "1/(1 + t**2)": 1.0,
    "relu": math.inf,
    "erf": math.inf,
    "exp(-t**4)": math.inf,
    "sqrt(Abs(t))": 0.0,
}


@pytest.mark.parametrize("text", STRIPS)
def test_strip(text):
    assert profile(text).strip == pytest.approx(STRIPS[text], rel=1e-9)


def test_profiles_pass_through_and_take_defaults():
    p = profile("tanh")
    assert profile(p) is p
    assert profile(dc.derive("gelu")).activation == profile("gelu").activation
    assert float(profile("celu")(-1.0)) == pytest.approx(2 * math.expm1(-0.5))  # the catalog's A = 2
    assert float(profile("celu", A=1)(-1.0)) == pytest.approx(math.expm1(-1))
    assert float(profile("sin(A*t)", A=0.5)(1.0)) == pytest.approx(math.sin(0.5))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: profile("sin(A*t)"), "the parameter A .* has no value"),
        (lambda: profile("normalized_gaussian"), "defined by its kernel"),
        (lambda: profile(profile("tanh"), A=1), "has no parameters left"),
        (lambda: profile(sp.gamma(t**2 + 1)), "gamma .* is not known"),
        (lambda: profile(sp.Piecewise((t, t > 0))), "no value at t"),
    ],
)
def test_profile_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_switches_too_near_are_not_certain():
    for text in ("Abs(t) + Abs(t - 1e-10)", "Piecewise((Abs(t - 1e-10), t > 0), (0, True))", "Abs(1 - cos(t))"):
        assert not profile(text).parts.proved
    for text in ("Max(0, Min(1, t))", "Abs(Abs(t) - 1)", "Abs(t**2 - 2) + Heaviside(2 - t**2)", "Abs(erf(t)) + Abs(t)"):
        assert profile(text).parts.proved
    assert profile("Abs(sin(t))").parts.reach == 256 and profile("Max(exp(t) - 1, 0)").parts.reach == math.inf


REWRITES = {  # one example of every rewrite
    "exponent_form": (2**t, sp.exp(t * sp.log(2))),
    "softplus_form": (sp.log(3 + 2 * sp.exp(t)), sp.log(3) + Softplus(t + sp.log(sp.Rational(2, 3)))),
    "sigmoid_form": ((1 + sp.exp(-t)) ** -2, Sigmoid(t) ** 2),
    "complement_form": (3 * sp.erf(t) - 3 + t, t - 3 * Erfc(t)),
    "slope_form": (2 - 2 * sp.tanh(t) ** 2, 8 * Sigmoid(2 * t) * Sigmoid(-2 * t)),
}


@pytest.mark.parametrize("rewrite", STABLE, ids=lambda r: r.__name__)
def test_rewrites(rewrite):
    before, after = REWRITES[rewrite.__name__]
    assert sp.expand(rewrite(before) - after) == 0 and sp.expand(stable(before) - after) == 0
    x = np.array([-1.3, 0.2, 2.1])
    plain = sp.lambdify(t, before, "scipy")(x)
    assert np.allclose(Program(stable(before))(x, NUMPY), plain, rtol=1e-14)
    assert rewrite(sp.sin(t) + 1) == sp.sin(t) + 1


def test_stable_forms_are_accurate_where_the_text_is_not():
    assert stable(sp.exp(t) - 1) == Expm1(t)
    for text, x, truth in (("exp(t) - 1", 1e-9, math.expm1(1e-9)), ("t*(1 + erf(t/sqrt(2)))/2", -12.0, -2.13178e-32)):
        assert float(profile(text)(x)) == pytest.approx(truth, rel=1e-5)
    assert float(profile("t*t + sqrt(2)*t + t")(2.0)) == pytest.approx(6 + 2 * math.sqrt(2), rel=1e-15)


# ---- float64 against balls ------------------------------------------------------------------------------------------

balls = {}


def enclosed(name, degree, norm):
    if (name, degree, norm) not in balls:
        balls[name, degree, norm] = dc.hermite(name, degree, norm, certified=True)
    return balls[name, degree, norm]


def relative_error(name, degree, norm):
    """max |chat_j error| / ||s||, against balls of radius 1e-30."""
    c, value = enclosed(name, degree, norm), dc.hermite(name, degree, norm)
    assert max(float(x.rad()) for x in c) < 1e-28
    return max(float(abs(x - arb(v)).upper()) for x, v in zip(c, value, strict=True)) / math.sqrt(
        float(c.second_moment.mid())
    )


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(("degree", "norm"), [(120, 0.2), (500, 5.0)])
def test_float64(name, degree, norm):
    assert relative_error(name, degree, norm) <= 2e-15


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMED, "tanh_gelu", "erf", "gaussian", "morlet", "sign", "hardtanh", "sqnl"])
@pytest.mark.parametrize("norm", [0.2, 0.5, 1.0, 2.0, 3.5, 5.0])
def test_float64_everywhere(name, norm):
    assert relative_error(name, 500, norm) <= 2e-15


@pytest.mark.parametrize("name", ["tanh", "gelu", "relu", "softsign", "hard_swish", "sqnl"])
def test_many_norms_are_one_by_one(name):
    norms = np.array([5.0, 0.2, 0.7, 1.0, 3.3, 0.7])
    many = dc.hermite(name, 60, norms)
    assert many.shape == (6, 61) and (many[2] == many[5]).all()
    for row, a in zip(many, norms, strict=True):
        assert np.abs(row - dc.hermite(name, 60, float(a))).max() <= 2e-15 * math.sqrt(second_moment(name, a))
    moments = second_moment(name, norms)
    assert np.allclose(moments, [second_moment(name, float(a)) for a in norms], rtol=4e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "silu", "gelu", "relu", "softsign"])
def test_cost_of_many_norms(name):
    """20,000 norms at degree 100: at most 3 times the activation's values and the matrix product, side by side."""
    spec = importlib.util.spec_from_file_location("bench", Path(__file__).parents[1] / "benchmarks" / "expansions.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    assert bench.ratio(profile(name)) <= 3


def test_parity_is_exact():
    assert (dc.hermite("tanh", 40)[::2] == 0).all() and (dc.hermite("abs", 40)[1::2] == 0).all()
    assert (dc.hermite("tanh", 40, order=1)[1::2] == 0).all()


@pytest.mark.parametrize("name", ["tanh", "softplus", "relu", "hardtanh", "softsign"])
def test_derivatives(name):
    """E[s'(aZ) h_j] = E[s(aZ) h_(j+1)]/a."""
    a, c = 1.3, dc.hermite(name, 41, 1.3)
    slope = dc.hermite(name, 40, a, order=1)
    assert np.allclose(slope * a, np.sqrt(np.arange(1, 42)) * c[1:], atol=1e-14)
    certified_slope = dc.hermite(name, 40, a, order=1, certified=True)
    assert np.allclose([float(x.mid()) for x in certified_slope], slope, atol=1e-14)
    assert second_moment(name, a, 1) == pytest.approx(float(certified_slope.second_moment.mid()), rel=1e-14)


def test_singular_at_a_break():
    """sqrt(|t|) is not analytic at 0: graded panels; E sqrt|aZ| = sqrt(a) 2^(1/4) Gamma(3/4)/sqrt(pi)."""
    c = dc.hermite("sqrt(Abs(t))", 6, 2.0)
    assert c[0] == pytest.approx(math.sqrt(2) * 2**0.25 * math.gamma(0.75) / math.sqrt(math.pi), rel=1e-14)
    assert c[2] == pytest.approx(c[0] * 0.5 / math.sqrt(2), rel=1e-13)


EXACT = {  # chat_j(a) by the generating functions
    "exp(t)": lambda j, a: mp.exp(a * a / 2) * a**j / mp.sqrt(mp.factorial(j)),
    "sin(t)": lambda j, a: mp.exp(-a * a / 2) * a**j / mp.sqrt(mp.factorial(j)) * (j % 2) * (-1) ** ((j - 1) // 2),
    "exp(-t**2/2)": lambda j, a: (
        (1 - j % 2)
        * mp.sqrt(mp.factorial(j))
        / mp.factorial(j // 2)
        * (-a * a / (2 * (1 + a * a))) ** (j // 2)
        / mp.sqrt(1 + a * a)
    ),
    "Heaviside(t)": lambda j, a: (
        mp.mpf(1) / 2 if j == 0 else he(j - 1, 0) / mp.sqrt(2 * mp.pi * mp.factorial(j))  # integrated by parts
    ),
    "Max(t, 0)": lambda j, a: (
        a * mp.mpf(1) / (mp.sqrt(2 * mp.pi) if j == 0 else 2)
        if j < 2
        else a * he(j - 2, 0) / mp.sqrt(2 * mp.pi * mp.factorial(j))
    ),
}


def he(n, x):
    """The probabilists' polynomial."""
    before, current = mp.mpf(0), mp.mpf(1)
    for j in range(n):
        before, current = current, x * current - j * before
    return current


@pytest.mark.parametrize("text", EXACT)
def test_closed_forms(text):
    """Independent of all quadrature: float64 to 1e-15 of the norm, and inside the balls."""
    for a in (0.3, 1.0, 2.5):
        c, value = enclosed(text, 60, a), dc.hermite(text, 60, a)
        scale = math.sqrt(float(c.second_moment.mid()))
        with mp.workdps(50), precision(200):
            for j in range(61):
                truth = EXACT[text](j, mp.mpf(a))
                assert abs(value[j] - truth) <= 1e-15 * scale
                assert c[j].overlaps(arb(mp.nstr(truth, 45), 1e-42)) and float(c[j].rad()) < 1e-28 * scale


def test_mpmath_quadrature():
    with mp.workdps(30):
        for name, f in (("tanh", mp.tanh), ("softplus", lambda x: mp.log(1 + mp.exp(x)))):
            c = dc.hermite(name, 6, 1.5, certified=True)
            for j in (1, 2, 5):
                truth = mp.quad(
                    lambda z, f=f, j=j: f(1.5 * z) * he(j, z) * mp.npdf(z), mp.linspace(-14, 14, 29)
                ) / mp.sqrt(mp.factorial(j))
                assert abs(mp.mpf(c[j].mid().str(30, radius=False)) - truth) < 1e-26


# ---- certified ------------------------------------------------------------------------------------------------------


def check_enclosure(name, degree, norm):
    """Every ball of the set meets, and is not smaller than, the same at twice the digits."""
    p = profile(name)
    coarse = certified.enclose(p.parts, degree, norm, digits=18)
    fine = certified.enclose(p.parts, degree, norm, digits=36)
    pairs = [*zip(coarse, fine, strict=True)]
    pairs += [(getattr(coarse, m), getattr(fine, m)) for m in ("second_moment", "tail", "slope_moment", "slope_tail")]
    with precision(600):
        for a, b in pairs:
            assert (a is None) == (b is None)
            if a is not None:
                assert float(b.rad()) < 1e-2 * float(a.rad()) and a.contains(b), (name, norm)


@pytest.mark.parametrize("name", [*NAMED, "sign", "erf", "tanh_gelu", "exp"])
def test_enclosures(name):
    check_enclosure(name, 40, 1.7)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ENTRIES if n not in ("normalized_gaussian",)])
@pytest.mark.parametrize("norm", [0.2, 1.0, 3.0])
def test_every_enclosure(name, norm):
    check_enclosure(name, 60, norm)


PLANTED = {
    "rule_error": lambda *args: -200.0,  # every panel passes as it is
    "sup": lambda *args: -200.0,
    "hermite_bound": lambda *args: -200.0,
    "tail_bound": lambda *args: -200.0,
    "growth_bound": lambda *args: certified.Envelope(-200.0),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bounds_are_caught(name, monkeypatch):
    fine = enclosed("tanh", 500, 5.0)
    monkeypatch.setattr(certified, name, PLANTED[name])
    coarse = certified.enclose(profile("tanh").parts, 500, 5.0, digits=15)
    with precision(1000):
        assert not all(a.contains(b) for a, b in zip((*coarse, coarse.tail), (*fine, fine.tail), strict=True))


def test_set():
    c = dc.hermite("relu", 30, 2.0, certified=True)
    assert len(c) == 31 and c.norm == 2.0 and len(c[3:6]) == 3 and isinstance(c[0], arb)
    assert c.second_moment.contains(2) and c.slope_moment.contains(2)  # a^2/2, twice
    sign = dc.hermite("sign", 30, certified=True)
    assert sign.slope_moment is None and sign.slope_tail is None and sign.second_moment.contains(1)
    exact_tail = 1 - sum(float(x.mid()) ** 2 for x in sign)
    assert float(sign.tail.mid()) == pytest.approx(exact_tail, rel=1e-12)


RADII = [(100, 1.0, 1e-20), (500, 10.0, 1e-25)]


@pytest.mark.parametrize(("degree", "_", "radius"), RADII)
@pytest.mark.parametrize("norm", [0.2, 5.0])
def test_radii(degree, _, radius, norm):
    c = enclosed("tanh", degree, norm)
    assert max(float(x.rad()) for x in (*c, c.tail, c.slope_tail)) <= radius


@pytest.mark.slow
@pytest.mark.parametrize(("degree", "seconds", "radius"), RADII)
@pytest.mark.parametrize("name", NAMED)
def test_seconds(degree, seconds, radius, name):
    for norm in (0.2, 1.0, 5.0):
        times = []
        for _ in range(2):
            start = time.perf_counter()
            c = dc.hermite(name, degree, norm, certified=True)
            times.append(time.perf_counter() - start)
        assert max(float(x.rad()) for x in (*c, c.tail, c.slope_tail)) <= radius and min(times) <= seconds


def test_envelopes_hold():
    """|s| and |s'| on a wide grid, against the growth bounds that the tails stand on."""
    x = np.concatenate([np.linspace(-40, 40, 4001), [-1e3, -300.0, 300.0, 1e3]])
    texts = (
        "log(1 + t**2)/cosh(t)",
        "1/(2 + sin(t))",
        "exp(-exp(t))",
        "atan(2*t)*sqrt(1 + t**2)",
        "exp(tanh(t))",
        "2**t",
    )
    for text in (*ENTRIES, *texts):
        p = profile(text)
        for order in (0, 1):
            c, d, b, a = certified.growth_bound(p.parts, order)
            with np.errstate(all="ignore"):
                values = np.log(np.abs(p(x, order)))
            bound = c + d * np.log1p(np.abs(x)) + b * np.abs(x) + a * x * x
            seen = np.isfinite(values) & (values > -700)  # beyond, float64 is not accurate
            assert (values[seen] <= bound[seen] + 1e-9).all(), (text, order)


def test_hermite_bound_holds():
    rng = np.random.default_rng(1)
    for _ in range(300):
        j, x, y = int(rng.integers(1, 120)), rng.uniform(0, 12), rng.uniform(0, 4)
        z = mp.mpc(x + rng.exponential(), rng.uniform(-y, y))
        value = abs(he(j, z) * mp.exp(-z * z / 2)) / mp.sqrt(mp.factorial(j))
        for degree in (j, j + 40):
            assert mp.log(value) <= certified.hermite_bound(degree, x, y) + 1e-12


# ---- refusals -------------------------------------------------------------------------------------------------------

REFUSALS = [
    (("exp(t**2)",), {"norm": 0.5}, "not square-integrable at the norm 0.5.*below 0.5"),
    (("exp(t**2)",), {"norm": 0.49}, "too large beyond"),
    (("exp(t**2)",), {"norm": 0.6, "certified": True}, "not square-integrable"),
    (("exp(t**4)",), {"norm": 0.01}, "no norm is small enough"),
    (("tanh",), {"norm": 0.0}, "expected a positive finite"),
    (("tanh",), {"norm": -1.0}, "expected a positive finite"),
    (("tanh",), {"norm": math.inf}, "expected a positive finite"),
    (("tanh",), {"norm": [1.0, math.nan]}, "expected a positive finite"),
    (("tanh",), {"norm": [[1.0]]}, "one-dimensional"),
    (("tanh",), {"norm": []}, "one-dimensional"),
    (("tanh",), {"norm": 1e5}, "too many for a table"),
    (("tanh", -1), {}, "expected an integer from 0 to 2000"),
    (("tanh", 2001), {}, "expected an integer from 0 to 2000"),
    (("tanh", 2.5), {}, "expected an integer from 0 to 2000"),
    (("relu", 100), {"symbolic": True}, "from 0 to 64"),
    (("relu",), {"order": 2}, "derivative 1 jumps at t = 0; expected order at most 1"),
    (("sign",), {"order": 1}, "derivative 0 jumps at t = 0"),
    (("sign",), {"order": 1, "symbolic": True}, "a delta"),
    (("tanh",), {"order": -1}, "from 0 to 8"),
    (("tanh",), {"norm": [1.0, 2.0], "certified": True}, "one norm at a time"),
    (("Abs(sin(t))",), {"certified": True}, "not known for certain"),
    (("Abs(sin(t))",), {"norm": 30.0}, "known for .t. <= 256 only"),
    (("sqrt(Abs(t))",), {"certified": True}, "cannot be bounded"),
    (("Max(t, 0)**(5/2)",), {"certified": True}, "not seen to be analytic"),
    ((sp.tan(sp.tanh(t) / 2),), {"certified": True}, "cannot be bounded"),
    (("tanh",), {"symbolic": True}, "outside the closed class"),
    (("sin(A*t)",), {}, "has no value"),
    (("tanh",), {"A": 1}, "no parameter"),
]


@pytest.mark.parametrize(("args", "keywords", "said"), REFUSALS)
def test_refusals(args, keywords, said):
    with pytest.raises(ValueError, match=said):
        dc.hermite(*args, **keywords)


def test_just_inside_the_domain():
    """exp(t^2/9) at 4 a^2/9 < 1: chat_0 = (1 - 2 a^2/9)^(-1/2)."""
    assert dc.hermite("exp(t**2/9)", 4, 1.3)[0] == pytest.approx((1 - 2 * 1.69 / 9) ** -0.5, rel=1e-14)
    assert second_moment("exp(t**2/9)", 1.3) == pytest.approx((1 - 4 * 1.69 / 9) ** -0.5, rel=1e-13)


# ---- symbolic -------------------------------------------------------------------------------------------------------

CLOSED = ("relu", "gelu", "erf", "elu", "gaussian", "sin", "gabor", "hardtanh", "hard_swish", "abrelu", "exp", "morlet")


@pytest.mark.parametrize("name", CLOSED)
def test_symbolic(name):
    """chat_j(norm) as formulas: against float64 at two norms, every j."""
    formulas = dc.hermite(name, 12, symbolic=True)
    entry = catalog.get(name)
    values = {s: sp.Rational(str(entry.defaults[s.name])) for e in formulas for s in e.free_symbols - {NORM}}
    for a in (0.4, 1.75):
        c, scale = dc.hermite(name, 12, a), math.sqrt(second_moment(name, a))
        exact = [float(sp.N(e.subs(values).subs(NORM, sp.Rational(a)), 30)) for e in formulas]
        assert np.abs(c - exact).max() <= 1e-14 * max(scale, 1e-3), name


def test_symbolic_forms():
    relu = dc.hermite("relu", 4, symbolic=True)
    assert [sp.simplify(e) for e in relu[:4]] == [NORM / sp.sqrt(2 * sp.pi), NORM / 2, NORM / (2 * sp.sqrt(sp.pi)), 0]
    slope = dc.hermite("relu", 2, order=1, symbolic=True)
    assert slope[0] == sp.Rational(1, 2) and sp.simplify(slope[1] - 1 / sp.sqrt(2 * sp.pi)) == 0
    assert dc.hermite("sin(A*t)", 1, symbolic=True)[1].free_symbols == {NORM, sp.Symbol("A", real=True)}


@pytest.mark.parametrize("coefficients", [[1, -2, 0.5, 0, 0.1], [0, 0, 0, 1], [3]])
def test_polynomials_against_numpy(coefficients):
    """s(a z) in numpy's HermiteE basis, to 1e-12: float64, symbolic, Theorem 1, the fixed polynomial."""
    a, degree = 1.3, 6
    text = " + ".join(f"{c}*t**{j}" for j, c in enumerate(coefficients))
    scaled = Polynomial(coefficients)(Polynomial([0, a]))
    expected = np.zeros(degree + 1)
    e = hermite_e.poly2herme(scaled.coef)
    expected[: len(e)] = e * np.sqrt([math.factorial(j) for j in range(len(e))])
    symbolic = [float(x.subs(NORM, sp.Rational("1.3"))) for x in dc.hermite(text, degree, symbolic=True)]
    for found in (
        dc.hermite(text, degree, a),
        symbolic,
        taylor_r(text, degree, a),
        fixed_polynomial(text, degree, 0.7).r(a),
    ):
        assert np.abs(np.array(found) - expected).max() <= 1e-12


# ---- Taylor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "tanh(t)",
        "sigmoid(t)",
        "softplus(t)",
        "t*tanh(softplus(t))",
        "erf(t)",
        "t*Phi(t)",
        "exp(t)*sin(2*t)",
        "2**t",
        "atan(2*t)",
    ]
    + ["sqrt(1 + t**2)", "cosh(t) - 1/cosh(t)", "log(2 + sin(t))", "exp(t) - 1", "(2 + t**2)**(1/3)", "3", "sinh(t)/3"],
)
def test_taylor(text):
    with mp.workdps(60):
        truth = mp.taylor(exact_profile(text), 0, 12)
        assert np.allclose(taylor(text, 12), [float(x) for x in truth], rtol=1e-12, atol=1e-15)


def test_taylor_parity_and_refusal():
    assert (taylor("tanh", 30)[::2] == 0).all()
    assert taylor("hardtanh", 3).tolist() == [0, 1, 0, 0]  # of the piece around 0
    with pytest.raises(ValueError, match="not analytic at 0"):
        taylor("relu")
    with pytest.raises(ValueError, match="expected an integer"):
        taylor("sin", -1)


GROWTHS = {  # radius, order, type, threshold
    "exp(-t**2/2)": (math.inf, 2, 0.5, math.sqrt(0.5)),
    "erf(t)": (math.inf, 2, 1, 0.5),
    "t*Phi(t)": (math.inf, 2, 0.5, math.sqrt(0.5)),
    "exp(-t**2)*erf(t)": (math.inf, 2, 2, math.sqrt(1 / 8)),
    "exp(t**2)*erf(t)": (math.inf, 2, 1, 0.5),
    "erf(t)**2": (math.inf, 2, 2, math.sqrt(1 / 8)),
    "sin(t**2)": (math.inf, 2, 1, 0.5),
    "sin(3*t)": (math.inf, 1, 3, math.inf),
    "exp(t)": (math.inf, 1, 1, math.inf),
    "cosh(t)**2": (math.inf, 1, 2, math.inf),
    "t**5 - 1": (math.inf, 0, 0, math.inf),
    "exp(-t**4)": (math.inf, 4, 1, 0),
    "exp(sin(t))": (math.inf, math.inf, math.inf, 0),
    "tanh(t)": (math.pi / 2, math.inf, math.inf, 0),
    "softplus(t)": (math.pi, math.inf, math.inf, 0),
    "Max(t, 0)": (0, math.inf, math.inf, 0),
    "Max(-1, Min(1, t))": (1, math.inf, math.inf, 0),
}


@pytest.mark.parametrize("text", GROWTHS)
def test_growth(text):
    g = growth(text)
    assert (g.radius, g.order, g.type, g.threshold) == pytest.approx(GROWTHS[text], rel=1e-12)


@pytest.mark.parametrize("A", [0.5, 0.2, 3.0])
def test_gaussian_threshold(A):
    limit = 1 / math.sqrt(4 * A)
    taylor_r("exp(-A*t**2)", 10, limit * (1 - 1e-9), A=A)
    with pytest.raises(ValueError, match=f"for norms below {str(limit)[:9]}"):
        taylor_r("exp(-A*t**2)", 10, limit * (1 + 1e-9), A=A)


def test_other_thresholds():
    taylor_r("erf", 10, 0.5 * (1 - 1e-12))
    with pytest.raises(ValueError, match="for norms below 0.5 only, and 0.5 came"):
        taylor_r("erf", 10, 0.5)
    for norm in (1.0, 5.0, 50.0):
        taylor_r("sin", 10, norm), taylor_r("exp", 10, norm)
    for name in ("tanh", "softplus", "mish", "relu"):
        with pytest.raises(ValueError, match="converges in L2 at no norm"):
            taylor_r(name, 10, 1e-6)


def test_the_series_converges_inside_its_threshold_and_not_outside():
    """Theorem 1 at growing degree: r_0 tends to chat_0 below 1/(4A), and grows beyond (by the same sums)."""
    A = 0.5
    for a in (0.5, 0.65):
        truth = dc.hermite("gaussian", 4, a)
        errors = [np.abs(taylor_r("gaussian", q, a)[:5] - truth).max() for q in (40, 160)]
        assert errors[1] < errors[0] * 0.1
    coefficients = taylor("gaussian", 80)[::2]
    terms = [abs(c) * math.prod(range(1, 2 * i, 2)) * 1.2 ** (2 * i) for i, c in enumerate(coefficients)]
    assert 1.2**2 > 1 / (4 * A) and terms[-1] > terms[5]
    with pytest.raises(ValueError, match="one norm at a time"):
        taylor_r("sin", 3, [1.0, 2.0])


def test_taylor_r_is_the_hermite_expansion_of_the_polynomial():
    for name, a in (("erf", 0.4), ("gelu", 0.6), ("sin", 2.0)):
        q = 15
        polynomial = Polynomial(taylor(name, q))(Polynomial([0, a]))
        expected = np.zeros(q + 1)
        expected[: len(polynomial)] = hermite_e.poly2herme(polynomial.coef)
        expected *= np.sqrt([float(math.factorial(j)) for j in range(q + 1)])
        assert np.allclose(taylor_r(name, q, a), expected, rtol=1e-12, atol=1e-14)


# ---- Theorem 2, conventions -----------------------------------------------------------------------------------------


def test_fixed_polynomial():
    """At its own norm it is the truncation; at others r_l are the coefficients of s~, by numpy."""
    f = fixed_polynomial("gelu", 12, 1.5)
    assert np.allclose(f.r(1.5), dc.hermite("gelu", 12, 1.5), atol=1e-15)
    assert f.coefficients == pytest.approx(f.orthonormal / np.sqrt([float(math.factorial(j)) for j in range(13)]))
    for a in (0.3, 1.0, 2.0):
        power = Polynomial(convert(f.orthonormal, "power", 1.5))(Polynomial([0, a]))
        expected = hermite_e.poly2herme(power.coef) * np.sqrt([float(math.factorial(j)) for j in range(13)])
        assert np.allclose(f.r(a), expected, rtol=1e-11, atol=1e-12)
    x = np.linspace(-2, 2, 9)
    assert np.allclose(f(x), Polynomial(convert(f.orthonormal, "power", 1.5))(x), rtol=1e-12, atol=1e-12)


def test_the_fixed_polynomial_is_worse_and_diverges():
    for a in (0.5, 0.8):
        truth = dc.hermite("relu", 16, a)
        assert np.linalg.norm(fixed_polynomial("relu", 16, 1.0).r(a) - truth) > 1e-3 * a
    assert np.linalg.norm(fixed_polynomial("relu", 40, 1.0).r(2.0)) > 1e3


def test_conventions():
    a, z = 1.4, np.linspace(-3, 3, 11)
    chat = dc.hermite("exp(t/2)", 40, a)
    truth = np.exp(a * z / 2)
    assert np.allclose(hermite_e.hermeval(z, convert(chat, "probabilists")), truth, rtol=1e-12)
    assert np.allclose(hermite.hermval(z / math.sqrt(2), convert(chat, "physicists")), truth, rtol=1e-12)
    assert np.allclose(Polynomial(convert(chat[:25], "power", a))(a * z), truth, rtol=1e-9)
    c = convert(chat, "unnormalised")  # c_j = E[s h_j]/j!
    assert np.allclose(
        c * [math.factorial(j) for j in range(41)], chat * np.sqrt([float(math.factorial(j)) for j in range(41)])
    )
    assert (convert(chat, "orthonormal") == chat).all()
    for call, said in ((lambda: convert(chat, "legendre"), "expected one of"), (lambda: convert([], "power"), "shape")):
        with pytest.raises(ValueError, match=said):
            call()


# ---- Figure 1 -------------------------------------------------------------------------------------------------------


def truncation_errors(k, text, degrees, seed):
    """Relative Frobenius errors of truncating the kernel of 1000 random inputs at each degree."""
    x = np.random.default_rng(seed).standard_normal((1000, 256)) / 16
    q = np.sum(x * x, axis=1)
    gram, norms = x @ x.T, np.sqrt(q)
    np.fill_diagonal(gram, q)
    exact = np.asarray(k(gram, q[:, None] * np.ones_like(gram), q[None, :] * np.ones_like(gram)))
    c, chat = gram / np.outer(norms, norms), dc.hermite(text, max(degrees), norms)
    out, total, power = {}, np.zeros_like(c), np.ones_like(c)
    for j in range(max(degrees) + 1):
        total += np.outer(chat[:, j], chat[:, j]) * power
        power *= c
        if j in degrees:
            out[j] = np.linalg.norm(total - exact) / np.linalg.norm(exact)
    return out


@pytest.mark.parametrize("name", FIGURE1["activations"])
def test_figure1(name):
    text, wanted = FIGURE1["activations"][name], FIGURE1["relative_error"][name]
    degrees = [int(d) for d in wanted]
    k = dc.compile(text).k
    draws = [truncation_errors(k, text, degrees, seed) for seed in range(3)]
    for d in degrees:
        assert np.mean([e[d] for e in draws]) == pytest.approx(wanted[str(d)], rel=FIGURE1["tolerance"][name])


def test_split_is_remembered():
    assert split(profile("mish").activation) is profile("mish").parts
