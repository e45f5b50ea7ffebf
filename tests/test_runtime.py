"""The numeric primitives against mpmath, at the hard points, in both precisions, and as emitted text.

`erfcx_table`, `erf_table` and `wedge_table` are the derivations of the literals in `runtime.py`.
"""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from dualcalc import runtime

from .tiers import thinned

DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def forty_digits():
    with mp.workdps(40):
        yield


def evaluate(function, *columns, dtype):
    return np.asarray(jax.jit(function)(*(jnp.asarray(np.asarray(c), dtype) for c in columns)))


def worst(values, exact, dtype, scale=None):
    """Largest error in eps, relative to `scale` (default: the exact value)."""
    scale = exact if scale is None else scale
    errors = [
        abs((mp.mpf(float(v)) - e) / s) if s else abs(mp.mpf(float(v)))
        for v, e, s in zip(values, exact, scale, strict=True)
    ]
    return float(max(errors)) / np.finfo(dtype).eps


# ------------------------------------------------------------------------------------ where the literals are from


def interpolate(function, degree):
    """Coefficients, highest first, of the Chebyshev interpolant on [-1, 1]."""
    n = degree + 1
    angles = [mp.pi * (2 * i + 1) / (2 * n) for i in range(n)]
    values = [function(mp.cos(a)) for a in angles]
    chebyshev = [
        (2 if k else 1) * mp.fsum(v * mp.cos(k * a) for v, a in zip(values, angles, strict=True)) / n for k in range(n)
    ]
    before, current, out = [mp.mpf(0)], [mp.mpf(1)], [mp.mpf(0)] * n
    for k, weight in enumerate(chebyshev):
        out = [o + weight * c for o, c in zip(out, current + [mp.mpf(0)] * n, strict=False)]
        shifted = [mp.mpf(0)] + [(2 if k else 1) * c for c in current]
        before, current = current, [s - b for s, b in zip(shifted, before + [mp.mpf(0)] * n, strict=False)]
    return out[::-1]


def erfcx(x):
    x = mp.mpf(x)
    if x < 60:
        return mp.exp(x * x) * mp.erfc(x)
    terms = [mp.fac2(2 * k - 1) * (-2 * x * x) ** -k for k in range(30)]  # DLMF 7.12.1
    return mp.fsum(terms) / (x * mp.sqrt(mp.pi))


def erfcx_slope(x):
    return 2 * mp.mpf(x) * erfcx(x) - 2 / mp.sqrt(mp.pi) if x < 1e6 else -1 / (mp.sqrt(mp.pi) * mp.mpf(x) ** 2)


def erfcx_table(degree):
    def scaled(t):
        x = mp.mpf("3.5") * (1 + t) / (1 - t)
        return (1 + 2 * x) * erfcx(x)

    return interpolate(scaled, degree)


def erf_table(degree):
    in_t = interpolate(lambda t: mp.erf(mp.sqrt((1 + t) / 2)) / mp.sqrt((1 + t) / 2) - 1, degree)
    in_z = [mp.mpf(0)]  # lowest first; Horner in t = 2z - 1
    for coefficient in in_t:
        shifted = [2 * c for c in [mp.mpf(0), *in_z]]
        in_z = [s - c for s, c in zip(shifted, [*in_z, mp.mpf(0)], strict=True)]
        in_z[0] += coefficient
    return in_z[degree::-1]


def legendre(n):
    nodes = [mp.findroot(lambda x: mp.legendre(n, x), float(x)) for x in np.polynomial.legendre.leggauss(n)[0]]
    slopes = [n * mp.legendre(n - 1, x) / (1 - x * x) for x in nodes]
    return nodes, [2 / ((1 - x * x) * d * d) for x, d in zip(nodes, slopes, strict=True)]


def wedge_table(n, exponent, bend):
    """Gauss rule on [0, 1] for exp(-exponent y + bend y (1 - y)), its weights divided by that function, beside half of
    the Gauss-Legendre rule of 2n nodes."""
    grid, fine = legendre(60)
    grid, fine = [(x + 1) / 2 for x in grid], [w / 2 for w in fine]

    def weight(y):
        return mp.exp(-exponent * y + bend * y * (1 - y))

    mass = [w * weight(y) for y, w in zip(grid, fine, strict=True)]
    before, current, norm, matrix = [mp.mpf(0)] * 60, [mp.mpf(1)] * 60, mp.fsum(mass), mp.zeros(n)
    total = previous = norm
    for k in range(n):  # Stieltjes
        mean = mp.fsum(m * y * c * c for m, y, c in zip(mass, grid, current, strict=True)) / norm
        matrix[k, k] = mean
        step = norm / previous if k else mp.mpf(0)
        if k:
            matrix[k, k - 1] = matrix[k - 1, k] = mp.sqrt(step)
        before, current = current, [(y - mean) * c - step * b for y, c, b in zip(grid, current, before, strict=True)]
        previous, norm = norm, mp.fsum(m * c * c for m, c in zip(mass, current, strict=True))
    nodes, vectors = mp.eigsy(matrix)
    far = sorted((nodes[i], total * vectors[0, i] ** 2 / weight(nodes[i])) for i in range(n))
    near = sorted(pair for pair in zip(*legendre(2 * n), strict=True) if pair[0] > 0)
    return [(*a, *b) for a, b in zip(far, near, strict=True)]


@pytest.mark.parametrize(
    "stored, derived",
    [
        ("ERFCX_SINGLE", lambda: erfcx_table(11)),
        ("ERFCX_DOUBLE", lambda: erfcx_table(23)),
        ("ERF_SINGLE", lambda: erf_table(5)),
        ("ERF_DOUBLE", lambda: erf_table(11)),
        ("WEDGE_SINGLE", lambda: wedge_table(6, 18, 4)),
        ("WEDGE_DOUBLE", lambda: wedge_table(13, 37, 9)),
    ],
)
def test_literals_are_what_their_derivation_gives(stored, derived):
    np.testing.assert_allclose(
        np.array(getattr(runtime, stored)), np.array(derived(), dtype=float), rtol=1e-13, atol=1e-24
    )


# -------------------------------------------------------------------------------------------------------- one variable


@pytest.mark.parametrize("dtype, limit", [(np.float32, 2.1), (np.float64, 2.1)])
def test_erfcx(dtype, limit):
    x = np.concatenate([np.linspace(0, 30, 700), np.geomspace(1e-30, 1e30, 200), [0.0]]).astype(dtype)
    assert worst(evaluate(runtime.erfcx, x, dtype=dtype), [erfcx(float(v)) for v in x], dtype) < limit
    assert evaluate(runtime.erfcx, [np.inf], dtype=dtype) == 0
    slope = evaluate(jax.vmap(jax.grad(runtime.erfcx)), x, dtype=dtype)
    exact = [erfcx_slope(float(v)) for v in x]
    assert worst(slope, exact, dtype, [erfcx(float(v)) for v in x]) < 100


@pytest.mark.parametrize("name", ["erf", "erf_series"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_erf(name, dtype):
    x = np.concatenate([np.linspace(-6, 6, 701), np.geomspace(1e-30, 1, 100)]).astype(dtype)
    limit = 2.5 if dtype is np.float32 and name == "erf" else 2.0  # XLA's float32 rational function
    assert worst(evaluate(getattr(runtime, name), x, dtype=dtype), [mp.erf(float(v)) for v in x], dtype) < limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_root_ratio_angle(dtype):
    values = evaluate(runtime.ratio, [0, 1, -1, 3], [0, 0, 0, 2], dtype=dtype)
    np.testing.assert_array_equal(values, np.array([0, np.inf, -np.inf, 1.5], dtype))
    assert evaluate(runtime.angle, [0.0], [0.0], dtype=dtype) == 0
    tiny = jnp.asarray(1e-18, dtype)
    dy, dx = jax.grad(runtime.angle, (0, 1))(tiny, 2 * tiny)
    np.testing.assert_allclose([dy, dx], [4e17, -2e17], rtol=1e-6)


# --------------------------------------------------------------------------------------------------------- determinant


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_det_is_exact_to_the_last_place(dtype):
    random = np.random.default_rng(0)
    q11, q22 = (10 ** random.uniform(-12, 4, (2, 600))).astype(dtype)
    edge = (np.sqrt(q11.astype(float) * q22.astype(float)) * random.choice([-1, 1], 600)).astype(dtype)
    steps = random.integers(0, 3, 600)
    q12 = np.where(steps == 2, edge * random.uniform(0, 1, 600).astype(dtype), edge)
    q12 = np.where(steps == 1, np.nextafter(q12, dtype(0)), q12)
    delta, projected = jax.jit(runtime.gram_det)(q12, q11, q22)
    exact = [mp.mpf(float(a)) * mp.mpf(float(b)) - mp.mpf(float(c)) ** 2 for a, b, c in zip(q11, q22, q12, strict=True)]
    assert worst(delta, [max(e, mp.mpf(0)) for e in exact], dtype) < 1
    inside = np.array([e >= 0 for e in exact])
    assert 100 < inside.sum() < 600
    np.testing.assert_array_equal(np.asarray(projected)[inside], q12[inside])
    np.testing.assert_allclose(np.asarray(projected)[~inside], q12[~inside], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_det_edges(dtype):
    tiny = 1e-16
    columns = ([0, 1, 1.001, -1.001, np.nan, tiny / 2, 0], [0, 1, 1, 1, 1, tiny, 1e4], [0, 1, 1, 1, 1, tiny, 1e4])
    delta, projected = evaluate(lambda *q: jnp.stack(runtime.gram_det(*q)), *columns, dtype=dtype)
    np.testing.assert_allclose(delta, [0, 0, np.nan, np.nan, np.nan, 0.75 * tiny**2, 1e8], rtol=1e-6)
    np.testing.assert_allclose(projected, [0, 1, np.nan, np.nan, np.nan, tiny / 2, 0], rtol=1e-6)


# ------------------------------------------------------------------------------------------------ normal distributions


def log_terms(e, h):
    return e, e - h * h / 2, h


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_ndtr(dtype):
    grid = [(0, h / 4) for h in range(-40, 41)] + [(512, -32), (512, -31), (648, -36), (-8, 9), (64, -11), (-60, 5)]
    e, eh, h = np.array([log_terms(float(e), float(h)) for e, h in grid]).T
    values = evaluate(runtime.exp_ndtr, e, eh, h, dtype=dtype)
    exact = [mp.exp(float(a)) * mp.ncdf(float(b)) for a, b in zip(e, h, strict=True)]
    assert worst(values, exact, dtype) < 4
    infinite = evaluate(runtime.exp_ndtr, [1, 1, 900], [-np.inf] * 3, [-np.inf, np.inf, -np.inf], dtype=dtype)
    np.testing.assert_allclose(infinite, [0, np.e, 0], rtol=1e-6)
    assert evaluate(runtime.exp_ndtr, [900.0], [899.0], [2**0.5], dtype=dtype) == np.inf


def phi2_inputs(e, h, k, rho):
    """The arguments of exp_phi2, from 40 digits."""
    e, h, k, rho = (mp.mpf(float(v)) for v in (e, h, k, rho))
    s = mp.sqrt(1 - rho * rho)
    th, tk = (mp.mpf(0) if n == 0 else n / s if s else mp.sign(n) * mp.inf for n in (k - rho * h, h - rho * k))
    return [float(v) for v in (e, e - h * h / 2, e - k * k / 2, e - (h * h + th * th) / 2, h, k, th, tk, rho, s)]


def phi2(h, k, rho):
    """Plackett's integral from rho = -1 on, where Phi2 = max(0, Phi(h) - Phi(-k)): positive terms only."""
    h, k, rho = (mp.mpf(float(v)) for v in (h, k, rho))
    limit = mp.ncdf(h) - mp.ncdf(-k) if h + k > 0 else mp.mpf(0)
    start = mp.acos(rho)
    length = mp.pi - start

    def density(psi):
        return mp.exp(-(h * h + k * k - 2 * h * k * mp.cos(psi)) / (2 * mp.sin(psi) ** 2))

    near = [start + length * mp.mpf(2) ** -j for j in range(3, 46, 4)]
    far = [mp.pi - length * mp.mpf(2) ** -j for j in range(3, 46, 4)]
    panels = [start, *near[::-1], start + length / 2, *far, mp.pi]
    with mp.workdps(26):
        integral = mp.quad(density, panels, maxdegree=4) if length else 0
    return limit + integral / (2 * mp.pi)


def exp_phi2_tail(e, h, k, rho):
    """Conditional form, integrated down from the farther bound; moderate rho only."""
    h, k, rho = (mp.mpf(float(v)) for v in (min(h, k), max(h, k), rho))
    s = mp.sqrt(1 - rho * rho)
    panels = [h - d for d in (15, 8, 4, 2, 1, 0.5, 0.3, 0.2, 0.1, 0.05, 0)]
    with mp.workdps(30):
        return mp.quad(lambda u: mp.exp(e) * mp.npdf(u) * mp.ncdf((k - rho * u) / s), panels, maxdegree=6)


RHOS = (-1, -(1 - 1e-12), -(1 - 1e-6), -0.9, 0, 0.5, 1 - 1e-6, 1 - 1e-12, 1)


@pytest.mark.parametrize("dtype, limit", [(np.float32, 2.4e-7), (np.float64, 2.2e-16)])
def test_exp_phi2_absolute(dtype, limit):
    bounds = [(0, 0), (1, 1), (1, -1), (-0.5, 0), (1e-9, -1e-9), (2.5, 0.1)]
    cases = [(dtype(h), dtype(k), dtype(rho)) for (h, k), rho in itertools.product(bounds, RHOS)]
    values = evaluate(runtime.exp_phi2, *np.array([phi2_inputs(0, *case) for case in cases]).T, dtype=dtype)
    errors = [float(abs(float(v) - phi2(*case))) for v, case in zip(values, cases, strict=True)]
    assert max(errors) < limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_phi2_tails(dtype):
    """Relative accuracy where exp(e) undoes the tail: errors of the exponents, e eps, and little more."""
    cases = [(450, -30, -12, 0.5), (450, -30, 1, 0.9), (450, 2, -30, 0.25), (900, -30, -30, 0), (475, -30, -30, 0.9)]
    cases += [(32, -8, -8, 0.99), (50, -8, -6, 0), (24, -1, -1, -0.9375), (13, -5, 3, -0.5), (9, -4, -2, 0.25)]
    cases = [(e, h, k, dtype(rho)) for e, h, k, rho in cases]
    values = evaluate(runtime.exp_phi2, *np.array([phi2_inputs(*case) for case in cases]).T, dtype=dtype)
    exact = [exp_phi2_tail(*case) for case in cases]
    assert worst(values, exact, dtype, [v * max(8, e) for v, (e, *_) in zip(exact, cases, strict=True)]) < 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_phi2_infinite_bounds_and_degenerate_angle(dtype):
    inf = np.inf
    ndtr = float(mp.ncdf(0.5))
    columns = [  # e, eh, ek, er, h, k, th, tk, y, x
        (0, -inf, -0.125, -inf, inf, 0.5, -inf, inf, 0.5, 0.5),
        (0, -inf, -0.125, -inf, -inf, 0.5, inf, -inf, 0.5, 0.5),
        (0, -inf, -inf, -inf, inf, inf, 0, 0, 0, 1),
        (0, -inf, -0.125, -inf, inf, 0.5, 0.5, inf, 0, 1),
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0, 0, -1, 0),
        (0, 0, 0, 0, 0, 0, 0, 0, 1e-18, 1e-18),
        (900, 900, 900, 900, 0.1, 0.1, 0.1, 0.1, 0, 1),
    ]
    values = evaluate(runtime.exp_phi2, *np.array(columns, float).T, dtype=dtype)
    np.testing.assert_allclose(
        values, [ndtr, 0, 1, ndtr, 0.25, 0, 0.375, inf], atol=1.8e-7 if dtype is np.float32 else 2.2e-16
    )


# --------------------------------------------------------------------------------------------------------- derivatives


def stable_phi2(e, h, k, rho):
    """As generated code calls it."""
    s = runtime.root((1 - rho) * (1 + rho))
    th, tk = runtime.ratio(k - rho * h, s), runtime.ratio(h - rho * k, s)
    return runtime.exp_phi2(e, e - h * h / 2, e - k * k / 2, e - (h * h + th * th) / 2, h, k, th, tk, rho, s)


def stable_ndtr(e, h):
    return runtime.exp_ndtr(e, e - h * h / 2, h)


COMPOSED = {
    "gram_det": (lambda *q: runtime.gram_det(*q)[0], (0.3, 1.1, 0.7)),
    "root": (runtime.root, (0.4,)),
    "ratio": (runtime.ratio, (0.4, -0.7)),
    "angle": (runtime.angle, (-0.4, 0.7)),
    "erfcx": (runtime.erfcx, (0.6,)),
    "erfcx far": (runtime.erfcx, (31.0,)),
    "exp_ndtr": (stable_ndtr, (0.3, 0.4)),
    "exp_phi2": (stable_phi2, (0.2, 0.4, -0.3, 0.6)),
    "exp_phi2 tail": (stable_phi2, (5.0, -3.0, -2.5, -0.1)),
    "exp_sinh": (lambda s, x: runtime.exp_sinh(s + abs(x), x), (0.3, -0.8)),
    "exp_cosh": (lambda s, x: runtime.exp_cosh(s + abs(x), x), (0.3, -0.8)),
    "exp_sinh at 0": (lambda s, x: runtime.exp_sinh(s + abs(x), x), (0.3, 0.0)),
    "exp_cosh at 0": (lambda s, x: runtime.exp_cosh(s + abs(x), x), (0.3, 0.0)),
}
EXACT = {
    "gram_det": lambda c, a, b: a * b - c * c,
    "root": mp.sqrt,
    "ratio": lambda x, y: x / y,
    "angle": mp.atan2,
    "erfcx": erfcx,
    "exp_ndtr": lambda e, h: mp.exp(e) * mp.ncdf(h),
    "exp_phi2": lambda e, h, k, rho: mp.exp(e) * plackett(h, k, rho),
    "exp_sinh": lambda s, x: mp.exp(s) * mp.sinh(x),
    "exp_cosh": lambda s, x: mp.exp(s) * mp.cosh(x),
}


def plackett(h, k, rho):
    def density(r):
        return mp.exp(-(h * h + k * k - 2 * h * k * r) / (2 * (1 - r * r))) / mp.sqrt(1 - r * r)

    integral = mp.quad(density, [0, rho], method="gauss-legendre", maxdegree=4)
    return mp.ncdf(h) * mp.ncdf(k) + integral / (2 * mp.pi)


@pytest.mark.parametrize("name", thinned(COMPOSED, {"exp_phi2"}))  # its tail is tested here
def test_first_and_second_derivatives(name):
    function, point = COMPOSED[name]
    exact = EXACT[name.split(" ")[0]]
    n = len(point)
    arguments = tuple(jnp.asarray(p, jnp.float64) for p in point)
    gradient = jax.jit(jax.grad(function, tuple(range(n))))(*arguments)
    hessian = jax.jit(jax.hessian(function, tuple(range(n))))(*arguments)
    for i in range(n):
        order = tuple(int(i == a) for a in range(n))
        np.testing.assert_allclose(gradient[i], float(mp.diff(exact, point, order)), rtol=1e-12, atol=1e-14)
        for j in range(n):
            order = tuple(int(i == a) + int(j == a) for a in range(n))
            np.testing.assert_allclose(hessian[i][j], float(mp.diff(exact, point, order)), rtol=1e-11, atol=1e-12)


SINGULAR = {
    "gram_det": (lambda *q: sum(runtime.gram_det(*q)), [(0, 0, 0), (1, 1, 1), (-1, 1, 1)]),
    "root": (runtime.root, [(0,)]),
    "ratio": (runtime.ratio, [(0, 0), (1, 0)]),
    "angle": (runtime.angle, [(0, 0), (1, 0), (1e-18, 1e-18), (1e15, 0)]),
    "erfcx": (runtime.erfcx, [(0,), (25,), (1e30,)]),
    "erf": (runtime.erf, [(0,), (1e10,)]),
    "exp_ndtr": (stable_ndtr, [(0, 0), (0, 50), (0, -50)]),
    "exp_phi2": (stable_phi2, [(0, h, k, r) for h in (0, 1) for k in (0, 1, -1) for r in (-1, 0, 1)]),
    "exp_sinh": (lambda s, x: runtime.exp_sinh(s + abs(x), x), [(0, 0), (-300, 300)]),
    "exp_cosh": (lambda s, x: runtime.exp_cosh(s + abs(x), x), [(0, 0), (-300, 300)]),
}


SINGULAR_CASES = [(name, dtype) for name in SINGULAR for dtype in DTYPES]


@pytest.mark.parametrize("name, dtype", thinned(SINGULAR_CASES, [("exp_phi2", np.float64)]))
def test_no_nan_at_singular_points(name, dtype):
    function, points = SINGULAR[name]
    argnums = tuple(range(len(points[0])))
    columns = tuple(jnp.asarray(np.array(points).T, dtype))
    orders = jax.grad(function, argnums), jax.hessian(function, argnums)
    for derivative in orders:
        for leaf in jax.tree.leaves(jax.jit(jax.vmap(derivative))(*columns)):
            assert leaf.dtype == dtype
            assert not np.isnan(leaf).any(), leaf


@pytest.mark.parametrize("dtype", DTYPES)
def test_hyperbolic(dtype):
    x = np.array([-40, -1, -1e-6, 0, 1e-6, 0.5, 3, 300])
    for function, exact in ((runtime.exp_sinh, mp.sinh), (runtime.exp_cosh, mp.cosh)):
        values = evaluate(function, 0 * x + 0.5, x, dtype=dtype)
        truth = [mp.exp(0.5 - abs(mp.mpf(float(dtype(v))))) * exact(float(dtype(v))) for v in x]
        assert worst(values, truth, dtype) < 4


# ------------------------------------------------------------------------------------------------------- emitted text

SAMPLES = {
    "gram_det": np.array([(0.5, 1, 1), (1, 1, 1), (0.3, 0.7, 0.2), (2.0, 1, 1)]),
    "root": np.array([(0,), (2,)]),
    "ratio": np.array([(0, 0), (1, 3)]),
    "angle": np.array([(0, 0), (-1, 3)]),
    "erfcx": np.array([(0,), (0.7,), (40,)]),
    "erf": np.array([(-0.4,), (1.7,), (0,)]),
    "exp_ndtr": np.array([log_terms(1.0, h) for h in (-3, 0.5, 2)]),
    "exp_phi2": np.array(
        [
            phi2_inputs(1, *c)
            for c in [(0, 0, 0.5), (0, 0, -1), (-1, 2, 0.3), (1, 1, 1), (1.5, 0.5, -0.7), (-3, -4, 0.1)]
        ]
    ),
    "exp_sinh": np.array([(1, 0), (1, -2)]),
    "exp_cosh": np.array([(1, 0), (1, -2)]),
}


def namespace(target):
    scope: dict = {}
    exec(runtime.HEADERS[target] + "\n\n" + runtime.source(list(SAMPLES), target), scope)
    return scope


def parts(result):
    return np.stack([np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))])


@pytest.mark.parametrize("target", ["jax", "numpy", "numba"])
def test_emitted_source_computes_the_same(target):
    scope = namespace(target)
    for name, rows in SAMPLES.items():
        here = parts(jax.jit(getattr(runtime, name))(*jnp.asarray(rows.T, jnp.float64)))
        if target == "numba":
            there = np.array([scope[name](*map(float, row)) for row in rows], ndmin=2)
            there = there.T if len(here) > 1 else there
        else:
            with np.errstate(all="ignore"):
                function = jax.jit(scope[name]) if target == "jax" else scope[name]
                there = parts(function(*rows.T.astype(float)))
        np.testing.assert_allclose(there, here, rtol=1e-14, atol=1e-16, err_msg=name)


def test_emitted_numpy_keeps_float32():
    scope = namespace("numpy")
    for name, rows in SAMPLES.items():
        with np.errstate(all="ignore"):
            out = scope[name](*rows.T.astype(np.float32))
        assert all(part.dtype == np.float32 for part in (out if isinstance(out, tuple) else (out,))), name


@pytest.mark.parametrize("target", runtime.TARGETS)
def test_emitted_source_is_lint_clean(target, tmp_path):
    file = tmp_path / "emitted.py"
    file.write_text(runtime.HEADERS[target] + "\n\n" + runtime.source(list(SAMPLES), target) + "\n")
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["check", "--isolated", "--line-length", "120", "--select", "E,F,UP,B", str(file)]
    result = subprocess.run([*ruff, *rules], capture_output=True, text=True)
    if "No module named ruff" in result.stderr:
        pytest.skip("ruff is not installed")
    assert result.returncode == 0, result.stdout


def test_source_holds_what_is_needed_and_no_more():
    text = runtime.source(["exp_ndtr"], "numpy")
    assert "def erfcx" in text and "wedge" not in text and "jax" not in text
    assert runtime.source(["root", "erfcx"], "jax") == runtime.source(["erfcx", "root"], "jax")
    assert "@exp_ndtr.defjvp" in runtime.source(["exp_phi2"], "jax")
    with pytest.raises(ValueError, match="unknown primitive 'nothing'"):
        runtime.source(["nothing"], "jax")
    with pytest.raises(ValueError, match="unknown target"):
        runtime.source(["root"], "fortran")


def test_batches_agree():
    columns = jnp.asarray(SAMPLES["exp_phi2"].T, jnp.float64)
    flat = jax.jit(runtime.exp_phi2)(*columns)
    stacked = jax.jit(runtime.exp_phi2)(*columns.reshape(-1, 2, 3))
    np.testing.assert_allclose(stacked.ravel(), flat, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(jax.jit(jax.vmap(runtime.exp_phi2))(*columns), flat, rtol=1e-14, atol=1e-16)
