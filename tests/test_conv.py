"""Layers for images against recorded kernels, against loops over pixels in NumPy, and against sampled networks."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcalc import from_kernel
from dualcalc.conv import AvgPool, Conv, Flatten, GlobalAvgPool, myrtle
from dualcalc.layers import Activation, Dense, Dropout, Identity, LayerNorm, Scale
from dualcalc.networks import FanInSum, FanOut, Network, Parallel, Residual, parallel, repeat, serial

from .test_finite import deviations
from .tiers import thinned

DATA = json.loads((Path(__file__).parent / "data" / "networks.json").read_text())
INPUTS = {name: np.array(values) for name, values in DATA["inputs"].items()}
BOTH, RELU, ROOT = ("nngp", "ntk"), Activation("relu"), np.sqrt(2)
RNG = np.random.default_rng(11)
IMAGES = RNG.standard_normal((2, 5, 4, 2))
IMAGES[0, 0, 0] = 0  # a black pixel

# ------------------------------------------------------------------------------------------------------------ recorded


def myrtle_like():
    block = [Conv((3, 3)), Activation(from_kernel(kappa="exp(t - 1)"))]
    return serial(*block * 2, AvgPool((2, 2)), *block, AvgPool((2, 2)), *block, AvgPool((2, 2)), Flatten(), Dense())


RECORDED = {
    "fc_residual_relu": lambda: serial(Dense(), *[Residual(RELU, Dense(1.1))] * 2, RELU, Dense()),
    "conv2_relu_flatten": lambda: serial(*[Conv((3, 3), W_std=ROOT), RELU] * 2, Flatten(), Dense()),
    "conv2_relu_gap": lambda: serial(*[Conv((3, 3), W_std=ROOT, b_std=0.1), RELU] * 2, GlobalAvgPool(), Dense()),
    "myrtle_like_normgauss": myrtle_like,
}


def data(name, dtype=np.float64):
    images = DATA["networks"][name]["input"] == "i"
    return [INPUTS["I" * images + side].astype(dtype) for side in "XY"]


SINGLE = [(name, np.float32, 2e-6) for name in RECORDED]


@pytest.mark.parametrize(
    "name, dtype, bound",
    thinned([*((name, np.float64, 1e-13) for name in RECORDED), *SINGLE], [*SINGLE[:-2], SINGLE[-1]]),
)
def test_recorded(name, dtype, bound):
    X, Y = data(name, dtype)
    n, record = len(X), DATA["networks"][name]
    kernels = RECORDED[name]()(np.concatenate([X, Y]), get=BOTH)  # one call for both pairs: compiling is slow
    for kind, kernel in zip(BOTH, kernels, strict=True):
        assert kernel.dtype == dtype
        for pair, got in (("xx", kernel[:n, :n]), ("xy", kernel[:n, n:])):
            expected = np.array(record[f"{kind}_{pair}"])
            if (name, kind, pair) == ("conv2_relu_flatten", "ntk", "xx"):
                # the record is off by 4e-10 there: kdot = 1/2 on the diagonal makes each of 3 layers add the same
                np.fill_diagonal(expected, 3 * np.diagonal(record["nngp_xx"]))
            assert np.abs(np.asarray(got) - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("name", ["conv2_relu_flatten", "conv2_relu_gap", "myrtle_like_normgauss"])
def test_equal_and_black_images(name):
    X = data(name)[0]
    images = np.concatenate([X, X[:1], np.zeros_like(X[:1])])
    net = RECORDED[name]()
    end = net._variances(jnp.asarray(images), True, "X")[-1]
    for kernel, diagonal in zip(net(images, get=BOTH), (end.q, end.theta), strict=True):
        values = np.linalg.eigvalsh(kernel)
        assert (kernel == kernel.T).all() and (kernel.diagonal() == diagonal).all()
        assert values[0] >= -50 * np.finfo(float).eps * values[-1]
        assert np.allclose(kernel[0], kernel[3], rtol=1e-6)  # the root of relu's NTK at c = 1 magnifies rounding
        if name != "conv2_relu_gap":
            assert (kernel[4] == 0).all()


# ------------------------------------------------------------------------------------------------------------- NumPy

# A state is {pair: (K, Theta)} for the pairs xx, xy, yy of two inputs: arrays (h, w, h, w), or numbers for vectors.


def start(x, y):
    def pair(a, b):
        K = np.einsum("hwc,ijc->hwij", a, b) / a.shape[-1]
        return K, np.zeros_like(K)

    return {"xx": pair(x, x), "xy": pair(x, y), "yy": pair(y, y)}


def linear(state, f):
    return {pair: (f(K), f(T)) for pair, (K, T) in state.items()}


def affine(state, layer):
    w, b = layer.W_std**2, layer.b_std**2
    out = {}
    for pair, (K, T) in state.items():
        own = w * K + b if layer.parameterization == "ntk" else layer.fan_in * K + (b > 0)
        out[pair] = (w * K + b, own + w * T)
    return out


def sources(layer, axis, size):
    """For every pixel that comes out, the pixels it sees along an axis, None for those outside."""
    window, stride = layer.window[axis], layer.strides[axis]
    if layer.padding == "VALID":
        return [[p + d for d in range(window)] for p in range(0, size - window + 1, stride)]
    count = -(-size // stride)
    before = max((count - 1) * stride + window - size, 0) // 2
    seen = [[p * stride - before + d for d in range(window)] for p in range(count)]
    wrap = layer.padding == "CIRCULAR"
    return [[s % size if wrap else s if 0 <= s < size else None for s in row] for row in seen]


def convolved(K, layer):
    down, across = (sources(layer, axis, K.shape[axis]) for axis in (0, 1))
    out = np.zeros((len(down), len(across)) * 2)
    for h, w, i, j in np.ndindex(*out.shape):
        for a, c in zip(down[h], down[i], strict=True):
            for b, d in zip(across[w], across[j], strict=True):
                if None not in (a, b, c, d):
                    out[h, w, i, j] += K[a, b, c, d]
    return out / np.prod(layer.window)


def pooled(K, layer):
    (kh, kw), (sh, sw) = layer.window, layer.strides
    rows, columns = range(0, K.shape[0] - kh + 1, sh), range(0, K.shape[1] - kw + 1, sw)
    out = np.zeros((len(rows), len(columns)) * 2)
    for h, w, i, j in np.ndindex(*out.shape):
        a, b, c, d = rows[h], columns[w], rows[i], columns[j]
        out[h, w, i, j] = K[a : a + kh, b : b + kw, c : c + kh, d : d + kw].mean()
    return out


def variances(state, pair):
    """q11 and q22 for every entry of a pair."""
    first, second = (state[2 * side][0] for side in pair)
    if first.ndim == 0:
        return first, second
    height, width = first.shape[:2]
    q1, q2 = (np.array([[K[h, w, h, w] for w in range(width)] for h in range(height)]) for K in (first, second))
    return np.multiply.outer(q1, np.ones_like(q2)), np.multiply.outer(np.ones_like(q1), q2)


def relu(state):
    out = {}
    for pair, (K, T) in state.items():
        q1, q2 = variances(state, pair)
        norms = np.sqrt(q1 * q2)
        c = np.where(norms == 0, 0.0, K / np.where(norms == 0, 1.0, norms))
        angle = np.arccos(np.where(c > 1 - 1e-14, 1.0, np.maximum(c, -1.0)))
        k = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
        out[pair] = (k, T * (np.pi - angle) / (2 * np.pi))
    return out


def layer_norm(state):
    out = {}
    for pair, (K, T) in state.items():
        q1, q2 = variances(state, pair)
        scale = np.where(q1 * q2 == 0, 0.0, 1 / np.sqrt(np.where(q1 * q2 == 0, 1.0, q1 * q2)))
        out[pair] = (K * scale, T * scale)
    return out


def dropout(state, rate):
    def own(K):
        same = np.ones(())
        if K.ndim:
            same = np.zeros(K.shape, bool)
            for h, w in np.ndindex(*K.shape[:2]):
                same[h, w, h, w] = True
        return np.where(same, K / (1 - rate), K)

    return state | linear({pair: state[pair] for pair in ("xx", "yy")}, own)


def same_pixels(K):
    return K if K.ndim == 0 else np.mean([K[h, w, h, w] for h, w in np.ndindex(*K.shape[:2])])


def added(*states):
    return {pair: tuple(sum(s[pair][i] for s in states) for i in (0, 1)) for pair in states[0]}


def through(layers, state):
    for layer in layers:
        state = STEPS[type(layer)](layer, state)
    return state


STEPS = {
    Dense: lambda layer, state: affine(state, layer),
    Conv: lambda layer, state: affine(linear(state, lambda K: convolved(K, layer)), layer),
    Activation: lambda layer, state: relu(state),
    AvgPool: lambda layer, state: linear(state, lambda K: pooled(K, layer)),
    GlobalAvgPool: lambda layer, state: linear(state, np.mean),
    Flatten: lambda layer, state: linear(state, same_pixels),
    LayerNorm: lambda layer, state: layer_norm(state),
    Scale: lambda layer, state: linear(state, lambda K: layer.factor**2 * K),
    Identity: lambda layer, state: state,
    Dropout: lambda layer, state: dropout(state, layer.rate),
    Residual: lambda layer, state: added(state, through(layer.inner.layers, state)),
    FanOut: lambda layer, state: [state] * layer.number,
    Parallel: lambda layer, states: [through([b], s) for b, s in zip(layer.branches, states, strict=True)],
    FanInSum: lambda layer, states: added(*states),
    Network: lambda layer, state: through(layer.layers, state),
}

RELU_AFTER = serial(Conv((1, 1), W_std=1.4), RELU)

# Widths that keep variances near 1; a finite network has 48 channels, which the standard parameterization counts.
CASES = {
    "strides and windows": lambda: serial(
        Conv((3, 3), strides=(2, 1), W_std=1.4, b_std=0.2), RELU, AvgPool((2, 2), (1, 1)),
        Conv((1, 2), padding="VALID", W_std=1.5), RELU, Flatten(), Dense(1.2, 0.1),
    ),
    "strides of pools": lambda: serial(
        Conv((2, 2), W_std=1.4), RELU, AvgPool((3, 2), (1, 2)), Conv((3, 3), padding="CIRCULAR", W_std=1.4, b_std=0.3),
        RELU, AvgPool((2, 1)), Flatten(), Dense(),
    ),
    "dense, norm, branches": lambda: serial(
        Dense(1.3, 0.1), LayerNorm(), RELU, Conv((3, 2), strides=(1, 2), padding="CIRCULAR", W_std=1.3), FanOut(2),
        parallel(serial(RELU, Conv((3, 3), W_std=1.2)), Identity()), FanInSum(), Scale(0.9),
        Residual(RELU, Dense(1.1)), RELU, GlobalAvgPool(), Dense(),
    ),
    "standard": lambda: serial(
        Conv((3, 3), (2, 2), W_std=1.4, b_std=0.2, parameterization="standard", fan_in=18), RELU, Flatten(),
        Dense(1.2, 0.3, "standard", 6 * 48),
    ),
    "repeated": lambda: serial(
        Conv((3, 3)), repeat(Residual(RELU, Conv((3, 3), padding="CIRCULAR", W_std=0.7, b_std=0.1)), 4), RELU,
        Flatten(), Dense(),
    ),
    "dropout": lambda: serial(
        Conv((3, 3), W_std=1.4), RELU, Dropout(0.3), Conv((3, 3), W_std=1.4), Dropout(0.1), RELU, AvgPool((2, 2)),
        RELU_AFTER, Dropout(0.2), GlobalAvgPool(), Dense(),
    ),
}  # fmt: skip
SLOW = {"strides of pools", "repeated", "standard", "dense, norm, branches"}
"""Cases whose sampled networks take long to compile, of layers that other cases have."""


def disagreement(net, X):
    """The largest error of kernels against loops over pixels."""
    state = through(net.layers, start(*X))
    errors = []
    for i, kernel in enumerate(net(X, get=BOTH)):
        expected = np.array([[state["xx"][i], state["xy"][i]], [state["xy"][i], state["yy"][i]]])
        errors.append(np.abs(kernel - expected).max() / np.abs(expected).max())
    return max(errors)


@pytest.mark.parametrize("name", thinned(CASES, {"strides of pools", "repeated"}))
def test_loops_over_pixels(name):
    assert disagreement(CASES[name](), IMAGES) <= 1e-13


@pytest.mark.parametrize("name", thinned(CASES, SLOW))
def test_finite_networks(name):
    net = CASES[name]()
    if name == "dropout":
        with pytest.raises(ValueError, match="leave the layer out"):
            deviations(net, IMAGES)
    else:
        assert deviations(net, IMAGES, width=48, samples=32) <= 3.5


def test_a_wrong_network_is_seen():
    right, wrong = (serial(Conv((3, 3), padding=padding), Flatten()) for padding in ("SAME", "CIRCULAR"))
    state = through(right.layers, start(*IMAGES))
    assert disagreement(right, IMAGES) <= 1e-15
    assert abs(wrong(IMAGES)[0, 1] - state["xy"][1]) > 1e-3 * abs(state["xy"][1])


@pytest.mark.slow
def test_two_sets_agree_with_one():
    net = CASES["strides of pools"]()
    for cross, alone in zip(net(IMAGES, IMAGES[::-1], get=BOTH), net(IMAGES, get=BOTH), strict=True):
        assert np.allclose(cross[:, ::-1], alone, rtol=1e-6)
        assert abs(cross[0, 0] - alone[0, 1]) <= 1e-13 * alone.max()


def test_gradient_in_the_widths():
    weights = RNG.standard_normal((2, 2))

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(W_std, b_std):
        net = serial(Conv((3, 3), W_std=W_std, b_std=b_std), RELU, GlobalAvgPool(), Dense(W_std))
        return jnp.sum(net(IMAGES) * weights)

    at, h = np.array([1.4, 0.3]), 1e-4
    for i, slope in enumerate(loss(*at)[1]):
        steps = [loss(*(at + m * h * (np.arange(2) == i)))[0] for m in (-2, -1, 1, 2)]
        difference = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
        assert abs(slope - difference) <= 1e-6 * max(1, abs(difference))


def test_myrtle():
    assert [len(myrtle(depth, RELU).layers) for depth in (5, 7, 10)] == [15, 19, 25]
    net = myrtle(5, "relu", W_std=ROOT, b_std=0.1)
    assert [type(layer).__name__ for layer in net.layers[-5:]] == ["AvgPool"] * 3 + ["Flatten", "Dense"]
    shape, _ = jax.eval_shape(lambda key: (jnp.zeros(net.init(key, (32, 32, 3), 8)[0]), 0), jax.random.key(0))
    assert shape.shape == (8,) and net.layers[0].b_std == net.layers[-1].b_std == 0.1


VECTORS = IMAGES.reshape(2, -1)
BAD = {
    r"X has shape \(5, 4, 2\); .*images \(n, height, width, channels\)": lambda: serial(Flatten())(IMAGES[0]),
    r"X has shape \(2, 5, 4\); .*for images in grey x\[\.\.\., None\]": lambda: serial(Flatten())(IMAGES[..., 0]),
    r"X has shape \(2, 5, 4, 2\) and Y \(2, 5, 4, 1\); .*\(height, width, channels\)": lambda: serial(Flatten())(
        IMAGES, IMAGES[..., :1]
    ),
    r"layer 1, Conv\(\(3, 3\).*: it needs images": lambda: serial(Conv((3, 3)), Flatten())(VECTORS),
    r"layer 3, GlobalAvgPool.*: it needs images": lambda: serial(Dense(), Flatten(), GlobalAvgPool())(IMAGES),
    r"layer 2, Conv\(\(6, 1\).*the window \(6, 1\) is larger than the images \(5, 4\): take a smaller": lambda: serial(
        Dense(), Conv((6, 1), padding="VALID"), Flatten()
    )(IMAGES),
    r"layer 2, AvgPool.*the window \(2, 2\) is larger than the images \(1, 1\)": lambda: serial(
        AvgPool((5, 4)), AvgPool((2, 2)), Flatten()
    )(IMAGES),
    r"the network ends in images \(5, 4\); .*append Flatten\(\) or GlobalAvgPool\(\);.* reshape X to \(2, 40\)": (
        lambda: serial(Conv((3, 3)), RELU)(IMAGES)
    ),
    r"the network ends in branches; .*append FanInSum\(\)": lambda: serial(Flatten(), FanOut(2))(IMAGES),
    r"layer 3, Activation\('relu'\): its input is not Gaussian.*Put a Dense or Conv between": lambda: serial(
        Conv((3, 3)), RELU, RELU, Flatten()
    )(IMAGES),
    r"layer 4, Activation\('relu'\): its input is not Gaussian": lambda: serial(
        Conv((3, 3)), RELU, AvgPool((2, 2)), RELU, Flatten()
    )(IMAGES),
    r"layer 2, Residual.*: the branches are not independent.*Dense or Conv after": lambda: serial(
        Conv((3, 3)), Residual(RELU), Flatten()
    )(IMAGES),
    r"layer 4, FanInSum.*: the branches are not independent": lambda: serial(
        Conv((3, 3)), FanOut(2), parallel(RELU, Identity()), FanInSum(), Flatten()
    )(IMAGES),
    r"layer 3, FanInSum.*: branches of the shapes \[\(5, 4\), \(2, 2\)\]": lambda: serial(
        FanOut(2), parallel(Dense(), serial(Conv((3, 3)), AvgPool((2, 2)))), FanInSum(), Flatten()
    )(IMAGES),
    r"2 signals came for 3 branches; put FanOut\(3\)": lambda: serial(
        FanOut(2), parallel(Dense(), Dense(), Dense()), FanInSum(), Flatten()
    )(IMAGES),
    r"layer 1, FanInSum.*: one signal came; FanOut and parallel": lambda: serial(FanInSum(), Flatten())(IMAGES),
    r"padding='same' came; one of 'SAME', 'VALID', 'CIRCULAR'": lambda: Conv((3, 3), padding="same"),
    r"strides=\(0, 1\) came; two positive integers": lambda: Conv((3, 3), strides=(0, 1)),
    r"strides=2 came; two positive integers": lambda: AvgPool((2, 2), strides=2),
    r"window=3 came; two positive integers.*as \(3, 3\)": lambda: Conv(3),
    r"window=\(1\.5, 2\) came": lambda: AvgPool((1.5, 2)),
    r"window=\(3, 3, 3\) came": lambda: Conv((3, 3, 3)),
    r"fan_in=None came with parameterization='standard'": lambda: Conv((3, 3), parameterization="standard"),
    r"rate=1\.0 came; the probability": lambda: Dropout(1.0),
    r"depth=6 came; one of 5, 7, 10": lambda: myrtle(6, "relu"),
}


@pytest.mark.parametrize("message", BAD)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
