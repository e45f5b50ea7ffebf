"""Coefficients from matrices on the disk, by blocks and by steps, against LAPACK and SciPy; within memory."""

import re

import numpy as np
import pytest
from scipy.linalg import solve as lapack
from scipy.sparse.linalg import cg as scipy_cg

from dualcalc import solvers
from dualcalc.solvers import solve

N = 500
RIDGE = 0.01


def gram(n=N, dtype=float):
    """An NNGP of ReLU layers, by its formula."""
    X = np.random.default_rng(0).standard_normal((n, 6))
    norms = np.linalg.norm(X, axis=1)
    cosines = np.clip(X @ X.T / np.outer(norms, norms), -1, 1)
    np.fill_diagonal(cosines, 1)
    kappa = (np.sqrt(1 - cosines**2) + (np.pi - np.arccos(cosines)) * cosines) / np.pi
    return (kappa * np.outer(norms, norms) / 2).astype(dtype)


@pytest.fixture(scope="module")
def K():
    return gram()


@pytest.fixture(scope="module")
def Y():
    return np.random.default_rng(1).standard_normal((N, 3))


@pytest.fixture(scope="module")
def truth(K, Y):
    return lapack(K + RIDGE * np.eye(N), Y, assume_a="pos")


@pytest.fixture(scope="module")
def rounding(K, Y, truth):
    """(relative residual, error) that a backward stable solution may have: eps |K| |a|/|Y|, eps cond(K + ridge)."""
    eps, ends = 2.0**-52, np.linalg.eigvalsh(K)[[0, -1]] + RIDGE
    return eps * ends[1] * np.linalg.norm(truth) / np.linalg.norm(Y), eps * ends[1] / ends[0]


def off(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("band", [64, 125, N])  # that divide N, and that do not
def test_cholesky(K, Y, truth, rounding, band, monkeypatch):
    monkeypatch.setattr(solvers, "BAND", band)
    found = solve(K, Y, RIDGE)
    assert found.method == "cholesky" and found.converged and found.history == ()
    assert found.residual < rounding[0] and off(found.coefficients, truth) < rounding[1]


def test_a_factor_on_the_disk_has_the_bits_of_one_in_memory(K, Y, tmp_path, monkeypatch):
    memory = 4 * 8 * N * 64
    assert memory < 8 * N * N
    there = solve(K, Y, RIDGE, method="cholesky", memory=memory, scratch=tmp_path)
    monkeypatch.setattr(solvers, "BAND", 64)
    here = solve(K, Y, RIDGE, method="cholesky")
    assert np.array_equal(here.coefficients, there.coefficients) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [None, 0, 40])
def test_conjugate_gradients(K, Y, truth, rank):
    found = solve(K, Y, RIDGE, method="cg", tol=1e-10, rank=rank)
    assert found.converged and found.residual <= 1e-10 and off(found.coefficients, truth) < 1e-8
    assert rank is None or found.rank == rank
    assert found.history[0] == 1 and found.history[-1] <= 1e-10


def test_the_steps_are_those_of_scipy(K, Y):
    steps = []
    scipy_cg(K + RIDGE * np.eye(N), Y[:, 0], rtol=1e-8, callback=steps.append)
    assert len(solve(K, Y[:, 0], RIDGE, method="cg", rank=0).history) - 1 == pytest.approx(len(steps), rel=0.05)


def test_pivots_save_steps(K, Y):
    plain, helped = (len(solve(K, Y, RIDGE, method="cg", rank=r).history) for r in (0, 200))
    assert helped < plain / 3


def test_the_choice_by_memory(K, Y):
    assert [solve(K, Y, RIDGE, memory=k * N * N).method for k in (8, 33)] == ["cg", "cholesky"]


def test_one_target_keeps_its_shape_and_zero_is_solved_by_zero(K, Y, truth):
    for method in ("cholesky", "cg"):
        assert solve(K, Y[:, 0], RIDGE, method=method).coefficients.shape == (N,)
        with_zero = solve(K, np.column_stack([Y[:, 0], np.zeros(N)]), RIDGE, method=method, tol=1e-10)
        assert with_zero.converged and off(with_zero.coefficients[:, 0], truth[:, 0]) < 1e-8
        assert (with_zero.coefficients[:, 1] == 0).all()


@pytest.mark.parametrize("method", ["cholesky", "cg"])
def test_float32_and_memory_maps(Y, truth, method, tmp_path):
    """A float32 matrix is solved in float64: the residual is as small, the coefficients those of its entries."""
    K = gram(dtype=np.float32)
    np.save(tmp_path / "K.npy", K)
    found = solve(np.load(tmp_path / "K.npy", mmap_mode="r"), Y, RIDGE, method=method, tol=1e-9)
    assert found.converged and off(found.coefficients, lapack(K.astype(float) + RIDGE * np.eye(N), Y)) < 1e-6
    assert off(found.coefficients, truth) < 1e-3


def test_the_matrix_and_the_targets_are_left_alone(Y):
    K, before = gram(), Y.copy()
    for method in ("cholesky", "cg"):
        solve(K, Y, RIDGE, method=method)
    assert np.array_equal(K, gram()) and np.array_equal(Y, before)


def test_a_run_that_ends_early_says_so_and_goes_on_from_its_guess(K, Y):
    first = solve(K, Y, RIDGE, method="cg", rank=0, most=15)
    assert not first.converged and len(first.history) == 16 and first.residual > 1e-8
    assert str(first).startswith("NOT converged: relative residual ")
    second = solve(K, Y, RIDGE, method="cg", rank=0, guess=first.coefficients)
    assert second.converged and second.history[0] == pytest.approx(first.residual, rel=1e-6)
    assert str(second).startswith("converged: ")


def test_a_tolerance_below_rounding_ends_and_is_not_claimed(K, Y, rounding):
    found = solve(K, Y, RIDGE, method="cg", tol=1e-18, most=400)
    assert not found.converged and found.residual < rounding[0] and len(found.history) < 300


def test_same_seed_same_bits_and_progress(K, Y):
    said = []
    one, two = (
        solve(K, Y, RIDGE, method="cg", random_state=3, progress=lambda *x: said.append(x)).coefficients for _ in "ab"
    )
    assert np.array_equal(one, two) and said[0] == ("steps", 0, 1000)
    said.clear()
    solve(K, Y, RIDGE, progress=lambda *x: said.append(x))
    assert said == [("rows", N, N)]


def test_a_store(tmp_path):
    """A kernel of a store, against the same in memory; one that is incomplete is refused."""
    import dualcalc as dc

    cluster = pytest.importorskip("dualcalc.cluster")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((90, 5)), rng.standard_normal(90)
    net = dc.serial(dc.Dense(1.5, 0.1), dc.Activation("relu"), dc.Dense())
    cluster.write(net, X, tmp_path / "K.zarr", get="ntk", tile=32, part=(0, 2))
    with pytest.raises(ValueError, match="3 of 6 tiles are missing"):
        cluster.Store.open(tmp_path / "K.zarr").kernel()
    kernel = cluster.write(net, X, tmp_path / "K.zarr", get="ntk", tile=32).store.kernel("ntk")
    for method in ("cholesky", "cg"):
        found = solve(kernel, y, 1e-2, method=method, tol=1e-10)
        assert found.converged
        assert off(found.coefficients, np.asarray(dc.kernel_ridge(net, X, y, ridge=1e-2).coefficients)) < 1e-7


BAD = [
    ((np.zeros((3, 4)), np.zeros(3), 1), {}, "shape (3, 4)"),
    ((np.eye(3, dtype=int), np.zeros(3), 1), {}, "dtype int64"),
    (([[1.0]], [1.0], 1), {}, "a matrix of shape ()"),
    ((np.eye(3), np.zeros(4), 1), {}, "y has shape (4,)"),
    ((np.eye(3), [0, np.nan, 1], 1), {}, "NaN"),
    ((np.eye(3), ["a", "b", "c"], 1), {}, "dtype <U1"),
    ((np.eye(3), np.ones(3), -1), {}, "ridge=-1"),
    ((np.eye(3), np.ones(3), np.nan), {}, "ridge=nan"),
    ((np.eye(3), np.ones(3), 1), {"method": "lu"}, "method='lu'"),
    ((np.eye(3), np.ones(3), 1), {"tol": -1}, "tol=-1"),
    ((np.eye(3), np.ones(3), 1), {"most": 0}, "most=0"),
    ((np.eye(3), np.ones(3), 1), {"method": "cg", "guess": np.ones(4)}, "a guess of shape (4,)"),
    ((np.eye(3), np.ones(3), 1), {"method": "cholesky", "memory": 100}, "needs 2.88e-07 GB"),
    ((np.eye(3), np.ones(3), 1), {"method": "cholesky", "memory": 100, "scratch": "/no/such"}, "expected a folder"),
    ((np.eye(9), np.ones(9), 1), {"method": "cg", "memory": 100, "rank": 5}, "rank 5 needs"),
    ((-np.eye(3), np.ones(3), 0.5), {}, "not positive definite in the rows 0 to 3"),
    ((-np.eye(3), np.ones(3), 0.5), {"method": "cg", "rank": 0}, "not positive definite"),
    ((-np.eye(3), np.ones(3), 0.5), {"method": "cg"}, "diagonal"),
    ((np.full((3, 3), np.nan), np.ones(3), 0.5), {}, "NaN"),
    ((np.full((3, 3), np.nan), np.ones(3), 0.5), {"method": "cg", "rank": 0}, "NaN"),
    ((np.array([[1, np.nan], [np.nan, 1]]), np.ones(2), 0.5), {"method": "cg"}, "the matrix has NaN"),
]


@pytest.mark.parametrize("arguments, options, message", BAD)
def test_bad_input(arguments, options, message):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=re.escape(message)):
        solve(*arguments, **options)
