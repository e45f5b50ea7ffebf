"""Nystrom features against exact kernels, layer by layer and of whole networks."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from dualcalc import from_kernel
from dualcalc.atoms import NoClosedForm
from dualcalc.conv import AvgPool, Conv, Flatten, GlobalAvgPool, myrtle
from dualcalc.layers import Activation, Dense, Dropout, LayerNorm, Scale
from dualcalc.layerwise import _polynomial, _polynomials, centroids, layerwise
from dualcalc.networks import KERNELS, FanInSum, FanOut, Residual, parallel, serial
from dualcalc.nystrom import inverse_root, nystrom, pivoted

from .tiers import thinned

RELU, ROOT = Activation("relu"), 2**0.5
RNG = np.random.default_rng(5)
ROWS = RNG.standard_normal((60, 6))
SMOOTH = np.cumsum(np.cumsum(RNG.standard_normal((12, 6, 5, 2)), axis=1), axis=2) / 3
SMOOTH[0, :2, :2] = 0  # black pixels, a black patch among them
FULL = serial(Dense(1.4, 0.1), RELU, Dense(ROOT), RELU, Dense())
SINE = serial(Dense(1.4, 0.1), Activation("sin(t)"), Dense())  # where any kernel will do: compiled in half the time


def error(features, kernel) -> float:
    features, kernel = np.asarray(features, float), np.asarray(kernel, float)
    return float(np.linalg.norm(features @ features.T - kernel) / np.linalg.norm(kernel))


# -------------------------------------------------------------------------------------------------- the whole network


@pytest.mark.parametrize(
    "selection, get, dtype, bound",
    [
        ("pivoted", "ntk", np.float64, 1e-7),
        ("uniform", "nngp", np.float64, 1e-10),
        ("pivoted", "ntk", np.float32, 1e-5),
    ],
)  # 1e-7: the root of relu's NTK at c = 1 magnifies the rounding of a row with itself as a landmark
def test_every_row_a_landmark_is_exact(selection, get, dtype, bound):
    X = ROWS.astype(dtype)
    features = nystrom(FULL, X, 500, get=get, selection=selection)
    assert features.n_components <= 60 and features.error < bound
    assert features(X).dtype == dtype and error(features(X), FULL(X, get=get)) < bound


def test_error_is_the_trace_residual_and_pivots_beat_uniform_rows():
    X = np.concatenate([ROWS[:8], np.repeat(ROWS[8:9], 200, axis=0) + 1e-2 * RNG.standard_normal((200, 6))])
    kernel = np.asarray(SINE(X))
    errors = {}
    for selection in ("pivoted", "uniform"):
        found = [nystrom(SINE, X, 10, selection=selection, random_state=seed) for seed in range(5)]
        for features in found:
            residual = 1 - np.square(features(X)).sum() / np.trace(kernel)
            assert abs(residual - features.error) < 1e-9
        errors[selection] = np.median([features.error for features in found])
    assert errors["pivoted"] < errors["uniform"] / 2


def test_same_seed_same_features_and_few_distinct_rows():
    X = np.repeat(ROWS[:7], 9, axis=0)
    first, again = (nystrom(SINE, X, 5, random_state=3) for _ in range(2))
    assert (first(ROWS) == again(ROWS)).all() and first.n_components == 5
    assert (nystrom(SINE, X, 5, random_state=4)(ROWS) != first(ROWS)).any()
    assert nystrom(SINE, X, 50).n_components == 7
    assert nystrom(SINE, ROWS, 50, rows=20).n_components == 50  # more rows are looked at than asked for
    assert len(nystrom(SINE, ROWS, 5, rows=20)(ROWS)) == 60
    assert "5 columns" in repr(first)


def test_pivots_of_a_low_rank_matrix_end():
    factor = RNG.standard_normal((40, 3))
    matrix = factor @ factor.T
    chosen, values = pivoted(lambda i: matrix[:, i], matrix.diagonal(), 20, 1e-16, np.random.default_rng(0))
    assert len(set(chosen)) == len(chosen) and (values == matrix[:, chosen]).all()
    root = inverse_root(matrix[np.ix_(chosen, chosen)], 1e-16)
    assert root.shape[1] == 3 and np.allclose(values @ root @ root.T @ values.T, matrix)


def test_no_pivot_twice_where_the_diagonal_is_less_exact_off_it():
    """With a cusp at c = 1 the kernel of a row with itself is off by sqrt(eps), here by more; the diagonal is not."""
    matrix = np.exp(-np.linalg.norm(ROWS[:, None] - ROWS, axis=2)) - 0.02 * np.eye(60)
    for seed in range(5):
        chosen, _ = pivoted(lambda i: matrix[:, i], np.ones(60), 60, 1e-7, np.random.default_rng(seed))
        assert len(set(chosen)) == 60


@pytest.mark.slow
@pytest.mark.parametrize("dtype, bound", [(np.float64, 1e-7), (np.float32, 1e-4)])
def test_images_and_the_exact_kernel(dtype, bound):
    net = serial(Conv((3, 3), W_std=ROOT), RELU, AvgPool((2, 2)), Flatten(), Dense())
    X = SMOOTH.astype(dtype)
    assert error(nystrom(net, X, 100)(X), net(X)) < bound


# ------------------------------------------------------------------------------------------------------ layer by layer

NETS = {
    "myrtle-like": lambda: serial(
        *[Conv((3, 3), W_std=ROOT), RELU] * 2, AvgPool((2, 2)), Conv((2, 2), W_std=ROOT), RELU, Flatten(), Dense()
    ),
    "gelu, bias, strides": lambda: serial(
        Conv((3, 2), (2, 1), "VALID", 1.3, 0.2), Activation("gelu"), Conv((2, 2), (1, 2), "CIRCULAR"), Flatten(),
        Dense(b_std=0.3), Activation("erf"), Dense(),
    ),  # fmt: skip
    "normalized Gaussian": lambda: serial(
        Conv((3, 3)), Activation(from_kernel(kappa="exp(t - 1)")), GlobalAvgPool(), Dense()
    ),
    "residual": lambda: serial(
        Conv((3, 3)), Residual(RELU, Conv((3, 3), b_std=0.1), RELU, Conv((3, 3))), RELU, AvgPool((2, 2)), Flatten(),
        Dense(),
    ),
    "layer norm, standard": lambda: serial(
        Conv((3, 3), W_std=1.2, b_std=0.1, parameterization="standard", fan_in=18), LayerNorm(), RELU, Scale(1.5),
        Conv((1, 1)), GlobalAvgPool(), Dense(b_std=0.4),
    ),
    "branches": lambda: serial(
        Conv((2, 2)), FanOut(2), parallel(serial(RELU, Conv((2, 2))), Dense(0.5)), FanInSum(), RELU, Flatten(), Dense()
    ),
    "images without activations": lambda: serial(Conv((3, 3)), AvgPool((2, 2)), Conv((2, 2)), Flatten(), Dense()),
}  # fmt: skip


FAST = ("normalized Gaussian",)


@pytest.mark.parametrize(
    "name, get",
    [pytest.param(n, g, marks=() if n in FAST and g == "ntk" else pytest.mark.slow) for n in NETS for g in KERNELS],
)
def test_every_pixel_an_anchor_is_exact(name, get):
    net = NETS[name]()
    X = SMOOTH[:3]
    features = layerwise(net, X, 10**6, anchors=90, get=get, selection="uniform")
    assert error(features(X), net(X, get=get)) < 1e-7


@pytest.mark.slow
def test_vectors_and_float32():
    for dtype, bound in ((np.float64, 1e-7), (np.float32, 2e-3)):
        X = ROWS.astype(dtype)
        features = layerwise(FULL, X, 10**6, anchors=60, selection="pivoted")
        assert features(X).dtype == dtype and error(features(X), FULL(X)) < bound


@pytest.mark.slow
def test_more_anchors_less_error_and_batches():
    net = NETS["myrtle-like"]()
    kernel = net(SMOOTH)
    by = {m: layerwise(net, SMOOTH, 10**6, anchors=m, random_state=1) for m in (8, 16, 48)}
    errors = [error(features(SMOOTH), kernel) for features in by.values()]
    assert errors[0] > errors[1] > errors[2] and errors[2] < errors[0] / 2
    assert by[8].error > by[48].error > 0
    many = np.concatenate([SMOOTH] * 30)
    whole = by[16](many)
    assert (whole[:12] == whole[-12:]).all()
    # inverse roots magnify the rounding of another shape by up to (4 sqrt(m) eps)^(-1/2): 7e-10 measured
    assert np.allclose(whole[-12:], by[16](SMOOTH), rtol=0, atol=1e-8)
    again = layerwise(net, SMOOTH, 10**6, anchors=16, random_state=1)
    assert (again(SMOOTH) == by[16](SMOOTH)).all()


@pytest.mark.slow
def test_anchors_grow_where_pixels_are_fewer_or_are_given():
    net = NETS["myrtle-like"]()
    for anchors, counts in ((8, [8, 8, 23]), ([8, 4, 6], [8, 4, 6])):
        features = layerwise(net, SMOOTH, 10**6, anchors=anchors, get="nngp")
        assert [len(table.variances) for table in features.tables] == counts


@pytest.mark.slow
def test_last_reduction():
    net = NETS["myrtle-like"]()
    features = layerwise(net, SMOOTH, 10, anchors=16)
    assert features.n_components == 10 and features(SMOOTH).shape == (12, 10)


@pytest.mark.parametrize(
    "name", ["relu", *(pytest.param(n, marks=pytest.mark.slow) for n in ("abs", "normalized_gaussian"))]
)
def test_polynomials(name):
    layer, c = Activation(name), np.sin(np.linspace(-np.pi / 2, np.pi / 2, 999))
    found = _polynomials(layer, np.float32, True)
    for coefficients, f in ((found.k, layer.fns.k), (found.kdot, layer.fns.kdot)):
        exact = np.asarray(f(c, np.ones_like(c), np.ones_like(c)))
        got = np.asarray(_polynomial(coefficients.astype(float), jnp.asarray(c)))
        assert np.abs(got - exact).max() < 1e-6 * np.abs(exact).max()
    steep = Activation(from_kernel(kappa="exp(200*(t - 1))"))
    assert steep.homogeneity(1) == 1 and _polynomials(steep, np.float32, True) is None
    assert _polynomials(layer, np.float64, True) is None and _polynomials(Activation("gelu"), np.float32, True) is None


def test_centroids():
    points = np.repeat(np.eye(4), 5, axis=0) + 1e-3 * RNG.standard_normal((20, 4))
    weights = centroids(points, 4, np.random.default_rng(0))
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.abs(np.sort((weights @ points).max(axis=1)) - 1).max() < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("get", ["nngp", "ntk"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_sketch_is_near_in_the_mean_and_nearer_with_more_columns(activation, get):
    act = Activation(activation)
    net = serial(Conv((3, 3), W_std=ROOT), act, AvgPool((2, 2)), Conv((2, 2)), act, Flatten(), Dense())
    X = SMOOTH[1:7]
    kernel = np.asarray(net(X, get=get))
    make = partial(layerwise, net, X, 10**6, get=get, method="sketch", degree=16)
    errors = [np.median([error(make(anchors=m, random_state=s)(X), kernel) for s in range(3)]) for m in (16, 256)]
    assert errors[1] < 0.15 and errors[1] < errors[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("activation, W_std", [("normalized_gaussian", 1.0), ("relu", ROOT)])
def test_myrtle_on_crops_of_a_photograph_that_anchors_have_not_seen(activation, W_std):
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    crops = []
    for photograph, count in zip(load_sample_images().images, (512, 16), strict=True):
        corners = [generator.integers(size - 32, size=count) for size in photograph.shape[:2]]
        crops.append(np.stack([photograph[y : y + 32, x : x + 32] for y, x in zip(*corners, strict=True)]))
    mean, std = crops[0].mean((0, 1, 2)), crops[0].std((0, 1, 2))
    fitted, scored = (((x - mean) / std).astype(np.float32) for x in crops)
    net = myrtle(5, activation, W_std=W_std)
    kernel = net(scored)
    errors = [error(layerwise(net, fitted, 4096, random_state=seed)(scored), kernel) for seed in range(5)]
    assert np.median(errors) < 0.05


BAD = [
    (lambda: nystrom(FULL, ROWS, 0), "n_components=0"),
    (lambda: nystrom(FULL, ROWS, 5, selection="best"), "selection='best'"),
    (lambda: nystrom(FULL, ROWS, 5, get="both"), "get='both'"),
    (lambda: nystrom(serial(Dense(), RELU, Dense()), np.zeros((3, 2)), 2), "is zero on every row"),
    (lambda: nystrom(SINE, ROWS, 5)(ROWS[:, :3]), r"rows of shape \(6,\) were fitted"),
    (lambda: layerwise(NETS["normalized Gaussian"](), SMOOTH, 8, anchors=2.5), "anchors=2.5"),
    (lambda: layerwise(NETS["normalized Gaussian"](), SMOOTH, 8, anchors=(8, 8)), "for each of 1 activations"),
    (lambda: layerwise(NETS["normalized Gaussian"](), SMOOTH, 8, anchors=(0,)), "an entry of anchors=0"),
    (lambda: layerwise(NETS["normalized Gaussian"](), SMOOTH, 8, anchors="8"), "anchors='8'"),
    (lambda: layerwise(FULL, np.float32(1e25 * ROWS), 8), "not finite in float32"),
    (lambda: layerwise(serial(Dense(0.0), RELU, Dense(0.0)), ROWS, 8), "is zero on every row"),
    (lambda: layerwise(serial(RELU), ROWS, 8), "is zero on every row"),
    (lambda: layerwise(NETS["normalized Gaussian"](), SMOOTH, 8, method="other"), "method='other'"),
    (lambda: layerwise(NETS["normalized Gaussian"](), ROWS, 8), "needs images"),
    (lambda: layerwise(serial(Dense(), Residual(RELU, Dropout(0.2), Dense())), ROWS, 8), r"Dropout\(rate=0.2\)"),
    (lambda: layerwise(NETS["images without activations"](), SMOOTH, 8)(SMOOTH[:, :4]), "were fitted"),
]


@pytest.mark.parametrize("call, words", thinned(BAD, [BAD[10], BAD[15]]), ids=[words for _, words in BAD])
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("method", ["nystrom", pytest.param("sketch", marks=pytest.mark.slow)])
def test_an_activation_that_jumps_has_an_nngp_alone(method):
    jumps = serial(Dense(), Activation("sign"), Dense())
    with pytest.raises(NoClosedForm):
        layerwise(jumps, ROWS, 8, method=method)
    assert np.isfinite(layerwise(jumps, ROWS, 64, get="nngp", method=method)(ROWS)).all()


@pytest.mark.slow
def test_a_norm_outside_the_range_raises():
    net = serial(Dense(), Activation("tanh"), Dense())
    with pytest.raises(ValueError, match="row 1 of X"):
        layerwise(net, ROWS, 500)(np.stack([ROWS[0], 1e3 * ROWS[1]]))
