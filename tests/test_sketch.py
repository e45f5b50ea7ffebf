"""Feature maps against exact kernels: exact parts, no bias, the slope 1/sqrt(columns), and what is refused."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_digits

import dualcalc as dc
from dualcalc.sketch import METHODS, sketch

GAUSSIAN = dc.from_kernel(kappa="exp(t - 1)")
OBLIVIOUS = [name for name in METHODS if name != "centred"]


def connected(activation, depth, W_std=1.5, b_std=0.1):
    return dc.serial(*[dc.Dense(W_std, b_std), dc.Activation(activation)] * depth, dc.Dense())


def rows(n, d, seed=0, spread=4.0):
    """Random rows whose norms |x|/sqrt(d) vary by the factor `spread`, from 1/2."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X / np.linalg.norm(X, axis=1, keepdims=True) * np.sqrt(d) * spread ** rng.uniform(0, 1, (n, 1)) / 2


def digits(n, start=0):
    X = load_digits().data[np.random.default_rng(0).permutation(1797)[start : start + n]]
    return 8 * X / np.linalg.norm(X, axis=1, keepdims=True)


def error(psi, X, K):
    """Relative Frobenius error, unscaled."""
    F = np.asarray(psi(X), float)
    return np.linalg.norm(F @ F.T - K) / np.linalg.norm(K)


def spectral(psi, X, K):
    """The smallest epsilon of the paper's Theorem 4 at lambda = 1e-3 trace(K)."""
    F, (w, U) = np.asarray(psi(X), float), np.linalg.eigh(K + 1e-3 * np.trace(K) * np.eye(len(K)))
    R = U / np.sqrt(w)
    return np.abs(np.linalg.eigvalsh(R.T @ (F @ F.T - K) @ R)).max()


# ---- right on average, and ever closer ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OBLIVIOUS)
def test_unbiased(method):
    """The mean over seeds differs from the truncated series by chance alone: chi-squared over the pairs."""
    net, X, seeds = connected("sin(t)", 1, b_std=0.5), rows(10, 6), 40
    maps = [sketch(net, X, 40, method=method, degree=4, random_state=s) for s in range(seeds)]
    grams = np.array([F @ F.T for F in (np.asarray(psi(X)) for psi in maps)])
    a = np.linalg.norm(X, axis=1) / np.sqrt(6)
    c = np.clip(X @ X.T / np.outer(a, a) / 6, -1, 1)
    K = maps[0].series.kernel(np.repeat(a, 10), np.tile(a, 10), c.ravel()).reshape(10, 10)
    z = (grams.mean(axis=0) - K) / (grams.std(axis=0, ddof=1) / np.sqrt(seeds))
    assert np.square(z).mean() < 2.5 and np.abs(z).max() < 5


def test_linear_networks_are_exact():
    X = rows(20, 7)
    psi = sketch(dc.serial(dc.Dense(1.2, 0.3), dc.Dense(0.7, 0.2)), X, 100)
    assert psi.n_components <= 10 and psi.sketched == 0  # degree 0 of rank 2 at most, degree 1
    np.testing.assert_allclose(psi(X) @ psi(X).T, dc.serial(dc.Dense(1.2, 0.3), dc.Dense(0.7, 0.2))(X), atol=1e-3)


@pytest.mark.parametrize("method", ["horner", pytest.param("maclaurin", marks=pytest.mark.slow)])
def test_error_falls_as_one_over_the_root(method):
    net, X = connected(GAUSSIAN, 2, 1.0, 0.0), rows(120, 20)
    K, sizes = np.asarray(net(X)), (200, 800, 3200)
    errors = [
        np.median([error(sketch(net, X, n, method=method, random_state=s), X, K) for s in range(5)]) for n in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.4, errors


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu", "erf(t)", "sin(t)", "tanh(t)"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_every_network_at_its_slope(activation, depth):
    """D2: the Frobenius error of the mean over seeds, too, is within the stated error and the noise of the mean."""
    net, X, seeds = connected(activation, depth), rows(100, 20), 5
    K, sizes, errors = np.asarray(net(X)), (256, 1024, 4096), []
    for n in sizes:
        maps = [sketch(net, X, n, random_state=s) for s in range(seeds)]
        errors.append(np.median([error(psi, X, K) for psi in maps]))
    assert -0.65 < np.polyfit(np.log(sizes), np.log(errors), 1)[0] < -0.35, errors
    grams = np.array([F @ F.T for F in (np.asarray(psi(X)) for psi in maps)])
    size = np.sqrt(np.outer(np.diagonal(K), np.diagonal(K)))
    off = ~np.eye(len(X), dtype=bool)
    noise = grams.std(axis=0, ddof=1) / np.sqrt(seeds)
    excess = np.abs(grams.mean(axis=0) - K) - maps[0].error * size
    assert (excess[off] > 4.6 * noise[off]).mean() < 0.05  # t distribution of 4 degrees of freedom: 1 %


@pytest.mark.slow
def test_digits_small():
    """Centred beats oblivious, both at the figures of D1."""
    net, X, others = connected(GAUSSIAN, 2, 1.0, 0.0), digits(300), digits(600, 300)
    K = np.asarray(net(X))
    found = {m: np.median([error(sketch(net, others, 1024, method=m, random_state=s), X, K) for s in range(3)])
             for m in ("horner", "centred")}  # fmt: skip
    assert found["horner"] <= 0.40 * 0.184 and found["centred"] <= 0.08 * 0.184


AUTHORS = {  # relative Frobenius error of the authors' sketch, MATH.md section 9
    ("digits", 2, 1024): 0.184, ("digits", 2, 4096): 0.075, ("digits", 4, 1024): 0.300, ("digits", 4, 4096): 0.138,
    ("random", 2, 1024): 0.182, ("random", 2, 4096): 0.095, ("random", 4, 1024): 0.228, ("random", 4, 4096): 0.121,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("data, depth, columns", AUTHORS)
def test_against_the_authors(data, depth, columns):
    """D1."""
    net = connected(GAUSSIAN, depth, 1.0, 0.0)
    X, others = (digits(500), digits(1000, 500)) if data == "digits" else (rows(500, 256, 1, 1.0),) * 2
    K, reference = np.asarray(net(X)), AUTHORS[data, depth, columns]
    for method, most in [("horner", 0.4), ("centred", 0.08)] if data == "digits" else [("horner", 0.5)]:
        maps = [sketch(net, others, columns, method=method, random_state=s) for s in range(5)]
        assert np.median([error(psi, X, K) for psi in maps]) <= most * reference
        if data == "digits" and columns == 4096:
            limit = {2: 0.53, 4: 0.93}[depth] / (2 if method == "centred" else 1)
            assert np.median([spectral(psi, X, K) for psi in maps]) <= limit


@pytest.mark.slow
@pytest.mark.parametrize("X", [digits(300), rows(300, 64, 1, 1.0)], ids=["digits", "random"])
def test_theorem_4(X):
    """D8: epsilon falls as (columns/statistical dimension)^-1/2 at three lambdas, and faster while it is near 1."""
    net = connected(GAUSSIAN, 2, 1.0, 0.0)
    K, sizes = np.asarray(net(X)), (1024, 2048, 4096, 8192)
    made = [[sketch(net, X, n, random_state=s) for s in range(5)] for n in sizes]
    grams = [[F @ F.T for F in (np.asarray(psi(X)) for psi in maps)] for maps in made]
    for share in (1e-2, 1e-3, 1e-4):
        w, U = np.linalg.eigh(K + share * np.trace(K) * np.eye(len(K)))
        R = U / np.sqrt(w)
        epsilons = [np.median([np.abs(np.linalg.eigvalsh(R.T @ (G - K) @ R)).max() for G in each]) for each in grams]
        slope = np.polyfit(np.log([maps[0].sketched for maps in made]), np.log(epsilons), 1)[0]
        assert -0.7 < slope < -0.4


# ---- what a map promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "centred" else pytest.mark.slow) for m in METHODS])
def test_columns_seeds_and_sparse_rows(method):
    net, X = connected("sin(t)", 1), rows(30, 9).astype(np.float32)
    X[X < 0.3] = 0
    psi, same, other = (sketch(net, X, 70, method=method, degree=5, random_state=s) for s in (3, 3, 4))
    F = psi(X)
    assert F.shape == (30, psi.n_components) and psi.n_components <= 70 and F.dtype == jnp.float32
    np.testing.assert_array_equal(F, same(X))
    assert np.abs(F - other(X)).max() > 1e-3
    sparse = scipy.sparse.csr_matrix(X)
    np.testing.assert_allclose(psi(sparse), F, atol=2e-5)
    made = sketch(net, sparse, 70, method=method, degree=5, random_state=3)
    np.testing.assert_allclose(made(sparse), F, atol=2e-5 if method != "centred" else 1e-2)
    double = sketch(net, X.astype(float), 70, method=method, degree=5, random_state=3)(X.astype(float))
    assert double.dtype == jnp.float64
    np.testing.assert_allclose(double, F, atol=1e-4 if method != "centred" else 1e-2)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(psi))(X), F)
    np.testing.assert_allclose(jax.jit(psi)(jnp.asarray(X)), F, atol=2e-5)


def test_batches_do_not_matter():
    X = rows(5000, 5)
    psi = sketch(connected("sin(t)", 1), X, 400)
    np.testing.assert_allclose(psi(X)[-7:], psi(X[-7:]), atol=1e-12)


def test_nngp():
    net, X = connected("gelu", 1), rows(60, 10)
    assert error(sketch(net, X, 2000, get="nngp"), X, net(X, get="nngp")) < 0.03


@pytest.mark.parametrize(
    "method", ["horner", *(pytest.param(m, marks=pytest.mark.slow) for m in ("maclaurin", "centred"))]
)
def test_normalized_rows_have_the_exact_diagonal(method):
    net, X = connected("gelu", 1), rows(40, 5)
    X[5] = 0
    psi = sketch(net, X, 300, method=method, normalize=True)
    F = np.asarray(psi(X))
    np.testing.assert_allclose(np.square(F).sum(axis=1), np.diagonal(net(X)), rtol=2 * psi.error)


def test_a_centred_sketch_of_few_columns_says_what_it_leaves_out():
    net, X = connected("gelu", 1), rows(40, 5)
    few, many = (sketch(net, X, m, method="centred") for m in (1, 2000))
    assert few.n_components == 1 and few(X).shape == (40, 1)
    assert few.error > 0.5 and many.error < 0.002


def test_zero_rows():
    X = rows(20, 6)
    X[3] = 0
    net = connected("sin(t)", 1)
    F = np.asarray(sketch(net, X, 60)(X))
    np.testing.assert_allclose((F @ F.T)[3], net(X)[3], atol=1e-3)
    homogeneous = connected("relu", 1, 1.0, 0.0)
    assert not np.asarray(sketch(homogeneous, X, 60)(X))[3].any()
    with pytest.raises(ValueError, match="row 3 of X .* outside the range"):
        sketch(connected("tanh(t)", 1, 1.0, 0.0), X, 60)(X)


def test_homogeneous_networks_serve_all_norms():
    X = rows(20, 6)
    psi = sketch(connected("relu", 1, 1.0, 0.0), X, 60)
    np.testing.assert_allclose(psi(1000 * X), 1000 * psi(X), rtol=1e-9)


def test_rows_outside_the_range():
    net, X = connected("sin(t)", 1), rows(20, 6)
    with pytest.raises(ValueError, match=r"row 2 of X .* outside the range .*norms="):
        sketch(net, X, 60)(np.where(np.arange(20)[:, None] == 2, 100 * X, X))
    sketch(net, X, 60, norms=(0.1, 10.0))(4 * X)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "magic"}, "'horner'"),
        ({"get": ("nngp", "ntk")}, "features are of one kernel"),
        ({"n_components": 0}, "positive integer"),
        ({"X": np.ones(5)}, "one row per point"),
        ({"X": np.ones((2, 4, 4, 1))}, "rows"),
        ({"X": np.full((2, 3), np.nan)}, "NaN"),
        ({"X": scipy.sparse.csr_matrix(np.full((2, 3), np.inf))}, "finite"),
    ],
)
def test_bad_input(change, message):
    given = {"X": rows(10, 4), "n_components": 50} | change
    with pytest.raises(ValueError, match=message):
        sketch(connected("sin(t)", 1), **given)


def test_other_rows_than_expected():
    psi = sketch(connected("sin(t)", 1), rows(10, 4), 50)
    with pytest.raises(ValueError, match=r"\(3, 5\); \(n, 4\)"):
        psi(np.ones((3, 5)))
