"""Bounds against true errors, which come from elsewhere: closed forms, or two-dimensional quadrature written here."""

import math
from functools import lru_cache

import numpy as np
import pytest
from flint import arb
from scipy.special import expit

from dualcalc import balls, codegen, dual
from dualcalc import bounds as B
from dualcalc.expansions import fixed_polynomial, hermite, second_moment, taylor, taylor_r

# ---- the truth ------------------------------------------------------------------------------------------------------

# text: the largest norm, the most layers, the range of W_std
CLOSED = {
    "Max(t, 0)": (5.0, 10, (1.0, 1.6)),
    "t*(1 + erf(t/sqrt(2)))/2": (4.0, 10, (0.8, 1.6)),
    "erf(t)": (4.0, 10, (0.5, 2.0)),
    "Piecewise((t, t > 0), (exp(t) - 1, True))": (5.0, 10, (0.8, 1.4)),
    "sin(2*t + 1/3)": (2.0, 10, (0.5, 1.5)),
    "exp(-t**2/2)": (4.0, 10, (0.5, 2.0)),
    "Max(-1, Min(1, t))": (4.0, 10, (0.5, 2.0)),
    "Max(t, 0) - Max(-t, 0)/5": (5.0, 10, (1.0, 1.5)),
    "Max(t, 0)**2": (2.0, 2, (0.3, 0.8)),
    "exp(t/2)": (2.0, 2, (0.5, 0.8)),
    "t**3 - t": (1.0, 1, (0.5, 1.0)),
}
SMOOTH = {
    "tanh(t)": (3.0, 10, (0.8, 2.0), np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "t/(1 + exp(-t))": (
        *(3.0, 10, (0.8, 1.4)),
        lambda x: x * expit(x),
        lambda x: expit(x) * (1 + x * expit(-x)),
    ),
    "log(1 + exp(t))": (3.0, 10, (0.5, 1.0), lambda x: np.logaddexp(0, x), expit),
}
NODES = np.arange(-106, 107) * 0.08  # the trapezoid rule: the poles of these are at least pi/6 away
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()


def expected(f):
    """E[f(u) f(v)] as a function of (q12, q11, q22), by the tensor trapezoid rule in (z, w), v = b (c z + s w)."""

    def kernel(q12, q11, q22):
        def one(x, y, z):
            a, b = math.sqrt(y), math.sqrt(z)
            c = min(max(x / (a * b), -1.0), 1.0)
            inner = f(b * (c * NODES[:, None] + math.sqrt(1 - c * c) * NODES)) @ WEIGHTS
            return (WEIGHTS * f(a * NODES)) @ inner

        return np.vectorize(one, otypes=[float])(q12, q11, q22)

    return kernel


@lru_cache
def truth(text):
    """k and kdot of (q12, q11, q22)."""
    if text in SMOOTH:
        return tuple(map(expected, SMOOTH[text][3:]))
    module = codegen.load(codegen.emit(dual.derive(text), "numpy"), "numpy")
    return module.k, module.kdot


def true_network(text, a, b, c, depth, W_std, b_std):
    """NNGP and NTK of pairs, and of (x, x), (y, y): their scales."""
    k, kdot = truth(text)
    w, bias = W_std**2, b_std**2
    q = [a * b * c, a * a, b * b]
    theta = list(q)
    for _ in range(depth):
        where = [(q[0], q[1], q[2]), (q[1],) * 3, (q[2],) * 3]
        slopes = [kdot(*x) for x in where]
        q = [w * k(*x) + bias for x in where]
        theta = [u + w * v * s for u, v, s in zip(q, theta, slopes, strict=True)]
        edge = np.sqrt(q[1] * q[2])
        q[0] = np.clip(q[0], -edge, edge)
    return (q[0], theta[0]), [np.sqrt(v[1] * v[2]) for v in (q, theta)]


ROUNDING = 1e-13  # of the truth, relative to its scale


def exceeded(error, bound, scale):
    """Where an error is beyond its bound, by more than the rounding of the truth."""
    return np.abs(error) > bound * (1 + 1e-9) + ROUNDING * scale


def pairs(rng, most, n):
    """Norms and cosines, the extreme ones among them; the first pair is the tight one."""
    a, b = np.exp(rng.uniform(np.log(0.05), np.log(most), (2, n)))
    c = rng.uniform(-1, 1, n)
    c[1:7] = 1, -1, 0, 1 - 1e-6, 1e-6 - 1, 0.99
    c[0], b[0] = 1, a[0]
    return a, b, c


# ---- the sweep ------------------------------------------------------------------------------------------------------


def one_layer(text, rng, n):
    """Errors of k_q and kdot_q against Parseval's bounds: (error, bound, scale), n pairs each."""
    a, b, c = pairs(rng, {**CLOSED, **SMOOTH}[text][0], n)
    q = a * b * c, a * a, b * b
    degree = int(np.exp(rng.uniform(0, np.log(120))))
    for order, bound in enumerate(x for x in B.error_bounds(text, degree, a, b, c) if x.approximant == "truncation"):
        f = truth(text)[order]
        scale = np.sqrt(f(q[1], q[1], q[1]) * f(q[2], q[2], q[2]))
        assert np.allclose(bound.relative * scale, bound.value, rtol=1e-12, atol=0)
        yield f(*q) - B.truncated(text, degree, *q, order), bound.value, scale


def networks(text, rng, n):
    """Errors of NNGP and NTK of a random network against their bounds, for pairs and uniform."""
    most, deepest, widths, *_ = {**CLOSED, **SMOOTH}[text]
    a, b, c = pairs(rng, most, n)
    degree, depth = int(np.exp(rng.uniform(0, np.log(120)))), int(rng.integers(1, deepest + 1))
    net = {"depth": depth, "W_std": rng.uniform(*widths), "b_std": rng.choice([0.0, 0.1, 0.5])}
    exact, scales = true_network(text, a, b, c, **net)
    values = B.truncated_network(text, degree, a, b, c, **net)
    bounds = B.network_bounds(text, degree, a, b, c, **net)
    rows = B.uniform_bounds(text, degree, np.concatenate([a, b]), **net)
    for true, value, bound, row, scale in zip(exact, values, bounds, rows, scales, strict=True):
        assert np.allclose(bound.relative * scale, bound.value, rtol=1e-11, atol=0)
        uniform = np.sqrt(row.value[:n] * row.value[n:])
        assert (bound.value <= uniform * (1 + 1e-9) + 2 * B.FLOOR * scale).all()
        yield true - value, bound.value, scale


def sweep(text, seed, repetitions, n):
    """All cases, and how many they are."""
    rng, count = np.random.default_rng(seed), 0
    for _ in range(repetitions):
        for error, bound, scale in (*one_layer(text, rng, n), *networks(text, rng, n)):
            assert not exceeded(error, bound, scale).any()
            count += error.size
    return count


@pytest.mark.parametrize("text", [*CLOSED, *SMOOTH])
def test_true_errors_are_within_the_bounds(text):
    assert sweep(text, 0, 1, 9) >= 36  # 14 activations: 504 cases


@pytest.mark.slow
@pytest.mark.parametrize("text", [*CLOSED, *SMOOTH])
def test_true_errors_are_within_the_bounds_exhaustively(text):
    assert sweep(text, 1, 10, 20) >= 800  # 11,200 cases


# ---- tight ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*CLOSED, *SMOOTH])
def test_parseval_is_the_error_at_equal_inputs(text):
    norms = np.array([0.25, 0.5, 1.0]) * CLOSED.get(text, SMOOTH.get(text))[0]
    for degree in (0, 1, 3, 10, 40):
        found = [x for x in B.error_bounds(text, degree, norms) if x.approximant == "truncation"]
        for order, bound in enumerate(found):
            scale = bound.value / bound.relative
            exact = truth(text)[order](norms**2, norms**2, norms**2)
            error = exact - B.truncated(text, degree, norms**2, norms**2, norms**2, order)
            assert (np.abs(bound.value - error) <= 1e-10 * error + 4e-15 * scale).all()


@pytest.mark.parametrize("text", ["Max(t, 0)", "t*(1 + erf(t/sqrt(2)))/2", "tanh(t)"])
@pytest.mark.parametrize("depth", [2, 5, 10])
def test_networks_are_tight_at_equal_inputs_at_every_depth(text, depth):
    norms, net = np.array([0.7, 1.5]), {"depth": depth, "W_std": 1.4, "b_std": 0.2}
    exact, scales = true_network(text, norms, norms, 1.0, **net)
    values = B.truncated_network(text, 6, norms, **net)
    for true, value, bound, row, scale in zip(
        *(exact, values, B.network_bounds(text, 6, norms, **net), B.uniform_bounds(text, 6, norms, **net)),
        scales,
        strict=True,
    ):
        assert (np.abs(bound.value - (true - value)) <= 1e-10 * bound.value + 1e-13 * scale).all()
        assert (row.value >= bound.value * (1 - 1e-12)).all()


def test_a_bound_that_is_too_small_is_caught():
    for text in ("Max(t, 0)", "erf(t)", "tanh(t)"):
        rng = np.random.default_rng(2)
        a, b, c = pairs(rng, 2.0, 10)
        q = a * b * c, a * a, b * b
        error = truth(text)[0](*q) - B.truncated(text, 4, *q)
        bound = B.error_bounds(text, 4, a, b, c)[0].value
        assert not exceeded(error, bound, 1.0).any()
        assert exceeded(error, bound / 1.1, 1.0)[0]
        net = {"depth": 4, "W_std": 1.3, "b_std": 0.1}
        exact, _ = true_network(text, a, b, c, **net)
        values = B.truncated_network(text, 4, a, b, c, **net)
        for true, value, found in zip(exact, values, B.network_bounds(text, 4, a, b, c, **net), strict=True):
            assert exceeded(true - value, found.value / 1.1, 1.0)[0]


def test_powers_are_bounded_and_nearly_attained():
    rng = np.random.default_rng(3)
    rho = rng.uniform(0.05, 1, 400)
    eps = rho * np.exp(rng.uniform(np.log(1e-14), np.log(2), 400))
    u = rng.uniform(-1, 1, (200, 400)) * rho
    v = np.clip(u + rng.uniform(-1, 1, (200, 400)) * eps, -rho, rho)
    for n, (power, change) in zip(range(40), B._powers(rho, eps), strict=False):
        assert np.allclose(power, rho**n, rtol=1e-13)
        assert (np.abs(u**n - v**n) <= change * (1 + 1e-9) + 1e-15).all()
        near = eps <= rho
        steps = -np.expm1(n * np.log1p(-np.minimum(eps[near] / rho[near], 1 - 1e-16)))
        assert np.allclose(change[near], rho[near] ** n * steps, rtol=1e-6)


# ---- the paper's formulas -------------------------------------------------------------------------------------------


def value(bounds, name):
    return next(x.value for x in bounds if x.name == name)


def fixed_kernel(r, a, b, c):
    """sum_l r_l(a) r_l(b) c^l of pairs."""
    return np.array([np.polynomial.polynomial.polyval(z, r(x) * r(y)) for x, y, z in zip(a, b, c, strict=True)])


@pytest.mark.parametrize("text", [x for x in (*CLOSED, *SMOOTH) if x not in ("exp(t/2)", "t**3 - t")])
def test_fixed_polynomials_are_within_every_bound(text):
    rng, k = np.random.default_rng(4), truth(text)[0]
    for degree in (1, 2, 5, 14):
        for nu in (1.0, 2.0):
            a, b, c = pairs(rng, nu, 10)
            error = k(a * b * c, a * a, b * b) - fixed_kernel(fixed_polynomial(text, degree, nu).r, a, b, c)
            for m in (1, 2, 3):
                found = [x for x in B.error_bounds(text, degree, a, b, c, nu=nu, m=m) if x.approximant != "truncation"]
                assert {x.name for x in found} >= {"triangle", "projection", "paper (10)"}
                for bound in found:
                    assert bound.proved
                    assert not exceeded(error, bound.value, bound.value / bound.relative).any(), bound.name


def test_every_formula_is_met():
    met = {x.name for text in ("Max(t, 0)", "tanh(t)") for x in B.error_bounds(text, 8, 1.0, m=2)}
    assert met | {"derivative"} == {f.name for f in B.FORMULAS}
    assert all(f.text[0] and f.text[1] for f in B.FORMULAS)


def test_10_holds_for_taylor_polynomials():
    text, series = "sin(t)", ("t", "-t**3/6", "+t**5/120", "-t**7/5040")
    rng, nu = np.random.default_rng(5), 2.0
    for terms in (2, 3, 4):
        degree = 2 * terms - 1
        assert np.allclose(taylor(text, degree)[1::2], [1, -1 / 6, 1 / 120, -1 / 5040][:terms], rtol=1e-14)
        eps = second_moment(f"sin(t) - ({' '.join(series[:terms])})", nu)
        a, b, c = pairs(rng, nu, 20)
        error = truth("sin(t)")[0](a * b * c, a * a, b * b)
        error -= fixed_kernel(lambda x, d=degree: taylor_r(text, d, x), a, b, c)
        found = B.error_bounds(text, degree, a, b, c, nu=nu, eps=eps)
        assert {x.name for x in found if x.approximant != "truncation"} == {"triangle", "paper (10)"}
        for name in ("triangle", "paper (10)"):
            assert not exceeded(error, value(found, name), 1.0).any()


@pytest.mark.parametrize("nu", [1.0, 3.0])
def test_12_holds_for_the_relu(nu):
    rng = np.random.default_rng(6)
    for degree in (1, 2, 4, 10, 30):
        a, b, c = pairs(rng, nu, 20)
        error = truth("Max(t, 0)")[0](a * b * c, a * a, b * b)
        error -= fixed_kernel(fixed_polynomial("relu", degree, nu).r, a, b, c)
        bound = value(B.error_bounds("relu", degree, a, b, c, nu=nu), "paper (12)")
        assert np.allclose(bound, np.sqrt(2 * nu**6 / (degree * a * b)), rtol=1e-14)
        assert not exceeded(error, bound, 1.0).any()
    assert "paper (12)" not in [x.name for x in B.error_bounds("2*Max(t, 0)", 5, 1.0)]


def test_11_has_two_readings_and_one_is_false():
    """s = h_5/sqrt(120), q = 4, k = 5, nu = a = b = c = 1: s~ = 0, so that the error is E[s^2] = 1."""
    text, q, k = "(t**5 - 10*t**3 + 15*t)/sqrt(120)", 4, 5
    assert np.allclose(hermite(text, 6, 1.0), [0, 0, 0, 0, 0, 1, 0], atol=1e-13)
    assert np.allclose(fixed_polynomial(text, q).orthonormal, 0, atol=1e-13)
    error = truth(text)[0](1.0, 1.0, 1.0)
    assert abs(error - 1) < 1e-13
    top = second_moment(text, 1.0, order=k) ** 0.5
    assert abs(top - 120**0.5) < 1e-12
    over_norms_alone = 5 * top * max(error**0.5, top) / (k * q ** (k - 1))
    assert abs(over_norms_alone - 600 / 1280) < 1e-12 and over_norms_alone < error
    found = B.error_bounds(text, q, 1.0, m=k)
    assert abs(value(found, "paper (11)") - 600 / 1280**0.5) < 1e-11
    assert all(x.value >= error * (1 - 1e-12) for x in found if x.of == "k")


def test_11_is_not_proved_where_q_is_near_k():
    """s = M + h_10/sqrt(10!), M large, q = 9, k = 10, a = b = 0.3: error 2 M |E h_10(aZ)|/sqrt(10!), in closed form."""
    k, q, a = 10, 9, 0.3
    top = math.sqrt(math.factorial(k))  # ||s^(k)||, at every norm
    mean = (1 - a * a) ** 5 * math.prod(range(1, k, 2)) / top
    error, bound = 2 * mean, 5 * top / (a * math.sqrt(k * q ** (k - 1)))  # in units of M = ||s||
    assert error > 1.2 * bound
    assert error <= 2 * top / (a * math.sqrt(math.perm(q + 1, k)))  # the derivative form holds
    assert 25 * math.perm(q + 1, k) < 4 * k * q ** (k - 1)  # and (11) does not follow from it here
    found = {x.name: x for x in B.error_bounds("tanh(t)", 5, 1.0, m=6)}
    assert not found["paper (11)"].proved and found["derivative"].proved
    assert "paper (11)" not in {x.name for x in B.error_bounds("tanh(t)", 5, 1.0, m=6, certified=True)}
    for m in (2, 3, 4):
        assert all(x.proved for q in (m - 1, m, 9, 40) for x in B.error_bounds("exp(-t**2/2)", q, 1.0, m=m))


# ---- certified ------------------------------------------------------------------------------------------------------


def in_balls(text, norm):
    """E[s(norm Z)^2] and norm^2 E[s'(norm Z)^2] from the closed form; the square of the norm is a float."""
    d, q = dual.derive(text), norm * norm
    return [balls.value(d.member(m, m), balls.environment(q, q, q)) * balls.exact(q) ** m for m in (0, 1)]


@pytest.mark.parametrize("text", ["Max(t, 0)", "t*(1 + erf(t/sqrt(2)))/2", "erf(t)", "sin(2*t + 1/3)"])
def test_certified_parseval_is_the_error_far_below_float64(text):
    for norm, degree in ((0.5, 5), (0.5, 14), (1.0, 40), (2.0, 30)):
        chat = hermite(text, degree, norm, certified=True)
        found = B.error_bounds(text, degree, norm, certified=True)
        with balls.precision(200):
            k, slope = in_balls(text, norm)
            errors = k - sum(x * x for x in chat), slope - sum(j * x * x for j, x in enumerate(chat))
            for error, bound in zip((errors[0], errors[1] / balls.exact(norm**2)), found[:2], strict=True):
                assert arb(float(bound.value)) > error  # rounded up
                if error > 1e-22:
                    assert arb(float(bound.value)) < error * arb(1 + 1e-10)


@pytest.mark.parametrize("text", ["Max(-1, Min(1, t))", "tanh(t)", "log(1 + exp(t))"])
def test_float64_tails_are_bounds(text):
    for norm in (0.3, 2.0):
        for degree in (3, 24):
            certified = B.error_bounds(text, degree, norm, certified=True)[:2]
            for x, y in zip(B.error_bounds(text, degree, norm)[:2], certified, strict=True):
                assert y.value <= x.value <= y.value * (1 + 1e-12) + 4.1e-15 * x.value / x.relative
                assert y.certified and y.proved and not x.certified


@pytest.mark.parametrize("text", ["erf(t)", "Max(-1, Min(1, t))", "Max(t, 0)"])
def test_certified_networks(text):
    a, b, c = np.array([1.0, 0.5]), np.array([1.0, 1.25]), np.array([1.0, 0.75])
    net = {"depth": 2, "W_std": 1.25, "b_std": 0.5}
    jump = 1e-6 if text == "Max(-1, Min(1, t))" else 0.0  # the rounding of norms moves a shifted jump of s'
    for bounds in (B.network_bounds, B.uniform_bounds):
        arguments = (a, b, c) if bounds is B.network_bounds else (a,)
        close = zip(bounds(text, 9, *arguments, **net), bounds(text, 9, *arguments, **net, certified=True), strict=True)
        for x, y in close:
            assert np.allclose(x.value, y.value, rtol=1e-9, atol=jump + 1e-14) and y.certified
            assert np.allclose(x.relative, y.relative, rtol=1e-9, atol=jump + 1e-14)
    exact, scales = true_network(text, a, b, c, **net)
    values = B.truncated_network(text, 9, a, b, c, **net)
    certified = B.network_bounds(text, 9, a, b, c, **net, certified=True)
    for true, value_, bound, scale in zip(exact, values, certified, scales, strict=True):
        assert not exceeded(true - value_, bound.value, scale).any()


def test_certified_networks_below_float64():
    nngp, ntk = B.network_bounds("erf(t)", 40, 0.5, 0.5, 1.0, depth=2, W_std=0.5, certified=True)
    assert nngp.value < ntk.value < 1e-13  # what rounding the inner norm to float64 costs stays
    assert B.error_bounds("erf(t)", 40, 0.5, certified=True)[0].value < 1e-22


@pytest.mark.parametrize("text, order", [("tanh(t)", 0), ("Max(-1, Min(1, t))", 0), ("Max(-1, Min(1, t))", 1)])
def test_rounded_norms_are_bounded(text, order):
    """||s(xZ) - s(aZ)|| on a grid, for a gap large enough to see."""
    from dualcalc.quadrature import profile

    p, z = profile(text), np.linspace(-9, 9, 200_001)
    density = np.exp(-z * z / 2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    for norm, radius in ((0.7, 1e-3), (2.0, 1e-2)):
        moved = max(
            np.sum((p(x * z, order) - p(norm * z, order)) ** 2 * density) for x in (norm - radius, norm + radius)
        )
        with balls.precision(128):
            bound = float(B._drift(p, norm, arb(radius), order))
        assert math.sqrt(moved) <= bound <= 3 * math.sqrt(moved)


# ---- the degree -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, tol, norms", [("gelu", 1e-6, [0.5, 1.0, 2.0]), ("tanh(t)", 1e-4, 1.5), ("relu", 0.05, 1.0)]
)
def test_the_degree_is_the_smallest(text, tol, norms):
    rows = np.atleast_1d(norms)
    a, b = np.meshgrid(rows, rows)
    cosines = np.linspace(-1, 1, 9)[:, None, None]

    def errors(degree):
        found = [x for x in B.error_bounds(text, degree, a, b, cosines) if x.approximant == "truncation"]
        return [float(x.relative.max()) for x in found]

    degree = B.degree_for(text, tol, norms=norms)
    assert max(errors(degree)) <= tol < max(errors(degree - 1))
    assert B.degree_for(text, tol, norms=norms, get="nngp") <= degree
    deep = B.degree_for(text, tol, norms=norms, depth=3, W_std=1.2)
    found = B.network_bounds(text, deep, a, b, cosines, depth=3, W_std=1.2, get="ntk")
    assert len(found) == 1 and found[0].of == "ntk" and found[0].relative.max() <= tol
    less = B.uniform_bounds(text, deep - 1, norms, depth=3, W_std=1.2, get="ntk")[0]
    assert less.relative.max() > tol
    absolute = B.degree_for(text, tol, norms=norms, get="nngp", relative=False)
    assert float(B.error_bounds(text, absolute, a, b, cosines)[0].value.max()) <= tol


def test_the_degree_below_float64():
    with pytest.raises(ValueError, match="certified=True"):
        B.degree_for("erf(t)", 1e-20, norms=0.5)
    degree = B.degree_for("erf(t)", 1e-20, norms=0.5, certified=True)
    assert B.error_bounds("erf(t)", degree, 0.5, certified=True)[1].relative <= 1e-20
    assert B.error_bounds("erf(t)", degree - 1, 0.5, certified=True)[1].relative > 1e-20
    with pytest.raises(ValueError, match="inner norms"):
        B.degree_for("erf(t)", 1e-20, norms=0.5, depth=2, get="nngp", certified=True)


# ---- looseness ------------------------------------------------------------------------------------------------------


def test_looseness():
    norms, cosines = [0.5, 1.0, 2.0], [0.3, 0.9, -0.9]
    series = B.looseness("gelu", [2, 5, 8], cosines, norms)
    closed = B.looseness("gelu", [2, 5, 8], cosines, norms, truth=truth("t*(1 + erf(t/sqrt(2)))/2")[0])
    assert [x[:2] for x in series] == [(d, c) for c in cosines for d in (2, 5, 8)]
    assert all(1 <= x.median <= x.maximum and x.cases > 0 for x in series)
    for x, y in zip(series, closed, strict=True):
        assert y.cases == 0 or y.cases < 9 or abs(x.maximum / y.maximum - 1) < 2e-3
    (tight,) = B.looseness("tanh(t)", [5], [1.0], [1.5], order=1)
    assert tight.cases == 1 and abs(tight.maximum - 1) < 1e-9
    (relu,) = B.looseness("relu", [20], [0.9], norms)
    assert 2 < relu.median < 7
    assert B.looseness("relu", [20], [1.0], norms)[0].cases == 0  # degree 2000 does not settle it


# ---- interface ------------------------------------------------------------------------------------------------------


def test_shapes_and_parameters():
    a, b = np.array([0.5, 1.0, 2.0])[:, None], np.array([1.0, 3.0])
    for bound in (*B.error_bounds("abrelu", 4, a, b, 0.5, A=0.2, B=1.1), *B.network_bounds("erf", 4, a, b, 0.5)):
        assert bound.value.shape == bound.relative.shape == (3, 2)
    one = B.error_bounds("relu", 4, 1.0)[0]
    assert np.ndim(one.value) == 0 and str(one).startswith("Parseval, k, truncation: ")
    assert B.truncated("gelu", 30, 0.4, np.array([1.3, 0.7])[:, None], np.array([0.7, 1.0, 2.0])).shape == (2, 3)
    deep = B.truncated_network("erf", 4, a, b, 0.5, depth=2, get="nngp")
    assert deep.nngp.shape == (3, 2) and deep.ntk is None
    kinds = [x.of for x in B.error_bounds("sign(t)", 4, 1.0)]
    assert "k" in kinds and "kdot" not in kinds
    assert B.network_bounds("sign(t)", 4, 1.0, depth=2, get="nngp")[0].value < 1


def test_norms_beside_one_another_do_not_matter():
    a = np.array([0.3, 1.0, 2.5])
    together = B.error_bounds("gelu", 6, a)
    for i, norm in enumerate(a):
        for x, y in zip(together, B.error_bounds("gelu", 6, norm, nu=2.5), strict=True):
            assert np.allclose(x.value[i], y.value, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: B.error_bounds("gelu", -1, 1.0), "degree = -1; expected"),
        (lambda: B.error_bounds("gelu", 2.5, 1.0), "degree = 2.5; expected"),
        (lambda: B.error_bounds("gelu", 5, 0.0), "expected positive finite"),
        (lambda: B.error_bounds("gelu", 5, 1.0, 1.0, 1.5), "expected cosines"),
        (lambda: B.error_bounds("gelu", 5, 2.0, nu=1.0), "nu = 1.0; expected .* at least 2"),
        (lambda: B.error_bounds("exp(t**2)", 5, 1.0), "square-integrable"),
        (lambda: B.network_bounds("sign(t)", 5, 1.0), 'get="nngp"'),
        (lambda: B.network_bounds("gelu", 5, 1.0, get="kernel"), "expected 'nngp', 'ntk' or both"),
        (lambda: B.degree_for("relu", 1e-6), "no degree .* compile"),
        (lambda: B.degree_for("exp(-t**2/2)", 1e-9, norms=40.0, get="nngp"), "square of the norm"),
        (lambda: B.degree_for("gelu", 0.0), "expected a positive"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
