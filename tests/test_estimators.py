"""Feature maps by name, their choice and error, and the scikit-learn estimators on them."""

import pickle
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from click.testing import CliRunner
from scipy.linalg import sqrtm
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

import dualcalc as dc
from dualcalc import cli
from dualcalc.estimators import (
    ExactKernel,
    NNGPFeatures,
    NTKFeatures,
    StreamingRidge,
    StreamingRidgeClassifier,
    default_network,
)
from dualcalc.features import choose, feature_error, feature_map
from dualcalc.inference import Precomputed, kernel_ridge
from dualcalc.ridge import RidgeStream

from .tiers import thinned

RNG = np.random.default_rng(11)
X, OTHERS = RNG.standard_normal((60, 5)), RNG.standard_normal((40, 5))
Y = np.sin(X[:, 0]) + X[:, 1]
NET = dc.serial(dc.Dense(1.5, 0.1), dc.Activation("relu"), dc.Dense(1.2))
ROOT = 1e-7  # the NTK of relu of a row with itself, seen as a pair, is exact to the square root of rounding
SMOOTH = dc.serial(dc.Dense(1.2), dc.Activation("erf"), dc.Dense())
LOW_RANK = np.concatenate([X] * 3) + 0.01 * RNG.standard_normal((180, 5))  # Nystrom's case


def close(a, b, bound):
    return np.abs(np.asarray(a) - b).max() <= bound * np.abs(b).max()


# Maps and their error ---------------------------------------------------------------------------------------------


class Given:
    """Features that are given: a map."""

    def __init__(self, Z):
        self.Z = Z

    def __call__(self, X):
        return self.Z[: len(X)]


def test_the_error_is_that_of_the_definition():
    K, Z = np.asarray(NET(X)), RNG.standard_normal((60, 9))
    error = feature_error(NET, Given(Z), X, rows=60, ridge=0.3)
    root = np.linalg.inv(np.real(sqrtm(K + 0.3 * np.eye(60))))
    assert error.frobenius == pytest.approx(np.linalg.norm(Z @ Z.T - K) / np.linalg.norm(K))
    assert error.spectral == pytest.approx(np.abs(np.linalg.eigvalsh(root @ (Z @ Z.T - K) @ root)).max())
    assert error.rows == 60 and feature_error(NET, Given(Z), X).ridge == pytest.approx(1e-3 * np.trace(K))
    twice = [feature_error(NET, feature_map(NET, X, 30, random_state=1), OTHERS, rows=20) for _ in range(2)]
    assert twice[0] == twice[1] and twice[0].rows == 20


def test_exact_features():
    features = feature_map(NET, X, method="exact")
    assert close(features(X) @ features(X).T, np.asarray(NET(X)), ROOT)
    assert feature_error(NET, features, X).frobenius < ROOT


METHODS = [(method, get) for method in ("sketch", "nystrom", "centred") for get in ("ntk", "nngp")]


@pytest.mark.parametrize("method, get", thinned(METHODS, {*METHODS} - {("sketch", "ntk"), ("nystrom", "nngp")}))
def test_more_columns_are_better(method, get):
    errors = [
        np.median(
            [
                feature_error(SMOOTH, feature_map(SMOOTH, X, n, method, get=get, random_state=s), OTHERS, get=get)[0]
                for s in range(3)
            ]
        )
        for n in (20, 320)
    ]
    assert errors[1] < errors[0] / 2


def test_the_choice_and_its_reason():
    choice = choose(NET, X, 64)
    assert choice.method == "exact" and "60 rows are no more than 64 columns" in choice.reason
    rows, choice = LOW_RANK, choose(SMOOTH, LOW_RANK, 40)
    assert choice.method == "nystrom" and "the least error on rows that it was not fitted on" in choice.reason
    assert {c.method for c in choice.candidates} == {"sketch", "centred", "nystrom"}
    assert [c.error for c in choice.candidates] == sorted(c.error for c in choice.candidates)
    hurried = choose(SMOOTH, rows, 40, seconds=1e-9)
    fastest = min(hurried.candidates, key=lambda c: c.seconds)
    assert "none is within 1e-09 s; it is the fastest" in hurried.reason and hurried.method == fastest.method
    within = choose(SMOOTH, rows, 40, seconds=1e9)
    assert within.method == "nystrom" and "the least error within 1e+09 s" in within.reason
    loose, strict = (choose(SMOOTH, rows, 40, error=error) for error in (100.0, 1e-12))
    assert loose.method == min(loose.candidates, key=lambda c: c.seconds).method
    assert strict.method == "nystrom" and "none has an error of at most 1e-12; it has the least" in strict.reason
    assert choose(NET, scipy.sparse.csr_array(X), 20).method == "sketch"
    assert choose(NET, np.zeros((3, 8, 8, 1)), 20).method == "layerwise"


BAD = {
    r"method='foo' came; one of 'sketch'": lambda: feature_map(NET, X, method="foo"),
    r"n_components=0 came": lambda: feature_map(NET, X, 0),
    r"get=\('foo',\) came": lambda: choose(NET, X, get="foo"),
    r"seconds=-1 came; a positive number": lambda: choose(NET, X, seconds=-1),
    r"seconds and error came together": lambda: choose(NET, X, seconds=1.0, error=0.1),
    r"ridge=0 came; a positive number": lambda: feature_error(NET, Given(X), X, ridge=0),
    r"kernel is zero on these rows": lambda: feature_error(SMOOTH, Given(0 * X), 0 * X),
    r"Input X contains NaN": lambda: NTKFeatures(NET).fit(np.where(X > 2, np.nan, X)),
    r"Input X contains infinity": lambda: NTKFeatures(NET, 64).fit(X).transform(np.where(X > 1, np.inf, X)),
    r"X has 4 features, but NTKFeatures is expecting 5": lambda: NTKFeatures(NET, 64).fit(X).transform(X[:, :4]),
    r"outside the range": lambda: NTKFeatures(SMOOTH, 64).fit(X).transform(1e3 * X),
    r"labels \[7\] came; one of \[0, 1\]": lambda: StreamingRidgeClassifier(NTKFeatures(NET, 64)).partial_fit(
        X[:2], [0, 7], classes=[0, 1]
    ),
    r"classes=None came with the first rows": lambda: StreamingRidgeClassifier().partial_fit(X[:2], [0, 1]),
    r"folds=0 came": lambda: StreamingRidge(NTKFeatures(NET, 64), folds=0).fit(X, Y),
}


@pytest.mark.parametrize("message", BAD)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


# Transformers -----------------------------------------------------------------------------------------------------


def test_transformers_are_the_maps():
    for estimator, get in ((NTKFeatures, "ntk"), (NNGPFeatures, "nngp")):
        found = estimator(NET, 64, method="nystrom").fit(X)
        assert close(found.transform(X) @ found.transform(X).T, np.asarray(NET(X, get=get)), ROOT)
        sketched = estimator(NET, 64).fit(X)
        assert sketched.transform(X).shape == (60, 64) == (60, sketched.map_.n_components)
        assert list(sketched.get_feature_names_out())[::63] == [f"{estimator.__name__.lower()}{i}" for i in (0, 63)]


def test_reproducible_from_the_seed():
    first, second = (NTKFeatures(NET, 64, random_state=3).fit_transform(X) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert not np.array_equal(first, NTKFeatures(NET, 64, random_state=4).fit_transform(X))


def test_precisions():
    single, double = (NTKFeatures(NET, 64).fit_transform(X.astype(dtype)) for dtype in (np.float32, np.float64))
    assert single.dtype == np.float32 and double.dtype == np.float64
    K = np.asarray(NET(X))
    errors = [np.linalg.norm(Z @ Z.T - K) / np.linalg.norm(K) for Z in (single, double)]
    assert max(errors) < 2 * min(errors)  # the norms' range is rounded: not the same random features


def test_a_sketch_is_fitted_in_parts():
    whole = NTKFeatures(SMOOTH, 64).fit(X)
    parts = NTKFeatures(SMOOTH, 64)
    for start in range(0, 60, 20):
        parts.partial_fit(X[start : start + 20])
    assert whole.transform(X).tobytes() == parts.transform(X).tobytes()
    assert not hasattr(NTKFeatures(SMOOTH, 64, method="nystrom"), "partial_fit")


def test_sparse_rows():
    rows = scipy.sparse.random_array((30, 50), density=0.1, rng=RNG, format="csr")
    dense = NTKFeatures(NET, 128).fit(rows.toarray()).transform(rows.toarray())
    assert close(NTKFeatures(NET, 128).fit(rows).transform(rows), dense, 1e-10)
    labels = np.arange(30) % 2
    assert StreamingRidgeClassifier(NTKFeatures(NET, 128)).fit(rows, labels).predict(rows).shape == (30,)
    with pytest.raises(TypeError, match="Sparse data was passed"):
        NTKFeatures(NET, 128, method="nystrom").fit(rows)


def test_what_is_refused_says_where_and_what_to_do():
    y = X[:, 0]
    images = np.zeros((4, 3, 3, 1))
    relu = dc.serial(dc.Dense(1.4), dc.Activation("relu"), dc.Dense())
    for call, kind, words in (
        (lambda: NTKFeatures(NET, 32).fit(images), ValueError, "for images take method='layerwise'"),
        (lambda: NTKFeatures(relu, 32).fit(X).transform(np.float32(1e30 * X)), ValueError, "overflows|infinity"),
        (lambda: NTKFeatures(relu, 32).fit(X).transform(np.float32(1e-24 * X)), ValueError, "row 0 of X.*underflows"),
        (lambda: NTKFeatures(NET, 32, options=[8]).fit(X), ValueError, "a dictionary was expected"),
        (lambda: NTKFeatures(NET, 32, options={"anchor": 3}).fit(X), ValueError, "'anchor' came .* it knows degree"),
        (lambda: StreamingRidge(NET).fit(X, y), TypeError, r"such as NTKFeatures\(net\)"),
        (lambda: StreamingRidge(NTKFeatures(NET, 32), batch_size=0).fit(X, y), ValueError, "batch_size=0"),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_a_refused_batch_leaves_the_stream_as_it_was():
    y = X[:, 0]
    stream = StreamingRidge(NTKFeatures(NET, 32), batch_size=3).partial_fit(X, y)
    before = stream.predict(X)
    wild = X.copy()
    wild[8] *= 1000
    with pytest.raises(ValueError, match="rows 6 to 8 of X.*row 2 of X"):
        stream.partial_fit(wild, y)
    assert (stream.predict(X) == before).all()


def test_networks_and_estimators_pickle():
    for activation in (dc.Activation("abrelu", A=jnp.asarray(0.3), B=1.1), dc.Activation(dc.derive("t*Phi(t)"))):
        net = dc.serial(dc.Dense(1.5), activation, dc.Dense())
        again = pickle.loads(pickle.dumps(net))
        assert again == net and (again(X) == net(X)).all()
    for method in ("sketch", "nystrom"):
        fitted = NTKFeatures(NET, 64, method=method).fit(X)
        again = pickle.loads(pickle.dumps(fitted))
        assert again.transform(X).tobytes() == fitted.transform(X).tobytes()
    assert clone(NTKFeatures(NET)).net == NET


def test_auto_says_why():
    found = NTKFeatures(NET, 64, method="auto").fit(X)
    assert found.choice_.method == "exact" and "60 rows" in found.choice_.reason
    few = NTKFeatures(SMOOTH, 40, method="auto", options={"seconds": 1e6}).fit(LOW_RANK)
    assert few.choice_.candidates and few.transform(LOW_RANK).shape[1] <= 40


# Ridge regression -------------------------------------------------------------------------------------------------


def test_streaming_is_kernel_ridge_regression():
    """On exact features; the intercept is that of centred features and targets."""
    model = StreamingRidge(NTKFeatures(NET, method="exact"), ridges=[0.3], batch_size=40).fit(X, Y)
    centre = np.eye(60) - 1 / 60
    K, cross = np.asarray(NET(X)), np.asarray(NET(OTHERS, X))
    dual = kernel_ridge(Precomputed(ntk=centre @ K @ centre), range(60), Y - Y.mean(), ridge=0.3)
    expected = Y.mean() + (cross - K.mean(axis=0)) @ centre @ np.asarray(dual.coefficients)
    assert close(model.predict(OTHERS), expected, 10 * ROOT)


def test_streaming_in_parts_is_the_whole():
    whole = StreamingRidge(NTKFeatures(NET, 64), folds=3, batch_size=20).fit(X, np.stack([Y, -Y], axis=1))
    parts = StreamingRidge(NTKFeatures(NET, 64), folds=3)
    for start in range(0, 60, 20):
        parts.partial_fit(X[start : start + 20], np.stack([Y, -Y], axis=1)[start : start + 20])
    again = StreamingRidge(NTKFeatures(NET, 64), folds=3, batch_size=20).fit(X, np.stack([Y, -Y], axis=1))
    assert whole.path_.coefficients.tobytes() == again.path_.coefficients.tobytes()
    assert parts.predict(X).shape == (60, 2) and np.isfinite(parts.path_.scores).all()
    with pytest.raises(NotFittedError):
        StreamingRidge().predict(X)


def test_the_classifier():
    blobs = np.concatenate([X, X + 4, X - 4])
    labels = np.repeat(["a", "b", "c"], 60)
    model = StreamingRidgeClassifier(NTKFeatures(NET, 64), batch_size=60).fit(blobs, labels)
    assert model.score(blobs, labels) > 0.95 and model.decision_function(blobs).shape == (180, 3)
    two = StreamingRidgeClassifier(NTKFeatures(NET, 64), batch_size=60)
    for rows in np.array_split(RNG.permutation(120), 3):
        two.partial_fit(blobs[rows], labels[rows], classes=["a", "b"])
    assert two.decision_function(blobs[:120]).shape == (120,) and two.score(blobs[:120], labels[:120]) > 0.9


def test_exact_kernels_in_scikit_learn():
    model = make_pipeline(ExactKernel(NET), KernelRidge(alpha=0.3, kernel="precomputed")).fit(X, Y)
    assert close(model.predict(OTHERS), np.asarray(kernel_ridge(NET, X, Y, OTHERS, ridge=0.3).mean), 1e-8)
    search = GridSearchCV(
        make_pipeline(ExactKernel(NET), SVC(kernel="precomputed")), {"exactkernel__get": ["ntk", "nngp"]}, cv=2
    ).fit(X, Y > 0)
    assert search.best_score_ > 0.8
    assert len(ExactKernel(NET).fit(X).get_feature_names_out()) == 60


DEFAULT = default_network()
CHECKED = {
    "sketch": NTKFeatures(n_components=32),
    "centred": NTKFeatures(DEFAULT, n_components=32, method="centred"),
    "nystrom": NNGPFeatures(DEFAULT, n_components=32, method="nystrom"),
    "auto": NTKFeatures(NET, n_components=1000, method="auto"),
    "exact kernel": ExactKernel(NET),
    "regressor": StreamingRidge(NTKFeatures(NET, n_components=64)),
    "classifier": StreamingRidgeClassifier(NTKFeatures(NET, n_components=64)),
}


NOT_HERE = {"check_array_api_input", "check_regressor_data_not_an_array", "check_classifier_data_not_an_array"}
"""Checks that need pandas, or the array API switched on."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in CHECKED])
def test_check_estimator(name):
    results = check_estimator(CHECKED[name], on_skip=None)
    assert all(r["status"] == "passed" for r in results if r["check_name"] not in NOT_HERE)


# Acceptance -------------------------------------------------------------------------------------------------------


def digits(seed):
    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(rows))
    rows, labels = rows[order] / 16, labels[order]
    return rows[:1000], labels[:1000], rows[1000:], labels[1000:]


@pytest.mark.slow
def test_digits_beside_the_exact_kernel():
    """Ridge on 4096 features within 0.6 % of the exact kernel, both with the parameter chosen on training rows."""
    net, gaps = dc.serial(*[dc.Dense(2**0.5, 0.1), dc.Activation("gelu")] * 3, dc.Dense()), []
    for seed in range(5):
        train, labels, test, truth = digits(seed)
        exact, sketched = (
            StreamingRidgeClassifier(NTKFeatures(net, 4096, method, seed)).fit(train, labels).score(test, truth)
            for method in ("exact", "sketch")
        )
        assert exact > 0.97
        gaps.append(exact - sketched)
    assert np.median(gaps) <= 0.006


STREAM = """
import resource
import numpy as np
from dualcalc.estimators import NTKFeatures, StreamingRidge
import dualcalc as dc
X = np.random.default_rng(0).standard_normal((40_000, 64), dtype=np.float32)
net = dc.serial(dc.Dense(), dc.Activation("erf"), dc.Dense())
features = NTKFeatures(net, 512, options={"degree": 4})
models = [StreamingRidge(features, batch_size=2000).fit(X[:n], X[:n, 0]) for n in (4000, 4000)]
assert models[0].path_.coefficients.tobytes() == models[1].path_.coefficients.tobytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
StreamingRidge(features, batch_size=2000).fit(X, X[:, 0])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
X = np.random.default_rng(0).standard_normal((20, 3))
assert NTKFeatures(n_components=16).fit_transform(X).dtype == np.float32
assert np.isfinite(StreamingRidge(NTKFeatures(n_components=16)).fit(X, X[:, 0]).predict(X)).all()
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_and_64_bits_are_not_needed():
    """Ten times the rows, whose features would take 82 MB: less than 20 MB more. The same bits twice."""
    done = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20


# Command line -----------------------------------------------------------------------------------------------------


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, ["features", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_the_command(tmp_path):
    data, out = tmp_path / "X.npy", tmp_path / "Z.npy"
    np.save(data, X)
    printed = run("dense(1.5,0.1) relu dense(1.2)", "--data", data, "-o", out).output
    assert "60 x 60, float64" in printed and "exact: 60 rows are no more than 4096 columns" in printed
    Z = np.load(out)
    assert close(Z @ Z.T, np.asarray(NET(X)), ROOT)
    assert "exists already" in run("dense relu dense", "--data", data, "-o", out, code=2).output
    arguments = ("dense(1.5,0.1) relu dense(1.2)", "--data", data, "-o", out, "--force", "--json")
    printed = run(*arguments, "--method", "sketch", "--components", 64, "--seed", 3).output
    assert '"method": "sketch"' in printed and '"error"' in printed
    assert np.load(out).tobytes() == np.asarray(feature_map(NET, X, 64, random_state=3)(X)).tobytes()
    run("dense relu", "--data", data, "-o", data, "--force", code=2)
    run("dense relux dense", "--data", data, "-o", out, "--force", code=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["X.npy", "Z.npy"]


def test_its_help_imports_nothing_heavy():
    text = (
        "import sys; from dualcalc.cli import main\n"
        "try: main(['features', '-h'])\nexcept SystemExit: pass\n"
        "sys.exit(str({'jax', 'sympy', 'numpy', 'sklearn'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert not done.stderr.strip() and "--components" in done.stdout


def test_scikit_learn_is_not_needed_for_the_rest():
    text = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import dualcalc as dc, dualcalc.features, dualcalc.images\nfrom dualcalc import *\n"
        "try: dc.NTKFeatures\nexcept ImportError as error: assert 'dualcalc[sklearn]' in str(error), error\n"
        "else: sys.exit('imported')"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ridge_stream_takes_features_as_they_come():
    features = feature_map(NET, X, 30)
    path = RidgeStream().add(features(X), Y).solve()  # a JAX array
    assert path.predict(features(X)).shape == (60, 1)
