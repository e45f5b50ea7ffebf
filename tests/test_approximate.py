"""Tables of kernels against kernels computed another way: mixtures of error functions and graded 2-D quadrature."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy.special import erf

from dualcalc import approximate
from dualcalc.approximate import build, gauss_hermite, kernel_table, kolmogorov, mixture_kernel
from dualcalc.expansions import profile, second_moment

from .tiers import thinned

ACTIVATIONS = {
    "tanh": "tanh(t)",
    "sigmoid": "sigmoid(t)",
    "silu": "t*sigmoid(t)",
    "softplus": "softplus(t)",
    "mish": "t*tanh(softplus(t))",
    "tanh_gelu": "t/2*(1 + tanh(sqrt(2/pi)*(t + 0.044715*t**3)))",
    "softsign": "t/(1 + Abs(t))",
}
MIXED = ("tanh", "sigmoid", "silu", "softplus")
SPECIAL = (0.0, 1.0, -1.0, 1 - 1e-6, 1e-6 - 1, 1 - 1e-12, 1e-12 - 1, 0.999, -0.999)


# ---- an independent quadrature --------------------------------------------------------------------------------------


def half_line(top):
    """Gauss-Legendre panels on [0, top], each at most as long as its distance from 0, and at most 3/4."""
    ends = [0.0, 1e-6]
    while ends[-1] < top:
        ends.append(min(top, ends[-1] + min(0.75, ends[-1])))
    x, w = leggauss(10)
    half, middle = np.diff(ends) / 2, (np.array(ends)[1:] + np.array(ends)[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


NEAR, NEAR_WEIGHTS = half_line(9.0)
FAR, FAR_WEIGHTS = half_line(18.5)
U = np.concatenate([-NEAR[::-1], NEAR])
U_WEIGHTS = np.concatenate([NEAR_WEIGHTS[::-1], NEAR_WEIGHTS]) * np.exp(-(U**2) / 2) / np.sqrt(2 * np.pi)


def quadrature(f, q12, q11, q22):
    """E[f(u) f(v)] with u = a x, v = b (c x + s z): panels graded towards u = 0, and for each u towards v = 0."""
    wide = [np.longdouble(q) for q in (q12, q11, q22)]
    product = wide[1] * wide[2]
    c = float(np.clip(wide[0] / np.sqrt(product), -1, 1))
    s = float(np.sqrt(max(product - wide[0] ** 2, np.longdouble(0)) / product))
    a, b = np.sqrt(q11), np.sqrt(q22)
    left = f(a * U) * U_WEIGHTS
    if s == 0:
        return float(left @ f(b * c * U))
    inner, start = 0.0, np.clip(-c * U / s, -9, 9)[:, None]
    for side in (1, -1):
        z = start + side * FAR
        density = np.where(np.abs(z) <= 9.3, np.exp(-np.minimum(z * z, 200) / 2), 0) / np.sqrt(2 * np.pi)
        inner = inner + np.sum(FAR_WEIGHTS * density * f(b * (c * U[:, None] + s * z)), axis=1)
    return float(left @ inner)


def covariances(count, norms, seed=0):
    """Random covariances: norms in range and at its ends, equal norms, cosines with all SPECIAL ones among them."""
    random = np.random.default_rng(seed)
    a, b = np.exp(random.uniform(*np.log(norms), (2, count)))
    ends = random.integers(0, 8, count)
    a[ends == 0], b[(ends == 0) & (random.random(count) < 0.5)] = norms[1], norms[1]
    a[ends == 1], b[(ends == 1) & (random.random(count) < 0.5)] = norms[0], norms[0]
    b = np.where(random.random(count) < 0.25, a, b)
    c = np.where(np.arange(count) % 3 == 0, random.choice(SPECIAL, count), random.uniform(-1, 1, count))
    q11, q22 = (np.clip(x * x, norms[0] ** 2, norms[1] ** 2) for x in (a, b))
    return np.clip(c, -1, 1) * np.sqrt(q11 * q22), q11, q22


@lru_cache
def built(name, tol, norms):
    return build(ACTIVATIONS[name], tol, norms)


def approximation(name, tol=1e-6, norms=approximate.NORMS):
    return built(name, tol, norms)


def errors(table, order, name, q, by=quadrature):
    """|table - truth| over sqrt(k11 k22), the latter as the table has it (tested on its own)."""
    s = profile(ACTIVATIONS[name])
    if by is mixture_kernel:
        truth, _ = mixture_kernel(name, *q, order=order)
    else:
        truth = np.array([by(lambda x: s(x, order), *row) for row in zip(*q, strict=True)])
    return np.abs(table(*q) - truth) / np.sqrt(table.diagonal(q[1]) * table.diagonal(q[2]))


def bounds_hold(name, tol, count, norms=approximate.NORMS):
    """k, kdot, kddot within their bounds, those within tol; `count` points, fewer where only the slow way is left."""
    found = approximation(name, tol, norms)
    assert max(found.error_bound) <= tol and found.kddot.error_bound <= max(100 * tol, 1e-6)
    assert found.method in ("theta-chebyshev", "hermite") and found.norms == norms
    for order, table in enumerate((found.k, found.kdot, found.kddot)):
        fast = name in MIXED and order < 2
        q = covariances(30 * count if fast else count, norms, seed=order)
        worst = errors(table, order, name, q, mixture_kernel if fast else quadrature).max()
        assert worst <= table.error_bound, (name, order, worst, table.error_bound)


# ---- the bounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", thinned(ACTIVATIONS, {"mish", "tanh_gelu"}))
def test_bounds_at_1e_6(name):
    bounds_hold(name, 1e-6, 10)


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-6, 1e-10])
@pytest.mark.parametrize("name", thinned(ACTIVATIONS, {"mish", "tanh_gelu"}))
def test_bounds_at_many_points(name, tol):
    bounds_hold(name, tol, 300)


@pytest.mark.parametrize("norms", [(0.5, 2.0), (1e-3, 0.3), (3.0, 3.1)])
def test_other_ranges(norms):
    for name in ("tanh", "silu"):
        bounds_hold(name, 1e-8, 4, norms)


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-3, 1e-10, 1e-11])
@pytest.mark.parametrize("norms", [(0.5, 2.0), (1e-5, 0.5), (2.0, 30.0)])
def test_other_ranges_and_tolerances(norms, tol):
    for name in ("tanh", "silu", "softplus"):
        bounds_hold(name, tol, 20, norms)


def test_a_dropped_term_is_caught():
    table = approximation("tanh").k
    last = table.odd.features.copy()
    weakest = np.argmin(np.abs(last).sum(axis=1))
    last[weakest] = 0
    broken = replace(table, odd=replace(table.odd, features=last))
    a = np.geomspace(*table.norms, 300)
    q = (a[:, None] * a, (a * a)[:, None], (a * a)[None])
    scale = np.sqrt(table.diagonal(q[1]) * table.diagonal(q[2]))
    assert np.max(np.abs(broken(*q) - table(*q)) / scale) > 0.02 * table.error_bound  # what dropping it costs is seen
    last[:] = 1.01 * table.odd.features  # a wrong table is beyond the bound
    assert errors(
        replace(table, odd=replace(table.odd, features=last)), 0, "tanh", covariances(9, table.norms)
    ).max() > (table.error_bound)


@pytest.mark.parametrize(("norms", "most"), [(approximate.NORMS, (60, 110)), ((0.5, 2.0), (24, 34))])
def test_few_terms(norms, most):
    """What a pair costs, of tanh at 1e-6."""
    found = approximation("tanh", 1e-6, norms)
    assert (found.k.terms <= most[0]) and (found.kdot.terms <= most[1])


# ---- the form -------------------------------------------------------------------------------------------------------


def test_parts():
    tanh, silu, sigmoid = (approximation(name).k for name in ("tanh", "silu", "sigmoid"))
    assert tanh.even is None and tanh.constant == tanh.linear == 0
    assert silu.odd is None and silu.linear == 0.25 and silu.constant == 0
    assert sigmoid.even is None and sigmoid.constant == 0.25
    assert approximation("silu").kdot.constant == 0.25
    for part in (*tanh.parts, *silu.parts):
        assert sum(part.ranks) == part.terms == len(part.features) and set(part.signs) <= {-1, 1}
        assert part.ranks[-1] > 0 and part.degree == len(part.ranks) - 1


def test_symmetric_and_broadcasting():
    table = approximation("mish").kdot
    x = np.random.default_rng(1).standard_normal((20, 30)) / 5
    gram, norms = x @ x.T, (x * x).sum(axis=1)
    gram = (gram + gram.T) / 2
    k = table(gram, norms[:, None], norms[None])
    assert k.shape == (20, 20) and np.array_equal(k, k.T)
    assert np.allclose(k[3, 5], table(gram[3, 5], norms[3], norms[5]), rtol=1e-13)
    assert np.allclose(np.diagonal(k), table.diagonal(norms), rtol=2 * table.error_bound)


def test_odd_kernels_are_odd():
    table = approximation("tanh").k
    q12, q11, q22 = covariances(50, table.norms)
    assert np.array_equal(table(-q12, q11, q22), -table(q12, q11, q22))


def test_outside():
    table = approximation("tanh").k
    low, high = (x * x for x in table.norms)
    assert np.isnan(table(0.0, [low / 1.001, high * 1.001, 0.0, -1.0], 1.0)).all()
    assert np.isfinite(table(0.0, [low, high], 1.0)).all()
    assert np.isnan(table([1.001, -1.001], 1.0, 1.0)).all() and np.isfinite(table([1.0, -1.0], 1.0, 1.0)).all()


@pytest.mark.parametrize("name", ["tanh", "silu", "softsign"])
def test_diagonal(name):
    found = approximation(name)
    a = np.geomspace(*found.norms, 50)
    for order, table in enumerate((found.k, found.kdot, found.kddot)):
        goal = 2e-9 if order < 2 else 2e-7  # a thousandth of the tolerance
        assert np.allclose(table.diagonal(a * a), second_moment(ACTIVATIONS[name], a, order), rtol=goal, atol=0)


def test_small_norms_take_powers():
    found = build("tanh(t)", 1e-10, (1e-3, 0.3))
    assert found.method == "hermite" and found.k.basis == "power" and found.k.terms <= 10
    assert all(rank == 1 for rank in found.k.odd.ranks)


def test_what_is_not_there():
    jump = build("sign(t)*atan(1 + Abs(t))", 1e-4, (0.5, 2.0))
    assert jump.kdot is None and jump.kddot is None and np.isnan(jump.error_bound[1])
    kink = build("Piecewise((tanh(t), t < 0), (2*t, True))", 1e-4, (0.5, 2.0))
    assert kink.kdot is not None and kink.kddot is None
    line = build("3 + 2*t", 1e-6, (0.5, 2.0))
    assert line.k.terms == 0 and np.isclose(line.k(0.3, 1.0, 1.0), 9 + 4 * 0.3, rtol=1e-14)
    assert line.kdot(0.3, 1.0, 1.0) == 4 and line.kddot is None


@pytest.mark.parametrize(
    ("activation", "tol", "norms", "reason"),
    [
        ("tanh(Max(t - 1, 0))", 1e-8, (0.5, 2.0), "not resolved in the radius: about .* can be reached"),
        ("exp(t**2/10)*tanh(t)", 1e-6, (1e-3, 10.0), "not square-integrable at the norm 10; .* a norm below 1.58114"),
        ("tanh(Max(t - 1, 0))", 1e-6, (1e-3, 1.0), "vanishes at the norm 0.001"),
        ("tanh(t)", 1e-15, (1e-3, 10.0), "tol = 1e-15, .* came"),
        ("tanh(t)", 1e-6, (2.0, 1.0), "norms = .* came"),
    ],
)
def test_refusals(activation, tol, norms, reason):
    with pytest.raises(ValueError, match=reason):
        build(activation, tol, norms)


# ---- bare kernels ---------------------------------------------------------------------------------------------------


def relu(q12, q11, q22):
    theta = np.arccos(np.clip(q12 / np.sqrt(q11 * q22), -1, 1))
    return np.sqrt(q11 * q22) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)


@pytest.mark.parametrize(
    "kernel", [relu, lambda q12, q11, q22: np.sqrt(q11 * q22) * np.exp(q12 / np.sqrt(q11 * q22) - 1)]
)
def test_kernel_table(kernel):
    table = kernel_table(kernel, 1e-9, (0.1, 10.0))
    q = covariances(300, table.norms)
    assert table.error_bound <= 1e-9 and max(map(max, (p.ranks for p in table.parts))) == 1  # homogeneous
    error = np.abs(table(*q) - kernel(*q)) / np.sqrt(kernel(q[1], q[1], q[1]) * kernel(q[2], q[2], q[2]))
    assert error.max() <= table.error_bound


def test_kernel_refusals():
    with pytest.raises(ValueError, match="not finite"):
        kernel_table(lambda q12, q11, q22: np.where(q11 < q22, np.nan, q12))
    with pytest.raises(ValueError, match="is -1e-06 at the norm 0.001; expected a positive number"):
        kernel_table(lambda q12, q11, q22: -q12)
    with pytest.raises(ValueError, match="not resolved in sin"):
        kernel_table(lambda q12, q11, q22: 2 + np.abs(q12 - 0.3 * np.sqrt(q11 * q22)), 1e-6, (0.5, 2.0))


# ---- references -----------------------------------------------------------------------------------------------------


def test_gauss_hermite():
    q12, q11, q22 = covariances(20, (0.5, 2.0))
    assert np.allclose(gauss_hermite(np.square, q12, q11, q22, 4), 2 * q12**2 + q11 * q22, rtol=1e-12)
    williams = 2 / np.pi * np.arcsin(2 * q12 / np.sqrt((1 + 2 * q11) * (1 + 2 * q22)))
    assert np.allclose(gauss_hermite(erf, q12, q11, q22, 100), williams, atol=1e-4)


@pytest.mark.parametrize(("n", "most"), [(12, 3.5e-7), (16, 3e-9), (21, 1e-11), (27, 2e-14)])
def test_kolmogorov(n, most):
    """The proved bounds are within a factor 100 of the truth, and the truth is within them."""
    m = kolmogorov(n)
    assert len(m.weights) == n and (m.weights > 0).all() and np.isclose(m.weights.sum(), 1, rtol=1e-15)
    assert max(m.value, m.slope, m.moment) <= most
    t = np.concatenate([np.linspace(0, 40, 40001), np.geomspace(1e-9, 1, 1000)])
    z = t / m.scales[:, None]
    value = m.weights @ erf(z / np.sqrt(2)) - np.tanh(t)
    slope = (m.weights / m.scales) @ np.exp(-(z**2) / 2) * np.sqrt(2 / np.pi) - 1 / np.cosh(t) ** 2
    for error, bound in ((value, m.value), (slope, m.slope), (t * slope, m.moment)):
        assert np.abs(error).max() <= bound + 2e-15 and bound <= 100 * np.abs(error).max() + 1e-14


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("order", [0, 1])
def test_mixture_kernel(name, order):
    """Against quadrature; a coarse mixture is within its bound, and not always within a thousandth of it."""
    s = profile(ACTIVATIONS[name])
    q = covariances(6, approximate.NORMS, seed=3)
    k, bound = mixture_kernel(name, *q, order=order)
    exact = np.array([quadrature(lambda x: s(x, order), *row) for row in zip(*q, strict=True)])
    scale = np.sqrt(second_moment(s, np.sqrt(q[1]), order) * second_moment(s, np.sqrt(q[2]), order))
    assert bound.max() <= 1e-12 and np.all(np.abs(k - exact) <= (bound + 1e-13) * scale)
    q = covariances(300, approximate.NORMS)
    fine, coarse = (mixture_kernel(name, *q, order=order, n=n) for n in (27, 8))
    scale = np.sqrt(second_moment(s, np.sqrt(q[1]), order) * second_moment(s, np.sqrt(q[2]), order))
    error = np.abs(fine[0] - coarse[0]) / scale
    assert np.all(error <= coarse[1]) and np.any(error > 1e-3 * coarse[1])


def test_mixture_refusals():
    with pytest.raises(ValueError, match="'relu', order 0 came"):
        mixture_kernel("relu", 0.1, 1.0, 1.0)
    with pytest.raises(ValueError, match="n = 1 came"):
        kolmogorov(1)
