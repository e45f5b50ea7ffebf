"""Sampled networks of finite width against kernels, and against networks written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcalc import from_kernel
from dualcalc.conv import Conv, Flatten
from dualcalc.finite import monte_carlo
from dualcalc.layers import Activation, Dense, Dropout, LayerNorm
from dualcalc.networks import Residual, serial

RNG = np.random.default_rng(5)
X, Y = RNG.standard_normal((3, 4)), RNG.standard_normal((2, 4))
IMAGES = RNG.standard_normal((2, 3, 3, 2))
KEY, BOTH = jax.random.key(0), ("nngp", "ntk")
RELU = Activation("relu")


def deviation(estimates, kernels, width):
    """(estimate - kernel)/standard error, the largest of all kernels. The allowance of 0.3/width is for the bias of a
    finite width: Theta of depth L is off by about L/width."""
    out = []
    for estimate, kernel in zip(estimates, kernels, strict=True):
        allowed = estimate.error + 0.3 / width * np.abs(kernel).max()
        out.append(float(np.abs((estimate.mean - kernel) / allowed).max()))
    return max(out)


def deviations(net, X, width=96, samples=48):
    estimates = monte_carlo(net, X, get=BOTH, key=KEY, width=width, samples=samples)
    return deviation(estimates, net(X, get=BOTH), width)


def test_two_sets_and_a_wrong_kernel():
    net, width = serial(Dense(1.4, 0.2), RELU, Dense(1.1, 0.3)), 96
    estimates, right = monte_carlo(net, X, Y, BOTH, key=KEY, width=width, samples=48), net(X, Y, get=BOTH)
    assert deviation(estimates, right, width) <= 3.5
    wrong = right._replace(ntk=right.ntk + 0.6**2 - 0.3**2)  # a last bias that is twice as large
    assert deviation(estimates, wrong, width) > 5


def test_standard_parameterization():
    standard = {"b_std": 0.3, "parameterization": "standard"}
    last = Dense(1.2, fan_in=9 * 96, **standard)
    assert deviations(serial(Conv((2, 3), W_std=1.4, fan_in=12, **standard), RELU, Flatten(), last), IMAGES) <= 3.5


def test_by_hand():
    """One hidden layer: derivatives written out, weights of the same draws."""
    net, width, samples = serial(Dense(1.4, 0.2), RELU, Dense(1.1, 0.3)), 8, 3
    estimate = monte_carlo(net, X, get=BOTH, key=KEY, width=width, samples=samples)
    nngp, ntk = [], []

    @jax.jit
    def drawn(key):
        for_weights, for_outputs = jax.random.split(key)
        chosen = jax.random.choice(for_outputs, width, (4,), replace=False)
        return net.init(for_weights, (4,), width)[1], chosen

    for key in jax.random.split(KEY, samples):
        ((W, b), _, (V, c)), chosen = jax.tree.map(np.asarray, drawn(key))
        u = 1.4 / 2 * X @ W + 0.2 * b
        h, step = np.maximum(u, 0), u > 0
        f = 1.1 / np.sqrt(width) * h @ V + 0.3 * c
        nngp.append(f @ f.T / width)
        last = 1.1**2 * h @ h.T / width + 0.3**2
        first = [(step * V[:, j]) @ (step * V[:, j]).T * 1.1**2 / width for j in chosen]
        ntk.append(last + np.mean(first, axis=0) * (1.4**2 / 4 * X @ X.T + 0.2**2))
    for got, kernels in zip(estimate, (nngp, ntk), strict=True):
        assert np.allclose(got.mean, np.mean(kernels, axis=0), rtol=1e-12)
        assert np.allclose(got.error, np.std(kernels, axis=0, ddof=1) / np.sqrt(samples), rtol=1e-9)


def test_a_single_layer_is_exact():
    mean, error = monte_carlo(serial(Dense(1.4, 0.2)), X, Y, key=KEY, width=3, samples=2)
    assert np.allclose(mean, 1.4**2 * X @ Y.T / 4 + 0.04, rtol=1e-13) and np.abs(error).max() <= 1e-15
    standard = serial(Dense(1.4, 0.2, "standard", 4))
    assert np.allclose(monte_carlo(standard, X, key=KEY, width=3, samples=2).mean, X @ X.T + 1, rtol=1e-13)


def test_no_weights():
    norms = np.sqrt((X * X).mean(1))
    estimate = monte_carlo(serial(LayerNorm()), X, get=BOTH, key=KEY, samples=2)
    assert np.allclose(estimate.nngp.mean, X @ X.T / 4 / np.outer(norms, norms), rtol=1e-13)
    assert (estimate.ntk.mean == 0).all()


def test_results_and_keys():
    net = serial(Dense(), Activation("abrelu", A=jnp.asarray(0.3), B=1.1), Dense())
    both = monte_carlo(net, X.astype(np.float32), get=("ntk", "nngp"), key=jax.random.PRNGKey(3), width=8, samples=2)
    assert both._fields == ("ntk", "nngp") and both.ntk._fields == ("mean", "error")
    assert both.ntk.mean.shape == (3, 3) and both.ntk.mean.dtype == np.float64
    assert np.allclose(both.ntk.mean, both.ntk.mean.T, rtol=1e-13)


UNKNOWN = Activation(from_kernel(kappa="exp(t - 1)"))
BAD = {
    r"without a known activation came: it has no network": lambda: monte_carlo(serial(Dense(), UNKNOWN), X, key=KEY),
    r"finite network of Dropout is not sampled; leave": lambda: monte_carlo(serial(Dense(), Dropout(0.1)), X, key=KEY),
    r"an activation before all weights.*Put a Dense or Conv before": lambda: monte_carlo(
        serial(LayerNorm(), RELU, Dense()), X, key=KEY
    ),
    r"shapes \(\(4,\), \(256,\)\) came to FanInSum; choose a width": lambda: monte_carlo(
        serial(Residual(Dense())), X, key=KEY
    ),
    r"key=0 came; one key of jax\.random was expected, such as jax\.random\.key\(0\)": lambda: monte_carlo(
        serial(Dense()), X, key=0
    ),
    r"key=None came": lambda: monte_carlo(serial(Dense()), X, key=None),
    r"(?s)key=Array\(\(2,\).*came; one key": lambda: monte_carlo(serial(Dense()), X, key=jax.random.split(KEY)),
    r"width=0 came; an integer of 1 or more": lambda: monte_carlo(serial(Dense()), X, key=KEY, width=0),
    r"width=2\.5 came": lambda: monte_carlo(serial(Dense()), X, key=KEY, width=2.5),
    r"samples=1 came; an integer of 2 or more": lambda: monte_carlo(serial(Dense()), X, key=KEY, samples=1),
    r"samples=True came": lambda: monte_carlo(serial(Dense()), X, key=KEY, samples=True),
    r"get='foo' came": lambda: monte_carlo(serial(Dense()), X, get="foo", key=KEY),
    r"Y \(2, 3\); both must have": lambda: monte_carlo(serial(Dense()), X, Y[:, :3], key=KEY),
    r"the network ends in images \(3, 3\)": lambda: monte_carlo(serial(Conv((3, 3))), IMAGES, key=KEY),
}


@pytest.mark.parametrize("message", BAD)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
