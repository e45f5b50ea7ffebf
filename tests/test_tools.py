"""Spectra against their sums, distances by hand, what doctor finds."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

import dualcalc as dc
from dualcalc import catalog, cli, tools


@pytest.fixture(autouse=True)
def _no_extra_folders(monkeypatch):
    monkeypatch.setenv(catalog.ENVIRONMENT, "")


def run(*args, code=0):
    result = CliRunner().invoke(cli.main, [str(arg) for arg in args])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output and "internal error" not in result.output
    return result


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: tools.compare(["relu"]), "two or more"),
        (lambda: tools.compare(["relu", "gelu"], cosines=[2.0]), "from -1 to 1"),
        (lambda: tools.compare(["relu", "gelu"], dimension=2), "dimension=2 came"),
        (lambda: tools.compare(["relu", "0"]), "zero"),
        (lambda: tools.compare(["relu", "gelu"], A=2), "none of relu, gelu has such a parameter"),
        (lambda: tools.nearest("t*1e-99"), "float64 cannot hold"),
        (lambda: tools.nearest("t*1e99"), "float64 cannot hold"),
        (lambda: tools.nearest("relu", by="taste"), "by='taste' came"),
        (lambda: tools.nearest("exp(t**2)"), "not square-integrable"),
        (lambda: tools.examine_kernel(np.ones((2, 3))), "a square one was expected"),
        (lambda: tools.examine_data(np.ones(3)), "a matrix of real numbers"),
        (lambda: tools.examine_data(np.array([["a"]])), "a matrix of real numbers"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# ------------------------------------------------------------------------------------------------ compare and nearest


def test_compare():
    names = ["relu", "gelu", "normalized_gaussian"]
    found = tools.compare(names, degrees=40, dimension=5)
    for name, one in zip(names, found, strict=True):
        k = dc.compile(name).k
        values = np.asarray(k(one.cosines, np.ones(len(one.cosines)), np.ones(len(one.cosines))))
        np.testing.assert_allclose(one.values, values / one.top, atol=1e-8)
        many = [tools.multiplicity(5, degree) for degree in range(41)]
        left = 1 - one.eigenvalues @ many  # the sum over all eigenvalues is k(1)/k(1)
        assert -1e-12 < left < 1e-3 and (one.eigenvalues >= -1e-15).all()
    np.testing.assert_allclose(found[0].spectrum[:3], np.array([1 / np.pi, 0.5, 1 / (2 * np.pi)]), rtol=1e-12)
    assert found[2].spectrum is None


@pytest.mark.parametrize("d, degree, count", [(3, 0, 1), (3, 1, 3), (3, 4, 9), (10, 1, 10), (10, 2, 54), (5, 3, 30)])
def test_multiplicity(d, degree, count):
    assert tools.multiplicity(d, degree) == count


def test_eigenvalues_are_those_of_the_operator():
    """The kernel between the nodes of a quadrature of the sphere in R^3: the eigenvalue of degree l, 2 l + 1 times."""
    z, weights = np.polynomial.legendre.leggauss(10)
    angle = 2 * np.pi * np.arange(20) / 20
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)[None] * np.sqrt(1 - z**2)[:, None, None]
    points = np.concatenate([ring, np.broadcast_to(z[:, None, None], (10, 20, 1))], axis=2).reshape(-1, 3)
    root = np.sqrt(np.repeat(weights / 2 / 20, 20))
    k = dc.compile("gelu").k(np.clip(points @ points.T, -1, 1), np.ones((1, 1)), np.ones((1, 1)))
    values = np.linalg.eigvalsh(root[:, None] * np.asarray(k) * root)[::-1]
    one = tools.compare(["gelu", "relu"], degrees=2, dimension=3)[0]
    expected = [one.eigenvalues[degree] for degree in (0, 1, 2) for _ in range(2 * degree + 1)]
    np.testing.assert_allclose(values[:9], one.top * np.array(expected), rtol=1e-4)


def test_compare_with_parameters(tmp_path):
    """Each activation takes those that it has."""
    both = tools.compare(["sin(A*t)", "gelu", "hermite"], degrees=3, A=2, q=3)
    alone = tools.compare(["sin(2*t)", "gelu", "hermite(3, t)"], degrees=3)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(both, alone, strict=True))
    assert both[0].values[0] != tools.compare(["sin(t)", "gelu"])[0].values[0]
    run("compare", "abrelu", "sin(A*t)", "-p", "A=1/2", "-o", tmp_path / "both.png")
    assert "such a parameter" in run("compare", "relu", "gelu", "-p", "A=2", code=2).stderr


def test_nearest():
    found = tools.nearest("3*Max(t, 0)")
    assert found.entries[0].distance < 1e-7 and found.entries[0].id in ("relu", "abrelu", "rectified_monomial")
    assert found.entries[0].scale > 0 and found.skipped == {}
    distances = [near.distance for near in found.entries]
    assert distances == sorted(distances) and distances[-1] <= 1
    assert len(found.entries) == len(catalog.load())
    by = tools.nearest("gelu", "hermite")
    assert [near.id for near in by.entries[:2]] == ["tanh_gelu", "quick_gelu"]
    assert set(by.skipped) == {"normalized_gaussian"}


def test_nearest_distance_by_hand():
    """Of kappa = c and c^2 over [-1, 1]: orthogonal; of c and c^3 the sine is sqrt(1 - (2/5)^2/((2/3) (2/7)))."""
    t, cube = tools._vector(tools.sphere("t"), "kernel"), tools._vector(tools.sphere("t**3 - 3*t"), "kernel")
    cosine = t @ cube / np.linalg.norm(t) / np.linalg.norm(cube)
    assert math.sqrt(1 - cosine**2) == pytest.approx(math.sqrt(1 - 0.16 / (4 / 21)), rel=1e-10)


# -------------------------------------------------------------------------------------------------------------- doctor


def names(findings) -> set[str]:
    assert all(finding.found and finding.remedy for finding in findings)
    return {finding.name for finding in findings}


def rows(n: int = 40, d: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d))


def changed(row, value) -> np.ndarray:
    X = rows()
    X[row] = value
    return X


NET = dc.serial(dc.Dense(1.5, 0.1), dc.Activation("relu"), dc.Dense())


def test_sound_data_and_kernels_pass():
    assert tools.examine_data(rows()) == [] and tools.examine_data(rows(), NET) == []
    assert tools.examine_kernel(np.asarray(NET(rows()))) == []
    assert tools.examine_kernel(np.asarray(NET(rows().astype(np.float32)))) == []
    assert tools.examine_data(rows(1)) == [] and tools.examine_data(rows(600, 3000)) == []


@pytest.mark.parametrize(
    "X, expected",
    [
        (changed(3, np.nan), {"not finite"}),
        (np.full((3, 2), np.inf), {"not finite"}),
        (changed(3, 0.0), {"zero rows"}),
        (changed(3, rows()[5]), {"duplicate rows"}),
        (changed(3, rows()[5] * (1 + 1e-6 * np.arange(8))), {"float32 too coarse"}),
        (rows() * 1e12, {"overflow"}),
        (rows() * 1e-13, {"underflow"}),
        (rows() * 1e200, {"overflow"}),
        (changed(3, 1e5), {"norms differ"}),
    ],
)
def test_data(X, expected):
    assert names(tools.examine_data(X)) == expected


def test_data_with_a_network():
    block = [dc.Dense(0.9, 0.3), dc.Activation("erf")]
    deep = dc.serial(*block * 20, dc.Dense())
    assert "ordered phase" in names(tools.examine_data(rows(), deep, "nngp"))
    exploding = dc.serial(dc.Dense(0.1), dc.Activation("exp(t**2)"), dc.Dense())
    assert "refused" in names(tools.examine_data(rows() * 20, exploding))


def test_kernels():
    K = np.asarray(NET(rows()))
    wrong = K.copy()
    wrong[0, 1] = wrong[1, 0] = 2 * K.max()
    assert "not positive semi-definite" in names(tools.examine_kernel(wrong))
    skew = K.copy()
    skew[0, 1] += 1e-6
    assert names(tools.examine_kernel(skew)) == {"not symmetric"}
    again = K[np.ix_([*range(40), 3], [*range(40), 3])]
    assert "duplicate rows" in names(tools.examine_kernel(again))
    flat = np.ones((10, 10)) + 1e-3 * np.eye(10)
    assert "ordered phase" in names(tools.examine_kernel(flat))
    assert names(tools.examine_kernel(np.full((3, 3), np.inf))) == {"overflow"}
    smooth = np.exp(-((np.arange(40)[:, None] - np.arange(40)[None, :]) ** 2) / 200.0)
    assert "float32 too coarse" in names(tools.examine_kernel(smooth))
    assert names(tools.examine_kernel(np.eye(20) + 1e-5)) == {"chaotic phase"}
    zero = K.copy()
    zero[2] = zero[:, 2] = 0.0
    assert "zero rows" in names(tools.examine_kernel(zero))


# -------------------------------------------------------------------------------------------------------- command line


def test_phase_command(tmp_path):
    text = run("phase", "tanh", "--W-std", 1.5, "--b-std", 0.1, "-o", tmp_path / "phase.svg").output
    assert "chaotic" in text and "chi_1" in text and "depth scale" in text and (tmp_path / "phase.svg").exists()
    data = json.loads(run("phase", "relu", "--W-std", 2, "--json").output)
    assert data["name"] == "diverging" and data["q"] == "inf" and data["line"][0]["b_std"] == 0
    assert "Put -- before" in run("phase", "-t", code=2).output
    run("phase", "tanh", "-o", tmp_path / "phase.svg", code=2)  # exists
    run("phase", "tanh", "-o", tmp_path / "phase.txt", code=2)
    run("phase", "sign", code=2)


def test_compare_command(tmp_path):
    text = run("compare", "relu", "gelu", "-o", tmp_path / "both.png").output
    assert "mass of degree" in text and "0.3183" in text and (tmp_path / "both.png").exists()
    data = json.loads(run("compare", "relu", "normalized_gaussian", "--degrees", 3, "--json").output)
    assert len(data) == 2 and data[1]["spectrum"] is None and len(data[0]["eigenvalues"]) == 4
    assert "two or more" in run("compare", "relu", code=2).output
    run("compare", "relu", "sinn(t)", code=2)


def test_nearest_command():
    text = run("nearest", "t*sigmoid(t)", "--count", 3).output
    assert text.splitlines()[1].split()[:2] == ["silu", "0"] and len(text.splitlines()) == 4
    assert json.loads(run("nearest", "relu", "--by", "hermite", "--json").output)["entries"]
    run("nearest", "__import__('os')", code=2)


def test_doctor_command(tmp_path):
    np.save(tmp_path / "X.npy", rows())
    assert "0 warnings" in run("doctor", tmp_path / "X.npy", "--network", "dense(1.5,0.1) relu dense").output
    np.save(tmp_path / "K.npy", -np.eye(3))
    assert "Remedy" in run("doctor", "--kernel", tmp_path / "K.npy", code=1).output
    (tmp_path / "X.csv").write_text("a,b\n1,2\n1,2\n3,nan\n")
    found = json.loads(run("doctor", tmp_path / "X.csv", "--json", code=1).output)
    assert {finding["name"] for finding in found} == {"not finite", "duplicate rows"}
    (tmp_path / "bad.csv").write_text("1,2\n3\n")
    (tmp_path / "empty.csv").write_text("")
    np.save(tmp_path / "images.npy", np.ones((2, 3, 3, 1)))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    for bad in ("bad.csv", "empty.csv", "images.npy", "objects.npy", "none.npy", "X.txt"):
        assert "Error" in run("doctor", tmp_path / bad, code=2).output
    run("doctor", tmp_path / "K.npy", "--kernel", "--network", "dense", code=2)
