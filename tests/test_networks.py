"""Networks against neural-tangents' recorded kernels, and the promises of `Network.__call__`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcalc import NoClosedForm, derive, from_kernel
from dualcalc.layers import Activation, Dense, Dropout, Identity, LayerNorm
from dualcalc.networks import serial

from .tiers import thinned

DATA = json.loads((Path(__file__).parent / "data" / "networks.json").read_text())
X, Y = (np.array(DATA["inputs"][name]) for name in "XY")
NORMALIZED_GAUSSIAN = from_kernel("sqrt(q11*q22)*exp(q12/sqrt(q11*q22) - 1)")


def deep(depth, activation, W_std=1.0, b_std=0.0):
    return serial(*[Dense(W_std, b_std), Activation(activation)] * depth, Dense(W_std, b_std))


NETWORKS = {
    "fc3_relu_bias": lambda: deep(3, "relu", 1.5, 0.1),
    "fc2_gelu": lambda: deep(2, "gelu"),
    "fc2_erf_bias": lambda: deep(2, "erf", 1.2, 0.3),
    "fc2_sin": lambda: deep(2, "sin(t)"),
    "fc3_normalized_gaussian": lambda: deep(3, NORMALIZED_GAUSSIAN),
}
RELU = deep(1, "relu", 1.3, 0.2)  # most tests share it and its shapes: compiling is what takes time
DENSE = serial(Dense(1.3, 0.2))
BOTH = ("nngp", "ntk")


def error(name, pair, kernels):
    """The largest error of NNGP and NTK, each over its largest entry."""
    expected = [np.array(DATA["networks"][name][f"{kind}_{pair}"]) for kind in kernels._fields]
    return max(np.abs(np.asarray(k) - e).max() / np.abs(e).max() for k, e in zip(kernels, expected, strict=True))


SINGLE = [(name, np.float32, 2e-6) for name in NETWORKS]  # promised: 2e-5, and 1e-10 in float64


@pytest.mark.parametrize(
    "name, dtype, bound", thinned([*((name, np.float64, 1e-14) for name in NETWORKS), *SINGLE], SINGLE[1:])
)
def test_reference(name, dtype, bound):
    kernels = NETWORKS[name]()(np.concatenate([X, Y]).astype(dtype), get=BOTH)  # one call for both: compiling is slow
    assert kernels.ntk.dtype == dtype
    assert error(name, "xx", jax.tree.map(lambda kernel: kernel[:5, :5], kernels)) <= bound
    assert error(name, "xy", jax.tree.map(lambda kernel: kernel[:5, 5:], kernels)) <= bound


@pytest.mark.parametrize("dtype, bound", thinned([(np.float64, 1e-14), (np.float32, 2e-6)], [(np.float32, 2e-6)]))
def test_reference_of_two_sets(dtype, bound):
    kernels = NETWORKS["fc2_erf_bias"]()(X.astype(dtype), Y.astype(dtype), get=BOTH)
    assert kernels.ntk.dtype == dtype and error("fc2_erf_bias", "xy", kernels) <= bound


def test_a_wrong_network_fails_the_reference():
    assert error("fc2_erf_bias", "xy", deep(2, "erf", 1.2001, 0.3)(X, Y, get=BOTH)) > 1e-6


# Rows 5 and 6 repeat and reverse row 0, rows 7 and 8 are zero.
ROWS = np.concatenate([X, X[:1], -X[:1], np.zeros((2, X.shape[1]))])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_symmetric_case_is_exact(dtype):
    rows = jnp.asarray(ROWS, dtype)
    last = RELU._variances(rows, True, "X")[-1]
    for kernel, diagonal in zip(RELU(rows, get=BOTH), (last.q, last.theta), strict=True):
        assert np.isfinite(kernel).all() and (kernel == kernel.T).all()
        assert (kernel.diagonal() == diagonal).all()


def test_the_diagonal_is_k_and_kdot_of_equal_arguments():
    fns, w, b = Activation("relu").fns, 1.3**2, 0.2**2
    q = w * (ROWS * ROWS).mean(1) + b
    nngp = w * fns.k(q, q, q) + b
    ntk = nngp + w * q * fns.kdot(q, q, q)
    for kernel, diagonal in zip(RELU(ROWS, get=BOTH), (nngp, ntk), strict=True):
        assert np.allclose(kernel.diagonal(), diagonal, rtol=1e-15, atol=0)  # but for fused multiply-adds


def test_zero_repeated_and_opposite_rows():
    net = serial(Dense(1.3), Activation("gelu"), Dense(1.3))
    for cross, alone in zip(net(ROWS, ROWS, get=BOTH), net(ROWS, get=BOTH), strict=True):
        assert np.isfinite(cross).all()
        assert np.allclose(cross, alone, rtol=1e-6, atol=1e-12)
        assert np.allclose(alone[5], alone[0], rtol=1e-6)
        assert (alone[7:] == 0).all()


def test_many_features():
    """x.y of repeated rows overshoots |x|^2 by more than `gram_det` forgives: projected, not NaN."""
    rows = np.random.default_rng(0).standard_normal((40, 3072)).astype(np.float32)
    cross, alone = RELU(rows, rows), RELU(rows)
    root_eps = float(np.finfo(np.float32).eps) ** 0.5
    assert np.abs(cross - alone).max() <= 10 * root_eps * alone.max()  # the NTK of relu has a square root at c = 1


def test_input_without_dense_and_theta_zero():
    nngp, ntk = serial(Activation("relu"))(X, Y, get=BOTH)
    q, norms = X @ Y.T / 7, np.sqrt(np.outer((X * X).mean(1), (Y * Y).mean(1)))
    theta = np.arccos(np.clip(q / norms, -1, 1))
    assert np.allclose(nngp, norms * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi), atol=1e-14)
    assert (ntk == 0).all()


def test_gradients_in_the_widths():
    layer, weights = Activation("relu"), np.random.default_rng(1).standard_normal((2, len(ROWS), len(ROWS)))

    def loss(W_std, b_std):
        kernels = serial(Dense(W_std, b_std), layer, Dense(W_std, b_std))(ROWS, get=BOTH)
        return sum(jnp.sum(kernel * w) for kernel, w in zip(kernels, weights, strict=True))

    at, h = (1.4, 0.3), 1e-4
    for i, slope in enumerate(jax.grad(loss, (0, 1))(*at)):
        steps = [loss(*(v + m * h * (j == i) for j, v in enumerate(at))) for m in (-2, -1, 1, 2)]
        difference = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
        assert abs(slope - difference) <= 1e-6 * max(1, abs(difference))


def test_gradients_in_the_inputs_are_finite_at_repeated_and_zero_rows():
    assert np.isfinite(jax.grad(lambda x: RELU(x).sum())(jnp.asarray(ROWS))).all()


def test_gradient_in_a_parameter_of_the_activation():
    def loss(A):
        return serial(Dense(), Activation("abrelu", A=A, B=1.1))(X, get="nngp").sum()

    h = 1e-4
    at = [loss(jnp.asarray(0.3 + step)) for step in (-h, 0.0, h)]
    assert abs(at[1] - loss(0.3)) <= 1e-14 * abs(at[1])  # exact rational in the formula, or argument of the code
    assert abs(jax.grad(loss)(jnp.asarray(0.3)) - (at[2] - at[0]) / (2 * h)) <= 1e-6 * abs(at[1])


def test_network_is_a_pytree():
    slopes = jax.grad(lambda net: net(X, get="nngp").sum())(DENSE)
    q = X @ X.T / 7
    assert np.allclose(jax.tree.leaves(slopes), [2 * 1.3 * q.sum(), 2 * 0.2 * q.size], rtol=1e-13)
    batch = jax.vmap(lambda w: serial(Dense(w))(X, Y, get="nngp"))(jnp.array([1.0, 2.0]))
    assert np.allclose(batch[1], 4 * batch[0], rtol=1e-14)
    assert np.allclose(jax.jit(lambda x: DENSE(x))(X), DENSE(X), rtol=1e-14)


def test_new_numbers_compile_nothing(monkeypatch):
    traced, act = [], Dense.act
    monkeypatch.setattr(Dense, "act", lambda *arguments: traced.append(1) or act(*arguments))
    rows = X[:3, :5]  # a shape that no other test has
    deep(1, "relu", 1.0, 0.1)(rows)
    first = len(traced)
    deep(1, "relu", 1.7, 0.3)(rows)  # a new Activation of the same formula, too
    assert len(traced) == first > 0


def test_get():
    both = RELU(X, get=BOTH)
    assert both._fields == ("nngp", "ntk")
    assert (both.ntk == RELU(X)).all()
    assert np.allclose(both.nngp, RELU(X, get="nngp"), rtol=1e-14)  # another program: XLA may round differently
    other = DENSE(X, get=("ntk", "nngp"))
    assert other._fields == ("ntk", "nngp") and type(other) is type(DENSE(Y, get=("ntk", "nngp")))
    assert DENSE(X, get=("nngp",))._fields == ("nngp",)


def test_jumps_have_no_ntk():
    net = serial(Dense(), Activation("sign"))
    expected = 2 / np.pi * np.arcsin(X @ Y.T / np.sqrt(np.outer((X * X).sum(1), (Y * Y).sum(1))))
    assert np.allclose(net(X, Y, get="nngp"), expected, rtol=1e-12)
    for get in ("ntk", ("nngp", "ntk")):
        for other in (Y, None):
            with pytest.raises(NoClosedForm, match=r"Activation\('sign'\): the activation jumps at t = 0"):
                net(X, other, get=get)


def test_row_outside_the_domain():
    net = serial(Dense(1.0), Activation("exp(t**2)"))
    rows = np.sqrt(np.array([[0.1, 0.1], [0.2, 0.1], [0.3, 0.25]]))  # variances 0.1, 0.15, 0.275
    assert np.isfinite(net(rows[:2], get="nngp")).all()
    message = r"row 2 of {} has variance q = 0\.275 at layer 2, Activation\('exp\(t\*\*2\)'\).*4\*q < 1.*Scale the rows"
    with pytest.raises(ValueError, match=message.format("X")):
        net(rows, get="nngp")
    with pytest.raises(ValueError, match=message.format("Y")):
        net(rows[:2], rows, get="nngp")
    with pytest.raises(ValueError, match="row 2 of X"):
        jax.grad(lambda w: serial(Dense(w), *net.layers[1:])(rows, get="nngp").sum())(1.0)
    traced = jax.jit(lambda x: net(x, get="nngp"))(rows)
    assert np.isfinite(traced[:2, :2]).all() and not np.isfinite(traced[2]).any()
    with pytest.raises(ValueError, match="row 0 of X has variance q = inf at layer 1.*float32 ends at 3.4e"):
        DENSE(np.full((1, 2), 1e30, np.float32))


def test_precisions():
    half, single = X.astype(np.float16), X.astype(np.float32)
    assert DENSE(half).dtype == DENSE(single).dtype == np.float32
    assert DENSE(single, Y).dtype == DENSE(X, Y.astype(np.float32)).dtype == np.float64
    assert DENSE([[1, 2], [3, 4]]).dtype == DENSE(np.eye(2, dtype=int), [[0.5, 1]]).dtype == np.float64
    assert serial(Dense(jnp.asarray(1.5)))(single).dtype == np.float32
    assert (DENSE([[1, 2], [3, 4]]) == DENSE(np.array([[1.0, 2.0], [3.0, 4.0]]))).all()


BAD_INPUTS = {
    r"X has shape \(7,\); \(n, d\) was expected": lambda: RELU(X[0]),
    r"X has shape \(1, 5, 7\); \(n, d\) was expected": lambda: RELU(X[None]),
    r"X has shape \(5, 7\) and Y \(4, 3\); both must have the same number": lambda: RELU(X, Y[:, :3]),
    r"X has shape \(0, 7\); at least one row": lambda: RELU(X[:0]),
    r"Y has shape \(5, 0\); at least one row": lambda: RELU(X, X[:, :0]),
    r"row 3 of Y has a NaN or an infinite entry": lambda: RELU(X, np.where(np.arange(4)[:, None] == 3, np.nan, Y)),
    r"row 1 of X has a NaN or an infinite entry": lambda: RELU([[0.0, 1.0], [np.inf, 1.0], [np.nan, 0.0]]),
    r"X has dtype complex128; real numbers": lambda: RELU(X + 1j),
    r"X: a list came that is not an array": lambda: RELU([[1, 2], [3]]),
    r"X: a NoneType came": lambda: RELU(None),
    r"get='foo' came; 'nngp', 'ntk' or a tuple": lambda: RELU(X, get="foo"),
    r"get=\(\) came": lambda: RELU(X, get=()),
    r"get=\('ntk', 'ntk'\) came": lambda: RELU(X, get=("ntk", "ntk")),
    r"get=3 came": lambda: RELU(X, get=3),
    r"serial\(\) came without layers": lambda: serial(),
    r"layer 2 of serial: 'relu' \(str\) came.*did you mean Activation\('relu'\)": lambda: serial(Dense(), "relu"),
    r"layer 1 of serial: the class Dense came; a layer was expected: Dense\(\.\.\.\)": lambda: serial(Dense),
    r"layer 1 of serial: 3 \(int\) came": lambda: serial(3),
    r"W_std = 'a' came; a real number": lambda: Dense("a"),
    r"b_std = nan came; a finite number": lambda: Dense(1.0, float("nan")),
    r"W_std = Array\(.*came; a real number or a JAX scalar": lambda: Dense(jnp.ones(2)),
    r"the parameter A has neither a value nor a default.*A=1\.0": lambda: Activation("sin(A*t)"),
    r"B is not a free parameter of it; those are: A": lambda: Activation(
        "sin(A*t)", A=1.0 * jnp.ones(()), B=jnp.ones(())
    ),
    r"did you mean 'relu'": lambda: Activation("rleu"),
}


@pytest.mark.parametrize("message", BAD_INPUTS)
def test_bad_inputs(message):
    with pytest.raises(ValueError, match=message):
        BAD_INPUTS[message]()


def test_repr_and_composition():
    net = serial(Dense(1.5, 0.1), Activation("gelu"), Dense())
    assert (
        repr(net) == "serial(Dense(W_std=1.5, b_std=0.1), Activation('gelu'), Dense(W_std=1.0, b_std=0.0))"
        and repr(Activation("abrelu", A=0.3, B=1.1)) == "Activation('abrelu', A=0.3, B=1.1)"
    )
    nested = serial(serial(Dense(1.5, 0.1), Activation("gelu")), serial(Dense()))
    assert nested == net and hash(nested) == hash(net) and nested.layers[2] == Dense()
    assert repr(Activation(derive("sin(A*t)", A=2))).startswith("Activation(Dual of s(t) = sin(2*t)")


def test_signs_of_the_widths_do_not_matter():
    assert (deep(1, "relu", -1.3, -0.2)(X) == RELU(X)).all()


def test_to_a_file(tmp_path):
    """Tiles in a file, the same bits as in memory with the same tile; the CLI's way for large data."""
    rows, calls = np.random.default_rng(3).standard_normal((37, 7)).astype(np.float32), []
    paths = tmp_path / "nngp.npy", tmp_path / "ntk.npy"
    filed = RELU(rows, get=BOTH, out=paths, tile=16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 6) for i in range(1, 7)]
    for path, kernel, memory in zip(paths, filed, RELU(rows, get=BOTH, tile=16), strict=True):
        assert isinstance(kernel, np.memmap) and (kernel == np.asarray(memory)).all() and (kernel == kernel.T).all()
        assert (np.load(path) == kernel).all()
    whole = RELU(rows, get=BOTH)
    for kernel, other in zip(filed, whole, strict=True):
        assert np.abs(kernel - other).max() <= 4 * 2.0**-23 * np.abs(other).max()
    with pytest.raises(ValueError, match="exists"):
        RELU(rows, out=paths[0])


def test_eight_devices():
    """Rows of a tile divided over devices: the same to 4 eps of the largest entry, nearly parallel rows included."""
    code = """
import jax, numpy as np
from dualcalc import Activation, Dense, serial
rows = np.random.default_rng(4).standard_normal((21, 5)).astype(np.float32)
rows = np.concatenate([rows, rows[:2] * 1.001, np.zeros((1, 5), np.float32)])
net = serial(Dense(1.3, 0.2), Activation("relu"), Dense(1.3, 0.2))
assert len(jax.devices()) == 8
for Y in (None, rows[:9]):
    many, one = net(rows, Y), net(rows, Y, devices=jax.devices()[:1])
    assert np.abs(many - one).max() <= 4 * 2.0**-23 * np.abs(one).max()
"""
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", code], env=flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PSD = {"relu": (3, 1.3, 0.0), "gelu": (2, 1.5, 0.1), "erf": (2, 1.0, 0.0), "elu": (1, 1.0, 0.0)}
PSD_CASES = [(name, dtype) for dtype in (np.float64, np.float32) for name in PSD]


@pytest.mark.parametrize("name, dtype", thinned(PSD_CASES, PSD_CASES[2:]))
def test_positive_semidefinite(name, dtype):
    """With duplicates, opposite and zero rows: smallest eigenvalue at least -50 eps times the largest."""
    rows = np.concatenate([ROWS, ROWS[:3] * 0.5]).astype(dtype)
    depth, W_std, b_std = PSD[name]
    for kernel in deep(depth, name, W_std, b_std)(rows, get=BOTH):
        values = np.linalg.eigvalsh(np.asarray(kernel, float))
        assert values[0] >= -50 * np.finfo(dtype).eps * values[-1]


@pytest.mark.parametrize("layer", [LayerNorm(), Identity(), Dropout(0.1)])
def test_layers_without_numbers_in_a_row(layer):
    rows = np.random.default_rng(0).normal(size=(4, 3))
    inner = [layer] * (1 if isinstance(layer, LayerNorm) else 5)
    expected = serial(Dense(), *inner, Activation("relu"), Dense())(rows)
    assert np.allclose(serial(Dense(), *[layer] * 5, Activation("relu"), Dense())(rows), expected, rtol=1e-7)


@pytest.mark.parametrize("scale", thinned([1e-8, 1e-10, 1e-12, 1e-17], [1e-10, 1e-12]))
def test_small_rows_in_float32(scale):
    """Right, or refused: variances whose products underflow lose the angle."""
    rows = np.random.default_rng(0).normal(size=(24, 9)) * scale
    net = serial(Dense(1.4), Activation("relu"), Dense(1.4))
    try:
        kernel = np.asarray(net(rows.astype(np.float32), tol=0), float)
    except ValueError as error:
        assert scale < 1e-8 and "underflow" in str(error)
    else:
        exact = net(rows)
        assert np.abs(kernel - exact).max() <= 1e-6 * np.abs(exact).max()
