"""Adapters give the numbers of `net(X, Y)`, and the other libraries' own fitting runs with them.

scikit-learn is tested with the rest; tinygp, GPJax and GPyTorch in an environment of theirs (`make test-adapters`),
neural-tangents in its own (`make test-peer`).
"""

import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dualcalc as dc
from dualcalc import adapters

ROOT = Path(__file__).parents[1]
TOL = 1e-10
FACTORY = adapters.mlp("gelu", depth=2)
W, B = 1.4, 0.3


def rows(n: int, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


X, Y = rows(12), rows(7, seed=1)
TARGETS = np.sin(2 * X[:, 0]) + X[:, 1]
NET = FACTORY(W, B)


def close(a, b, tol=TOL):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=tol * np.abs(b).max())


# ---------------------------------------------------------------------------------------------------- without a library


@pytest.mark.parametrize("get", ["ntk", pytest.param("nngp", marks=pytest.mark.slow)])
def test_callable_kernel(get):
    from sklearn.decomposition import KernelPCA
    from sklearn.svm import SVC

    kernel = adapters.callable_kernel(NET, get)
    close(kernel(X, Y), NET(X, Y, get=get))
    close(kernel(X), NET(X, get=get))
    assert np.array_equal(kernel(X, X), kernel(X, X).T) and isinstance(kernel(X, X), np.ndarray)
    assert kernel(X[0], Y[1]) == pytest.approx(float(NET(X, Y, get=get)[0, 1]), abs=1e-12)
    labels = (TARGETS > 0).astype(int)
    model = pickle.loads(pickle.dumps(SVC(kernel=kernel))).fit(X, labels)
    matrices = adapters.precomputed(NET, X, Y, get)
    same = SVC(kernel="precomputed").fit(matrices.train, labels)
    np.testing.assert_allclose(model.decision_function(Y), same.decision_function(matrices.test), atol=1e-9)
    assert KernelPCA(2, kernel=kernel).fit_transform(X).shape == (12, 2)


def test_precomputed():
    found = adapters.precomputed(NET, X, Y)
    close(found.train, NET(X))
    close(found.test, NET(Y, X))
    assert adapters.precomputed(NET, X).test is None


@pytest.mark.slow
def test_float64_rows_are_computed_in_float64_whatever_jax_is_set_to():
    wide = adapters.callable_kernel(NET)(X, Y)
    jax.config.update("jax_enable_x64", False)
    try:
        assert np.array_equal(adapters.callable_kernel(NET)(X, Y), wide)
        assert adapters.callable_kernel(NET)(X.astype(np.float32)).dtype == np.float32
        K, slopes = adapters.SklearnKernel(FACTORY, W, B)(X, eval_gradient=True)
        assert K.dtype == slopes.dtype == np.float64
    finally:
        jax.config.update("jax_enable_x64", True)
    close(K, NET(X, get="nngp"))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: adapters.callable_kernel(NET, "both"), "'nngp' or 'ntk' was expected"),
        (lambda: adapters.SklearnKernel(NET)(X), "a network came; a function"),
        (lambda: adapters.SklearnKernel(lambda w, b: None)(X), "it returned None"),
        (lambda: adapters.SklearnKernel(FACTORY, W_std=-1.0)(X), "W_std=-1.0 came"),
        (lambda: adapters.SklearnKernel(FACTORY, b_std=0.0)(X), "with 0 it must be fixed"),
        (lambda: adapters.SklearnKernel(FACTORY)(X, Y, eval_gradient=True), "leave Y out"),
        (lambda: adapters.SklearnKernel(FACTORY)(X, Y[:, :2]), "same number of features"),
        (lambda: adapters.mlp("relu", depth=0), "depth=0 came"),
        (lambda: adapters.mlp("no_such"), "no_such"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        adapters.Nothing  # noqa: B018


def test_a_missing_library_is_named(monkeypatch):
    for module in ("tinygp", "gpjax", "gpytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "equinox", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, (library, _) in adapters.MAKERS.items():
        if name != "SklearnKernel":
            monkeypatch.delitem(vars(adapters), name, raising=False)
            with pytest.raises(ImportError, match=f"{name} needs {library}: pip install {library}"):
                getattr(adapters, name)


# -------------------------------------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("get", ["nngp", pytest.param("ntk", marks=pytest.mark.slow)])
def test_sklearn_kernel_is_the_kernel(get):
    from sklearn.base import clone

    kernel = adapters.SklearnKernel(FACTORY, W, B, scale=1.7, get=get)
    for copy in (kernel, clone(kernel), pickle.loads(pickle.dumps(kernel)), kernel.clone_with_theta(kernel.theta)):
        close(copy(X, Y), 1.7 * NET(X, Y, get=get))
        close(copy(X), 1.7 * NET(X, get=get))
    close(kernel.diag(X), 1.7 * np.diag(NET(X, get=get)))
    assert not kernel.is_stationary() and kernel.theta.shape == (2,) and kernel.bounds.shape == (2, 2)
    np.testing.assert_allclose(kernel.theta, np.log([W, B]))


@pytest.mark.parametrize("get", ["nngp", pytest.param("ntk", marks=pytest.mark.slow)])
def test_sklearn_gradient(get):
    """Against central differences in theta, the logarithms."""
    kernel = adapters.SklearnKernel(FACTORY, W, B, scale=0.8, scale_bounds=(0.1, 10.0), get=get)
    K, slopes = kernel(X, eval_gradient=True)
    close(K, kernel(X))
    assert slopes.shape == (12, 12, 3)
    for i, step in enumerate(np.eye(3) * 1e-5):
        high, low = (kernel.clone_with_theta(kernel.theta + s)(X) for s in (step, -step))
        np.testing.assert_allclose(slopes[..., i], (high - low) / 2e-5, atol=1e-8)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sklearn_fitting():
    from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import WhiteKernel

    kernel = adapters.SklearnKernel(FACTORY, W, B)
    model = GaussianProcessRegressor(kernel, alpha=0.1).fit(X, TARGETS)
    start = dc.log_marginal_likelihood(NET, X, TARGETS, 0.1)
    fitted = FACTORY(model.kernel_.W_std, model.kernel_.b_std)
    end = dc.log_marginal_likelihood(fitted, X, TARGETS, 0.1)
    assert model.log_marginal_likelihood_value_ == pytest.approx(float(end.value), abs=1e-8)
    assert end.value > start.value + 0.01
    mean, std = model.predict(Y, return_std=True)
    ours = dc.posterior(fitted, X, TARGETS, Y, noise=0.1)
    np.testing.assert_allclose(mean, ours.mean, atol=1e-8)
    np.testing.assert_allclose(std**2, np.diag(ours.covariance), atol=1e-8)
    noisy = GaussianProcessRegressor(kernel + WhiteKernel(0.1)).fit(X, TARGETS)
    assert noisy.kernel_.theta.shape == (3,)
    labels = TARGETS > 0
    assert GaussianProcessClassifier(kernel).fit(X, labels).score(X, labels) > 0.8


def test_fixed_hyperparameters():
    kernel = adapters.SklearnKernel(adapters.mlp("relu"), 1.5, 0.0, b_std_bounds="fixed", W_std_bounds="fixed")
    K, slopes = kernel(X, eval_gradient=True)
    assert slopes.shape == (12, 12, 0) and kernel.theta.size == 0
    close(K, adapters.mlp("relu")(1.5, 0.0)(X, get="nngp"))


# ------------------------------------------------------------------------------------------------- tinygp, GPJax, torch


@pytest.mark.adapters
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_tinygp(get):
    from tinygp import GaussianProcess

    kernel = adapters.TinyGPKernel(NET, get)
    close(kernel(X, Y), NET(X, Y, get=get))
    close(kernel(X, X), NET(X, get=get))
    close(kernel(X), np.diag(NET(X, get=get)))
    close(jax.jit(kernel)(X, Y), NET(X, Y, get=get))
    close(jax.vmap(jax.vmap(kernel.evaluate, (None, 0)), (0, None))(X, Y), NET(X, Y, get=get))
    close(jax.vmap(kernel.evaluate_diag)(X), np.diag(NET(X, get=get)))
    close(kernel(X[:, 0], Y[:, 0]), NET(X[:, :1], Y[:, :1], get=get))
    close((2.0 * kernel + kernel)(X, Y), 3 * NET(X, Y, get=get))
    process = GaussianProcess(kernel, X, diag=0.1)
    ours = dc.posterior(NET, X, TARGETS, Y, noise=0.1, get=get)
    np.testing.assert_allclose(process.predict(TARGETS, Y), ours.mean, atol=1e-9)


@pytest.mark.adapters
def test_tinygp_fitting():
    """By tinygp's likelihood and JAX's gradient in the logarithms of the hyperparameters."""
    from scipy.optimize import minimize
    from tinygp import GaussianProcess

    @jax.jit
    @jax.value_and_grad
    def loss(theta):
        W_std, b_std = jnp.exp(theta)
        return -GaussianProcess(adapters.TinyGPKernel(FACTORY(W_std, b_std)), X, diag=0.1).log_probability(TARGETS)

    theta = jnp.log(jnp.array([W, B]))
    start, slope = loss(theta)
    assert -start == pytest.approx(float(dc.log_marginal_likelihood(NET, X, TARGETS, 0.1).value), abs=1e-9)
    found = minimize(loss, theta, jac=True, bounds=[(-3, 3)] * 2)
    assert found.fun < start - 0.01


@pytest.mark.adapters
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_gpjax(get):
    kernel = adapters.GPJaxKernel(FACTORY, W, B, scale=1.7, get=get)
    close(kernel.cross_covariance(X, Y), 1.7 * NET(X, Y, get=get))
    close(kernel.gram(X).as_matrix(), 1.7 * NET(X, get=get))
    close(kernel.diagonal(X).as_matrix(), np.diag(np.diag(1.7 * NET(X, get=get))))
    close(kernel(X[0], Y[1]), 1.7 * NET(X[:1], Y[1:2], get=get)[0, 0])
    close((kernel + kernel).gram(X).as_matrix(), 3.4 * NET(X, get=get))
    some = adapters.GPJaxKernel(FACTORY, W, B, get=get, active_dims=[0, 2])
    close(some.cross_covariance(X, Y), NET(X[:, [0, 2]], Y[:, [0, 2]], get=get))


@pytest.mark.adapters
def test_gpjax_fitting():
    import gpjax
    import optax

    data = gpjax.Dataset(jnp.asarray(X), jnp.asarray(TARGETS[:, None]))
    prior = gpjax.gps.Prior(mean_function=gpjax.mean_functions.Zero(), kernel=adapters.GPJaxKernel(FACTORY, W, B))
    model = prior * gpjax.likelihoods.Gaussian(obs_stddev=jnp.asarray(0.1**0.5))

    def loss(model, data):
        return -gpjax.objectives.conjugate_mll(model, data)

    start = float(loss(model, data))
    ours = float(dc.log_marginal_likelihood(NET, X, TARGETS, 0.1).value)
    assert -start == pytest.approx(ours, abs=1e-3)  # its jitter of 1e-6
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        fitted, history = gpjax.fit(
            model=model, objective=loss, train_data=data, optim=optax.adam(0.05), num_iters=30, verbose=False,
            key=jax.random.key(0),
        )  # fmt: skip
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
    assert history[-1] < start - 0.01


@pytest.mark.adapters
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_gpytorch(get):
    import gpytorch
    import torch

    kernel = adapters.GPyTorchKernel(FACTORY, W, B, get).double()
    x, y = torch.tensor(X), torch.tensor(Y)
    close(kernel(x, y).to_dense().detach(), NET(X, Y, get=get))
    close(kernel(x).to_dense().detach(), NET(X, get=get))
    close(kernel(x, diag=True).detach(), np.diag(NET(X, get=get)))
    close(kernel(x[:7], y, diag=True).detach(), np.diag(NET(X[:7], Y, get=get)))
    close(kernel(torch.stack([x, 2 * x]), y).to_dense().detach()[1], NET(2 * X, Y, get=get))
    close(gpytorch.kernels.ScaleKernel(kernel).double()(x, y).to_dense().detach(), np.log(2) * NET(X, Y, get=get))
    assert kernel.float()(x.float(), y.float()).to_dense().dtype == torch.float32


@pytest.mark.adapters
@pytest.mark.parametrize("get", ["nngp", "ntk"])
@pytest.mark.parametrize("kind", ["pairs", "same", "diagonal"])
def test_gpytorch_gradients(get, kind):
    """By torch's own check, against differences: hyperparameters and rows."""
    import torch

    kernel = adapters.GPyTorchKernel(FACTORY, W, B, get).double()
    x, y = (torch.tensor(z[:4], requires_grad=True) for z in (X, Y))

    def function(w, b, x, y):
        parameters = {"raw_W_std": w, "raw_b_std": b}
        rows = (x, y) if kind == "pairs" else (x, x)
        return torch.func.functional_call(kernel, parameters, rows, {"diag": kind == "diagonal"}, strict=False)

    plain = adapters.GPyTorchKernel.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters.GPyTorchKernel, "__call__", plain)
        start = [p.detach().clone().requires_grad_() for p in (kernel.raw_W_std, kernel.raw_b_std)]
        assert torch.autograd.gradcheck(function, (*start, x, y), atol=1e-6)


@pytest.mark.adapters
def test_gpytorch_fitting():
    import gpytorch
    import torch

    class Model(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood):
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = adapters.GPyTorchKernel(FACTORY, W, B)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    x, y = torch.tensor(X), torch.tensor(TARGETS)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Model(x, y, likelihood).double()
    likelihood.noise = 0.1
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        loss = -objective(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = float(dc.log_marginal_likelihood(NET, X, TARGETS, 0.1).value) / len(X)
    assert -losses[0] == pytest.approx(ours, abs=1e-6) and losses[-1] < losses[0] - 0.01
    model.eval()
    W_std, b_std, noise = (p.item() for p in (model.covar_module.W_std, model.covar_module.b_std, likelihood.noise))
    expected = dc.posterior(FACTORY(W_std, b_std), X, TARGETS, Y, noise=noise)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(Y)).mean, expected.mean, atol=1e-6)


@pytest.mark.adapters
@pytest.mark.parametrize(
    "options, said",
    [
        ({"b_std": 0.0}, "b_std=0.0 came"),
        ({"get": "x"}, "get='x' came"),
        ({"batch_shape": (2,)}, r"batch_shape=\(2,\) came"),
    ],
)
def test_gpytorch_bad_input(options, said):
    import torch

    options = {k: torch.Size(v) if k == "batch_shape" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=said):
        adapters.GPyTorchKernel(FACTORY, **options)


# ------------------------------------------------------------------------------------------------------ neural-tangents

PEER = """
import importlib.util, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from neural_tangents import stax
folder, names = sys.argv[1], sys.argv[2:]
data = np.load(folder + "/data.npz")
for name in names:
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dense = lambda n=1: stax.Dense(n, W_std=1.4, b_std=0.3, parameterization="ntk")
    layers = dense(), module.layer(), dense(), module.layer(), stax.Dense(1, W_std=1.0, b_std=0.0)
    _, _, kernel = stax.serial(*layers)
    both = {}
    for get in ("nngp", "ntk"):
        both[get] = np.asarray(kernel(data["X"], data["Y"], get))
        both[get + "_same"] = np.asarray(kernel(data["X"], None, get))
    np.savez(f"{folder}/{name}_out.npz", **both)
"""


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_neural_tangents_source_stands_alone(name, tmp_path):
    import ast

    source = adapters.neural_tangents_source(name)
    tree = ast.parse(source)
    found = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    found |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert found <= {"jax", "neural_tangents", "math", "functools"}
    assert source.count("def layer(") == 1 and source.rstrip().endswith(")")
    assert source.index("def layer(") < source.index("def self_check(")


@pytest.mark.parametrize("library", [*adapters.STARTS])
def test_starting_source(library):
    """It is Python, the activation a quoted text in it; scikit-learn's runs."""
    text = "A*t*erf(t)"
    source = adapters.starting_source(text, library, A="1/3")
    assert repr(text) in source and "A='1/3'" in source and adapters.STARTS[library][0] in source
    code = compile(source, library, "exec")
    if library == "sklearn":
        space: dict = {}
        exec(code, space)
        net = adapters.mlp(dc.Activation(text, A=1 / 3), depth=2)(1.5, 0.1)
        close(space["kernel"](X), net(X, get="nngp"))
    for bad in ("no_such", "__import__('os')", '"""'):
        with pytest.raises(ValueError):
            adapters.starting_source(bad, library)
    with pytest.raises(ValueError, match="one of sklearn"):
        adapters.starting_source(text, "numpyro")


def test_starting_source_of_an_activation_of_ones_own(tmp_path, monkeypatch):
    """Its formula, not its id: the file needs no folder of a catalog. Ids that ship stay ids."""
    from dualcalc import catalog

    catalog.new_entry(tmp_path, "mine", expression="t*Phi(A*t)", parameters={"A": "5/7"})
    monkeypatch.setenv(catalog.ENVIRONMENT, str(tmp_path))
    assert "Activation('t*Phi(A*t)', A='5/7')" in adapters.starting_source("mine", "sklearn")
    assert "Activation('t*Phi(A*t)', A='2')" in adapters.starting_source("mine", "sklearn", A=2)
    assert "Activation('gelu_slope', A=2)" in adapters.starting_source("gelu_slope", "sklearn", A=2)


def test_compile_to(tmp_path):
    from click.testing import CliRunner

    from dualcalc import cli
    from dualcalc.cli.console import LIBRARIES

    assert LIBRARIES == adapters.LIBRARIES
    for library in LIBRARIES:
        path = tmp_path / f"{library}.py"
        done = CliRunner().invoke(cli.main, ["compile", "gelu", "--to", library, "-o", str(path)])
        assert done.exit_code == 0 and f"lines for {library}" in done.output and compile(path.read_text(), "", "exec")
    both = CliRunner().invoke(cli.main, ["compile", "gelu", "--to", "sklearn", "--target", "torch"])
    assert both.exit_code == 2 and "either --target or --to" in both.output


@pytest.mark.peer
def test_neural_tangents(tmp_path):
    names = ["relu", "gelu", "erf", "elu", "sin", "tanh"]
    np.savez(tmp_path / "data.npz", X=X, Y=Y)
    for name in names:
        (tmp_path / f"{name}.py").write_text(adapters.neural_tangents_source(name))
    python = ROOT / ".venv-peer/bin/python"
    done = subprocess.run([python, "-c", PEER, str(tmp_path), *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in names:
        net, found = adapters.mlp(name, depth=2)(W, B), np.load(tmp_path / f"{name}_out.npz")
        tol = 1e-5 if name == "tanh" else TOL  # its tables have errors of 1e-6, our diagonal has none
        for get in ("nngp", "ntk"):
            close(found[get], net(X, Y, get=get), tol)
            close(found[f"{get}_same"], net(X, get=get), tol)
