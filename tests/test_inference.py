"""Predictions against direct formulas: NumPy's solve and eigenvalues, SciPy's matrix exponential."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import multivariate_normal

from dualcalc.inference import (
    Precomputed,
    gradient_flow,
    kernel_ridge,
    log_marginal_likelihood,
    posterior,
)
from dualcalc.layers import Activation, Dense
from dualcalc.networks import serial

RNG = np.random.default_rng(3)
X, X_TEST, Y = RNG.standard_normal((6, 3)), RNG.standard_normal((4, 3)), RNG.standard_normal((6, 2))
NET = serial(Dense(1.4, 0.2), Activation("relu"), Dense(1.2, 0.1))
ALL = {name: np.array(NET(np.concatenate([X, X_TEST]), get=name)) for name in ("nngp", "ntk")}
K, CROSS, TEST = (
    {name: k[rows, columns] for name, k in ALL.items()}
    for rows, columns in ((slice(6), slice(6)), (slice(6, None), slice(6)), (slice(6, None), slice(6, None)))
)
MATRICES = Precomputed(**ALL)  # no network to compile in most tests
ROWS, TEST_ROWS = range(6), range(6, 10)


def close(a, b, bound=1e-10):
    a, b = np.asarray(a), np.asarray(b)
    return np.abs(a - b).max() <= bound * np.abs(b).max()


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_posterior(get):
    mean, covariance, jitter = posterior(MATRICES, ROWS, Y, TEST_ROWS, noise=0.1, get=get)
    C = K[get] + 0.1 * np.eye(6)
    assert jitter == 0 and close(mean, CROSS[get] @ np.linalg.solve(C, Y))
    assert close(covariance, TEST[get] - CROSS[get] @ np.linalg.solve(C, CROSS[get].T))
    assert (covariance == covariance.T).all()


def test_a_network_and_its_matrices_agree():
    flows = [gradient_flow(*first, t=2.0) for first in ((NET, X, Y, X_TEST), (MATRICES, ROWS, Y, TEST_ROWS))]
    for one, other in zip(*flows, strict=True):
        assert close(one, other)


def test_at_the_training_points():
    mean, covariance, _ = posterior(MATRICES, ROWS, Y)
    assert close(mean, Y, 1e-8) and np.abs(covariance).max() <= 1e-8
    assert close(gradient_flow(MATRICES, ROWS, Y).mean, Y, 1e-8)
    smooth = kernel_ridge(MATRICES, ROWS, Y, ridge=1.0).mean
    assert close(smooth, K["ntk"] @ np.linalg.solve(K["ntk"] + np.eye(6), Y))


def test_kernel_ridge():
    for y in (Y, Y[:, 0]):
        mean, coefficients, jitter = kernel_ridge(MATRICES, ROWS, y, TEST_ROWS, ridge=0.3)
        assert mean.shape == (4, *y.shape[1:]) and jitter == 0
        assert close(coefficients, np.linalg.solve(K["ntk"] + 0.3 * np.eye(6), y))
        assert close(mean, CROSS["ntk"] @ coefficients)


@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize("t", [0.0, 0.3, 20.0, np.inf])
def test_gradient_flow(t, get):
    theta, cross = K[get], CROSS[get]
    decay = np.zeros((6, 6)) if np.isinf(t) else expm(-t * theta)
    A = cross @ np.linalg.solve(theta, np.eye(6) - decay)
    mean, covariance, rank = gradient_flow(MATRICES, ROWS, Y, TEST_ROWS, t=t, get=get)
    expected = TEST["nngp"] - A @ CROSS["nngp"].T - CROSS["nngp"] @ A.T + A @ K["nngp"] @ A.T
    assert rank == 6 and np.abs(mean - A @ Y).max() <= 1e-10 and close(covariance, expected)


def test_gradient_flow_is_the_limit_of_small_steps():
    """Discrete steps on all outputs, training and test together: no formula of the solution in it."""
    joint, step, samples = np.vstack([K["ntk"], CROSS["ntk"]]), 1e-5, RNG.standard_normal((10, 3))
    start = np.linalg.cholesky(ALL["nngp"]) @ samples  # three networks
    f = start.copy()
    for _ in range(50_000):
        f = f - step * joint @ (f[:6] - Y[:, :1])
    flow = gradient_flow(MATRICES, ROWS, Y[:, 0], TEST_ROWS, t=0.5).mean[:, None]
    from_start = gradient_flow(MATRICES, ROWS, start[:6], TEST_ROWS, t=0.5).mean  # A f(X)(0)
    assert np.abs(f[6:] - (start[6:] - from_start + flow)).max() <= 1e-4


def test_only_the_last_layer_trained_to_the_end_is_the_posterior():
    flow, exact = gradient_flow(MATRICES, ROWS, Y, TEST_ROWS, get="nngp"), posterior(MATRICES, ROWS, Y, TEST_ROWS)
    assert close(flow.mean, exact.mean, 1e-9) and close(flow.covariance, exact.covariance, 1e-9)


REPEATED = [0, 1, 2, 3, 0]


def test_repeated_points():
    y, averaged = np.array([1.0, 2.0, 3.0, 4.0, 1.0]), np.array([0.5, 2.0, 3.0, 4.0])
    fit = posterior(MATRICES, REPEATED, y, TEST_ROWS)
    assert 0 < fit.jitter < 1e-10 and np.isfinite(fit.covariance).all()
    assert close(fit.mean, posterior(MATRICES, range(4), y[:4], TEST_ROWS).mean, 1e-10)
    y[4] = 0.0  # conflicting targets of one point: the network learns their mean
    flow = gradient_flow(MATRICES, REPEATED, y, TEST_ROWS)
    assert flow.rank == 4 and close(flow.mean, gradient_flow(MATRICES, range(4), averaged, TEST_ROWS).mean)
    assert close(gradient_flow(MATRICES, REPEATED, y, TEST_ROWS, t=1e12).mean, flow.mean)
    theta, cross, t = ALL["ntk"][np.ix_(REPEATED, REPEATED)], ALL["ntk"][6:, REPEATED], 1e-4
    early = cross @ (t * (np.eye(5) - t / 2 * theta + t**2 / 6 * theta @ theta)) @ y  # (1 - exp(-t v))/v
    assert close(gradient_flow(MATRICES, REPEATED, y, TEST_ROWS, t=t).mean, early, 1e-9)


def test_log_marginal_likelihood():
    value, jitter = log_marginal_likelihood(MATRICES, ROWS, Y, 0.1)
    expected = sum(multivariate_normal(cov=K["nngp"] + 0.1 * np.eye(6)).logpdf(y) for y in Y.T)
    assert jitter == 0 and close(value, expected)
    assert close(
        log_marginal_likelihood(MATRICES, ROWS, Y[:, 1], 0.1).value,
        expected - log_marginal_likelihood(MATRICES, ROWS, Y[:, 0], 0.1).value,
    )


def test_gradient_of_the_likelihood():
    @jax.jit
    def value(W_std, b_std, noise):
        net = serial(Dense(W_std, b_std), *NET.layers[1:])
        return log_marginal_likelihood(net, X, Y, noise).value

    at, h = np.array([1.4, 0.2, 0.1]), 1e-4
    slopes = jax.jit(jax.grad(value, (0, 1, 2)))(*at)
    for i, slope in enumerate(slopes):
        steps = [value(*(at + m * h * (np.arange(3) == i))) for m in (-2, -1, 1, 2)]
        difference = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
        assert abs(slope - difference) <= 1e-6 * max(1, abs(difference))
    of_net, jitter = jax.jit(jax.grad(lambda net: log_marginal_likelihood(net, X, Y, 0.1), has_aux=True))(NET)
    assert jitter == 0 and close(of_net.layers[0].W_std, slopes[0]) and close(of_net.layers[0].b_std, slopes[1])


def test_precisions():
    single = Precomputed(*(ALL[name].astype(np.float32) for name in ("nngp", "ntk")))
    for result in (
        posterior(single, ROWS, Y, TEST_ROWS, noise=0.1),
        gradient_flow(single, ROWS, Y, TEST_ROWS, t=1),
        kernel_ridge(single, ROWS, Y.round().astype(int), TEST_ROWS, ridge=1),
        log_marginal_likelihood(single, ROWS, Y, 0.1),
    ):
        assert result[0].dtype == np.float32 and np.isfinite(result[0]).all()
    means = [posterior(matrices, ROWS, Y, TEST_ROWS, noise=0.1).mean for matrices in (single, MATRICES)]
    assert close(*means, 1e-5)
    assert posterior(MATRICES, ROWS, Y.astype(np.float32), TEST_ROWS).mean.dtype == np.float64
    assert 0 < posterior(single, REPEATED, Y[:5], TEST_ROWS).jitter < 1e-4


def test_traced():
    traced = jax.jit(lambda y, noise: posterior(MATRICES, ROWS, y, TEST_ROWS, noise=noise))(Y, 0.1)
    assert close(traced.mean, posterior(MATRICES, ROWS, Y, TEST_ROWS, noise=0.1).mean)
    times = jax.vmap(lambda t: gradient_flow(MATRICES, ROWS, Y, TEST_ROWS, t=t).mean)(jnp.array([0.3, jnp.inf]))
    assert close(times[0], gradient_flow(MATRICES, ROWS, Y, TEST_ROWS, t=0.3).mean)
    bad = Precomputed(nngp=np.diag([1.0, -1.0]))
    assert np.isnan(jax.jit(lambda y: log_marginal_likelihood(bad, [0, 1], y).value)(jnp.ones(2)))


BAD = {
    r"y has shape \(5, 2\); \(6,\) or \(6, targets\)": lambda: posterior(MATRICES, ROWS, Y[:5]),
    r"y has shape \(\); ": lambda: kernel_ridge(MATRICES, ROWS, 1.0),
    r"y has shape \(6, 0\)": lambda: gradient_flow(MATRICES, ROWS, Y[:, :0]),
    r"row 2 of y is NaN or infinite": lambda: gradient_flow(
        MATRICES, ROWS, np.where(np.arange(6)[:, None] > 1, np.nan, Y)
    ),
    r"y has dtype complex128": lambda: log_marginal_likelihood(MATRICES, ROWS, Y * 1j),
    r"y: a list came that is not an array": lambda: posterior(MATRICES, ROWS, [[1.0], [1.0, 2.0]]),
    r"noise=-0\.1 came; a number of 0 or more": lambda: posterior(MATRICES, ROWS, Y, noise=-0.1),
    r"noise=nan came": lambda: log_marginal_likelihood(MATRICES, ROWS, Y, float("nan")),
    r"noise=inf came": lambda: log_marginal_likelihood(MATRICES, ROWS, Y, np.inf),
    r"noise='a' came; a number was": lambda: posterior(MATRICES, ROWS, Y, noise="a"),
    r"ridge=-1 came": lambda: kernel_ridge(MATRICES, ROWS, Y, ridge=-1),
    r"ridge=\[0\.1, 1\] came; a number was": lambda: kernel_ridge(MATRICES, ROWS, Y, ridge=[0.1, 1]),
    r"t=-1 came": lambda: gradient_flow(MATRICES, ROWS, Y, t=-1),
    r"get=\('nngp', 'ntk'\) came; 'nngp' or 'ntk'": lambda: posterior(MATRICES, ROWS, Y, get=("nngp", "ntk")),
    r"get='foo' came": lambda: gradient_flow(MATRICES, ROWS, Y, get="foo"),
    r"get=3 came": lambda: log_marginal_likelihood(MATRICES, ROWS, Y, get=3),
    r"not positive definite, also with a jitter of 0\.01.*least eigenvalue is -1": lambda: posterior(
        Precomputed(nngp=np.diag([1.0, -1.0])), [0, 1], [1.0, 2.0]
    ),
    r"least eigenvalue is 0\. Add noise": lambda: posterior(Precomputed(nngp=np.zeros((2, 2))), [0, 1], [1.0, 2.0]),
    r"the ntk is asked for and was not given: Precomputed\(\.\.\., ntk=matrix\)": lambda: kernel_ridge(
        Precomputed(nngp=ALL["nngp"]), ROWS, Y
    ),
    r"matrices none came": lambda: Precomputed(),
    r"matrices nngp \(2, 3\) came; one or two square ones": lambda: Precomputed(np.ones((2, 3))),
    r"matrices nngp \(2, 2\), ntk \(3, 3\) came": lambda: Precomputed(np.eye(2), np.eye(3)),
    r"nngp has dtype int64; a matrix of floats": lambda: Precomputed(np.eye(2, dtype=int)),
    r"X of shape \(6, 3\) and dtype float64 came; .*row numbers": lambda: posterior(MATRICES, X, Y),
    r"X has row numbers from 5 to 10; the matrices have 10 rows": lambda: posterior(MATRICES, [5, 10], [1.0, 2.0]),
    r"X has shape \(6, 3, 1\)": lambda: posterior(NET, X[..., None], Y),
}


@pytest.mark.parametrize("message", BAD)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
