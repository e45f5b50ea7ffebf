"""Kernels of networks as the kernel objects of other libraries, each imported when it is first asked for.

    SVC(kernel=callable_kernel(net))                                    scikit-learn
    GaussianProcessRegressor(SklearnKernel(factory))
    tinygp.GaussianProcess(TinyGPKernel(net), X, diag=0.1)
    gpjax.gps.Prior(mean, GPJaxKernel(factory))
    self.covar_module = GPyTorchKernel(factory)                         in a gpytorch.models.ExactGP
    neural_tangents_source("gelu")                                      a module that defines an `Elementwise`

A `factory` is a function (W_std, b_std) -> Network, such as `mlp("gelu", depth=3)`; the two are the hyperparameters,
beside a `scale` that multiplies the kernel. Numbers are those of `net(X, Y, get)`, and gradients are JAX's, whose
activations know their own (Price's theorem). Where rows come in float64, it is computed in float64, whatever JAX is set
to, but for tinygp and GPJax, which are JAX themselves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import catalog
from .codegen import emit
from .layers import Activation, Dense
from .networks import KERNELS, Network, _chosen, _double, serial

BOUNDS = (1e-2, 1e2)

Factory = Callable[[Any, Any], Network]


@dataclass(frozen=True)
class mlp:
    """The factory of a fully connected network: `depth` times Dense(W_std, b_std) and the activation, then Dense().

    activation   as `Activation` takes it, or an Activation
    """

    activation: Any
    depth: int = 1

    def __post_init__(self):
        if isinstance(self.depth, bool) or not (isinstance(self.depth, int) and self.depth > 0):
            raise ValueError(f"depth={self.depth!r} came; the number of activations was expected, such as 2")
        if not isinstance(self.activation, Activation):
            object.__setattr__(self, "activation", Activation(self.activation))

    def __call__(self, W_std=1.0, b_std=0.0) -> Network:
        return serial(*[Dense(W_std, b_std), self.activation] * self.depth, Dense())


# ------------------------------------------------------------------------------------------------- what adapters share


def _kernel(net: Callable, get: str, X, Y=None) -> Array:
    """Without Y, and where Y is X, symmetric with an exact diagonal."""
    return net(X, None if Y is X else Y, get=get)


def _diagonal(net: Network, get: str, X) -> Array:
    """K(x, x) of every row, (n,), in O(n)."""
    X, _ = net._inputs(X, None)
    return _chosen((get,), net._variances(X, get == "ntk", "X")[1])[0]


def _checked(get: str) -> str:
    if get not in KERNELS:
        raise ValueError(f"get={get!r} came; 'nngp' or 'ntk' was expected")
    return get


def _network(factory: Any, values) -> Network:
    """The network of a factory at (W_std, b_std)."""
    if isinstance(factory, Network) or not callable(factory):
        what = "a network" if isinstance(factory, Network) else repr(factory)
        raise ValueError(
            f"factory: {what} came; a function (W_std, b_std) -> network was expected, such as mlp('gelu', depth=2), "
            "or callable_kernel(net), precomputed(net, X) or TinyGPKernel(net), which take a network as it is"
        )
    net = factory(*values)
    if not isinstance(net, Network):
        raise ValueError(f"factory: it returned {net!r}; a network was expected, as of dualcalc.serial")
    return net


def _precision(*arrays):
    """64 bits where one of these arrays is in float64 (or of integers), else as JAX is set."""
    wide = any(a is not None and np.asarray(a).dtype not in (np.float32, np.float16) for a in arrays)
    return _double() if wide else contextlib.nullcontext()


KINDS: dict[str, Callable[[Network, str, Any, Any], Array]] = {
    "pairs": lambda net, get, X, Y: net(X, Y, get=get),
    "same": lambda net, get, X, Y: net(X, get=get),
    "diagonal": lambda net, get, X, Y: _diagonal(net, get, X),
}
"""K(X, Y) (n, m), K(X, X) (n, n), and the diagonal of that (n,)."""


@lru_cache(maxsize=64)
def _valued(factory: Factory, get: str, kind: str) -> Callable:
    """The function (values, X, Y) of the hyperparameters (scale, W_std, b_std), for JAX to trace."""

    def function(values, X, Y):
        return values[0] * KINDS[kind](_network(factory, (values[1], values[2])), get, X, Y)

    return function


@lru_cache(maxsize=64)
def _with_slopes(factory: Factory, get: str) -> Callable:
    """K(X, X) (n, n) and its derivatives by the hyperparameters (n, n, 3)."""

    def both(values, X):
        def twice(v):
            K = _valued(factory, get, "same")(v, X, X)
            return K, K

        slopes, K = jax.jacfwd(twice, has_aux=True)(values)
        return K, slopes

    return jax.jit(both)


@lru_cache(maxsize=64)
def _pulled(factory: Factory, get: str, kind: str) -> Callable:
    """The derivatives of sum(weights * K) by the hyperparameters, X and Y."""

    def pull(values, X, Y, weights):
        return jax.vjp(_valued(factory, get, kind), values, X, Y)[1](weights)

    return jax.jit(pull)


# ---------------------------------------------------------------------------------------------------- without a library


def callable_kernel(net: Network, get: str = "ntk") -> Callable[[Any, Any], Any]:
    """A function (X, Y) -> kernel matrix (n, m) in NumPy, as scikit-learn's SVC, SVR, KernelPCA take it; of two rows
    (d,), which KernelRidge and others hand on, a number (slow: prefer `precomputed` there). It can be pickled."""
    return partial(_evaluated, net, _checked(get))


def _evaluated(net: Network, get: str, X, Y=None):
    rows = np.ndim(X) == 1
    A = np.asarray(X)[None] if rows else X
    B = A if Y is None or Y is X else np.asarray(Y)[None] if rows else Y
    with _precision(A, B):
        K = np.array(_kernel(net, get, A, B))  # not read-only, as JAX's are
    return float(K[0, 0]) if rows else K


class Matrices(NamedTuple):
    """train (n, n) for `fit`, test (m, n) for `predict`, with kernel="precomputed"; None without test rows."""

    train: np.ndarray
    test: np.ndarray | None


def precomputed(net: Network, X, X_test=None, get: str = "ntk") -> Matrices:
    """The kernel matrices for kernel="precomputed": `SVC(kernel="precomputed").fit(K.train, y).predict(K.test)`.

    `estimators.ExactKernel` does it within a pipeline."""
    kernel = callable_kernel(net, get)
    return Matrices(kernel(X, None), None if X_test is None else kernel(X_test, X))


def neural_tangents_source(activation, **parameters) -> str:
    """The source of a module for neural-tangents: `k`, `kdot` and `layer()`, an `Elementwise` with both of them.

    Arguments as of `emit`, whose "jax" module it is, with `layer` put before its self-check. It imports neither
    dualcalc nor SymPy and runs with the JAX 0.4.30 that neural-tangents needs. For an activation that jumps, `kdot`
    raises: ask kernel_fn for "nngp". `fn`, what `apply_fn` of a finite network needs, is yours to give.
    """
    return with_layer(emit(activation, "jax", **parameters))


def with_layer(source: str) -> str:
    """The source of a JAX module, `layer` put before its self-check."""
    head, mark, check = source.partition("\n\n# q12, q11, q22, k, sqrt(k11 k22)")
    return f"{head.rstrip()}\n\n\n{ELEMENTWISE}\n{mark}{check}"


ELEMENTWISE = '''def layer(fn=None):
    """The layer (init_fn, apply_fn, kernel_fn) of neural_tangents.stax; `fn` is the activation, for apply_fn alone."""
    from neural_tangents import stax

    return stax.Elementwise(fn, k, kdot)
'''


STARTS = {
    "sklearn": ("SklearnKernel", "SklearnKernel(factory, W_std=1.5, b_std=0.1)", "GaussianProcessRegressor(kernel)"),
    "tinygp": ("TinyGPKernel", "TinyGPKernel(factory(1.5, 0.1))", "tinygp.GaussianProcess(kernel, X, diag=0.1)"),
    "gpjax": ("GPJaxKernel", "GPJaxKernel(factory, W_std=1.5, b_std=0.1)", "gpjax.gps.Prior(mean, kernel)"),
    "gpytorch": ("GPyTorchKernel", "GPyTorchKernel(factory, W_std=1.5, b_std=0.1)", "self.covar_module = kernel"),
}
"""Per library the adapter, how it is built, and where it goes."""
LIBRARIES = (*STARTS, "neural-tangents")


def starting_source(activation: str, library: str, **parameters) -> str:
    """The source of a module to start from: `kernel` for a library of STARTS, which needs dualcalc, or `layer` for
    neural-tangents, which does not. `activation` is a text or a catalog id, with its parameters; ValueError if bad. Of
    an entry in a folder of one's own the formula is written."""
    if library not in LIBRARIES:
        raise ValueError(f"library={library!r} came; one of {', '.join(LIBRARIES)} was expected")
    if library == "neural-tangents":
        return neural_tangents_source(activation, **parameters)
    Activation(activation, **parameters)  # read it before it is written
    name, built, use = STARTS[library]
    entry = catalog.load().get(activation)
    if entry is not None and entry.expression is not None and entry.path.parent != catalog.builtin_folder():
        activation, rest = entry.text(**entry.defaults | parameters)
        parameters = {key: str(value) for key, value in rest.items()}
    given = ", ".join([repr(activation), *(f"{key}={value!r}" for key, value in parameters.items())])
    return (
        f'"""The kernel of an infinitely wide network, for {library}: {use}."""\n\n'
        f"from dualcalc import Activation\nfrom dualcalc.adapters import {name}, mlp\n\n"
        f"factory = mlp(Activation({given}), depth=2)\nkernel = {built}\n"
    )


# -------------------------------------------------------------------------------------------------------- scikit-learn


def _sklearn_kernel() -> type:
    from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

    class SklearnKernel(Kernel):
        """For GaussianProcessRegressor and GaussianProcessClassifier, with gradients: scale K(X, Y), not stationary.

        factory         (W_std, b_std) -> network; a module's function or `mlp`, for models to be pickled
        W_std, b_std    positive, as their logarithms are fitted; b_std = 0 with b_std_bounds="fixed"
        scale           multiplies the kernel
        ..._bounds      (least, greatest), or "fixed"
        get             "nngp" or "ntk"
        """

        def __init__(
            self,
            factory,
            W_std=1.5,
            b_std=0.1,
            scale=1.0,
            W_std_bounds=BOUNDS,
            b_std_bounds=BOUNDS,
            scale_bounds="fixed",
            get="nngp",
        ):
            self.factory = factory
            self.W_std = W_std
            self.b_std = b_std
            self.scale = scale
            self.W_std_bounds = W_std_bounds
            self.b_std_bounds = b_std_bounds
            self.scale_bounds = scale_bounds
            self.get = get

        @property
        def hyperparameter_W_std(self):
            return Hyperparameter("W_std", "numeric", self.W_std_bounds)

        @property
        def hyperparameter_b_std(self):
            return Hyperparameter("b_std", "numeric", self.b_std_bounds)

        @property
        def hyperparameter_scale(self):
            return Hyperparameter("scale", "numeric", self.scale_bounds)

        def __call__(self, X, Y=None, eval_gradient=False):
            """K (n, m); with eval_gradient (n, n), and dK/dtheta (n, n, len(theta)), theta the logarithms."""
            net = self._net()
            with _precision(X, Y):
                if not eval_gradient:
                    return self.scale * np.asarray(_kernel(net, _checked(self.get), X, Y))
                if Y is not None:
                    raise ValueError("gradients are of K(X, X): eval_gradient=True came with Y; leave Y out")
                rows, _ = net._inputs(X, None)
                values = jnp.asarray([self.scale, self.W_std, self.b_std], rows.dtype)
                K, slopes = map(np.array, _with_slopes(self.factory, _checked(self.get))(values, rows))
            places = {"scale": 0, "W_std": 1, "b_std": 2}  # d/dlog v = v d/dv
            found = [slopes[..., places[h.name]] * getattr(self, h.name) for h in self.hyperparameters if not h.fixed]
            return K, np.stack(found, axis=-1) if found else np.empty((*K.shape, 0))

        def diag(self, X):
            """K(x, x) of every row, (n,)."""
            with _precision(X):
                return self.scale * np.asarray(_diagonal(self._net(), _checked(self.get), X))

        def is_stationary(self):
            return False

        def _net(self):
            for h in self.hyperparameters:
                value = getattr(self, h.name)
                if not math.isfinite(value) or value < 0 or not (value or h.fixed):
                    hint = "; with 0 it must be fixed" if value == 0 else ""
                    raise ValueError(f"{h.name}={value!r} came; a positive number was expected{hint}")
            return _network(self.factory, (self.W_std, self.b_std))

    return SklearnKernel


# --------------------------------------------------------------------------------------------- tinygp, GPJax, GPyTorch


def _tinygp_kernel() -> type:
    import equinox
    from tinygp.kernels import Kernel

    def column(X):
        return X[:, None] if jnp.ndim(X) == 1 else X

    class TinyGPKernel(Kernel):
        """For tinygp.GaussianProcess: `TinyGPKernel(net, get="nngp")`, on rows (n, d), numbers (n,), or images.

        net   a network, whose W_std, b_std and parameters `jax.grad` reaches: build it from yours within the loss
        """

        net: Network
        get: str = equinox.field(static=True, default="nngp")

        def evaluate(self, X1, X2):
            return _kernel(self.net, _checked(self.get), column(X1[None]), column(X2[None]))[0, 0]

        def evaluate_diag(self, X):
            return _diagonal(self.net, _checked(self.get), column(X[None]))[0]

        def __call__(self, X1, X2=None):
            """The matrix (n, m) at once, not pair by pair; without X2, as all kernels of tinygp, the diagonal (n,)."""
            if X2 is None:
                return _diagonal(self.net, _checked(self.get), column(X1))
            first = column(X1)
            return _kernel(self.net, _checked(self.get), first, first if X2 is X1 else column(X2))

    return TinyGPKernel


def _gpjax_kernel() -> type:
    import equinox
    import lineax
    from gpjax.kernels import AbstractKernel
    from gpjax.kernels.computations import AbstractKernelComputation
    from gpjax.parameters import NonNegativeReal, PositiveReal, val

    class Matrices(AbstractKernelComputation):
        """Whole matrices, not pair by pair."""

        def _gram(self, kernel, x):
            x = kernel.slice_input(x)
            return kernel.scaled("same", x, x)

        def _cross_covariance(self, kernel, x, y):
            return kernel.scaled("pairs", kernel.slice_input(x), kernel.slice_input(y))

        def _diagonal(self, kernel, inputs):
            x = kernel.slice_input(inputs)
            diagonal = lineax.DiagonalLinearOperator(kernel.scaled("diagonal", x, x))
            return lineax.TaggedLinearOperator(diagonal, lineax.positive_semidefinite_tag)

    class GPJaxKernel(AbstractKernel):
        """For gpjax.gps.Prior: `GPJaxKernel(factory, W_std=1.5, b_std=0.1, scale=1.0, get="nngp")`.

        W_std, scale   numbers or positive parameters of gpjax; b_std may be 0
        active_dims    the columns that the kernel sees
        """

        W_std: Any
        b_std: Any
        scale: Any
        factory: Any = equinox.field(static=True)
        get: str = equinox.field(static=True)
        name: str = equinox.field(static=True, default="Infinite network")

        def __init__(self, factory, W_std=1.5, b_std=0.1, scale=1.0, get="nngp", active_dims=None, n_dims=None):
            def parameter(value, kind):
                return kind(jnp.asarray(float(value))) if isinstance(value, int | float) else value

            _network(factory, (1.0, 1.0))
            self.W_std, self.scale = parameter(W_std, PositiveReal), parameter(scale, PositiveReal)
            self.b_std = parameter(b_std, NonNegativeReal)
            self.factory, self.get, self.name = factory, _checked(get), "Infinite network"
            super().__init__(active_dims, n_dims, ENGINE)

        def scaled(self, kind: str, x, y):
            values = val(self.scale), val(self.W_std), val(self.b_std)
            return _valued(self.factory, self.get, kind)(values, x, y)

        def __call__(self, x, y):
            """One pair of rows (d,)."""
            return self.scaled("pairs", self.slice_input(x)[None], self.slice_input(y)[None])[0, 0]

    ENGINE = Matrices()
    return GPJaxKernel


def _gpytorch_kernel() -> type:
    import torch
    from gpytorch.constraints import Positive
    from gpytorch.kernels import Kernel

    class Bridge(torch.autograd.Function):
        """From torch to JAX and back, derivatives too. Torch code of k alone would not do: its derivatives are those of
        its formula, NaN on the diagonal, where JAX's code has Price's theorem."""

        @staticmethod
        def forward(ctx, factory, get, kind, values, x1, x2):
            ctx.save_for_backward(values, x1, x2)
            ctx.which = factory, get, kind
            scale, W_std, b_std = values.detach().cpu().numpy()
            X, Y = (x.detach().cpu().numpy() for x in (x1, x2))
            with _precision(X, Y):
                K = scale * np.asarray(KINDS[kind](_network(factory, (W_std, b_std)), get, X, Y))
            return torch.from_numpy(np.ascontiguousarray(K)).to(x1)

        @staticmethod
        def backward(ctx, weights):
            arrays = [a.detach().cpu().numpy() for a in (*ctx.saved_tensors, weights)]
            with _precision(*arrays[1:3]):
                found = [np.array(a) for a in _pulled(*ctx.which)(*map(jnp.asarray, arrays))]
            pairs = zip(found, ctx.saved_tensors, strict=True)
            return (None, None, None, *(torch.from_numpy(a).to(like) for a, like in pairs))

    class GPyTorchKernel(Kernel):
        """For gpytorch.models.ExactGP: `GPyTorchKernel(factory, W_std=1.5, b_std=0.1, get="nngp")`.

        W_std and b_std are positive parameters that optimizers of torch reach; a scale is gpytorch's ScaleKernel.
        Matrices are computed by JAX on its own device; batches of rows one after the other, batches of
        hyperparameters not at all. In float64 where the rows are.
        """

        is_stationary = False
        has_lengthscale = False

        def __init__(self, factory, W_std=1.5, b_std=0.1, get="nngp", **options):
            super().__init__(**options)
            if self.batch_shape:
                raise ValueError(f"batch_shape={tuple(self.batch_shape)} came; none was expected: build several models")
            _network(factory, (1.0, 1.0))
            self.factory, self.get = factory, _checked(get)
            for name, value in (("raw_W_std", W_std), ("raw_b_std", b_std)):
                if not value > 0:
                    raise ValueError(f"{name[4:]}={value!r} came; a positive number was expected")
                self.register_parameter(name, torch.nn.Parameter(torch.zeros((), dtype=torch.float64)))
                self.register_constraint(name, Positive())
                start = getattr(self, f"{name}_constraint").inverse_transform(torch.tensor(value, dtype=torch.float64))
                self.initialize(**{name: start})

        @property
        def W_std(self):
            return self.raw_W_std_constraint.transform(self.raw_W_std)

        @property
        def b_std(self):
            return self.raw_b_std_constraint.transform(self.raw_b_std)

        def forward(self, x1, x2, diag=False, last_dim_is_batch=False, **_):
            if last_dim_is_batch:
                raise ValueError("last_dim_is_batch=True came: the kernel of a network is not a sum over columns")
            if x1.dim() > 2:
                x1, x2 = (
                    x.expand(*torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2]), *x.shape[-2:]) for x in (x1, x2)
                )
                return torch.stack([self.forward(a, b, diag) for a, b in zip(x1, x2, strict=True)])
            known = not (x1.requires_grad or x2.requires_grad)
            same = x1 is x2 or (known and torch.equal(x1, x2))
            kind = "pairs" if not same else "diagonal" if diag else "same"
            values = torch.stack([torch.ones_like(self.W_std), self.W_std, self.b_std]).to(x1)
            K = Bridge.apply(self.factory, self.get, kind, values, x1, x2)
            return K.diagonal() if diag and not same else K

    return GPyTorchKernel


# ------------------------------------------------------------------------------------------------------------- loading

MAKERS: dict[str, tuple[str, Callable[[], type]]] = {
    "SklearnKernel": ("scikit-learn", _sklearn_kernel),
    "TinyGPKernel": ("tinygp", _tinygp_kernel),
    "GPJaxKernel": ("gpjax", _gpjax_kernel),
    "GPyTorchKernel": ("gpytorch", _gpytorch_kernel),
}


def __getattr__(name: str) -> Any:
    """The classes, made when first asked for: each needs the library whose class it extends."""
    if name not in MAKERS:
        raise AttributeError(f"module 'dualcalc.adapters' has no attribute {name!r}")
    library, make = MAKERS[name]
    try:
        made = make()
    except ImportError as error:
        raise ImportError(f"{name} needs {library}: pip install {library} ({error})") from None
    made.__qualname__ = name  # where pickle looks for it
    globals()[name] = made
    return made
