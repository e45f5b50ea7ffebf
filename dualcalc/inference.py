"""Predictions from the kernels of infinitely wide networks, by linear algebra on their Gram matrices.

`posterior` and `log_marginal_likelihood` are those of the Gaussian process that the network is at initialization,
`kernel_ridge` fits with any of its kernels, and `gradient_flow` is the network trained for a time t (Jacot et al. 2018;
Lee et al. 2019). Each takes a network, or `Precomputed` matrices in its place, and works in the precision of the
kernels, which is that of X. All of it can be traced by `jit` and `grad`; while JAX traces, no error is raised, and what
has no value is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular

from .networks import KERNELS, _names, _result
from .runtime import known_true

FACTOR = 10
"""From one jitter to the next."""
MOST = 1e-2
"""The largest jitter over the mean of the diagonal; a kernel that needs more is not positive semi-definite."""


class Posterior(NamedTuple):
    """Of the function (without noise) at m test points: mean (m,) or (m, targets), covariance (m, m) of each target.

    jitter   what was added to the diagonal beside the noise, 0 where nothing was needed
    """

    mean: Array
    covariance: Array
    jitter: Array


class Ridge(NamedTuple):
    """mean (m,) or (m, targets) at the test points; coefficients (n,) or (n, targets): mean = K_test,train times them;
    jitter as in `Posterior`."""

    mean: Array
    coefficients: Array
    jitter: Array


class Flow(NamedTuple):
    """Of trained networks at m test points, over their random weights at the start: mean (m,) or (m, targets),
    covariance (m, m) of each target.

    rank   directions of the training targets that can be learnt: eigenvalues above n eps of the largest
    """

    mean: Array
    covariance: Array
    rank: Array


class Evidence(NamedTuple):
    """The log of the density of the targets, summed over targets; jitter as in `Posterior`. A pair, so that
    `jax.grad(..., has_aux=True)` takes it as it is."""

    value: Array
    jitter: Array


@dataclass(frozen=True)
class Precomputed:
    """Matrices (N, N) over all points, in place of a network: X and X_test are then row numbers into them.

    `posterior(Precomputed(nngp=K), train, y[train], test)`. Memory-mapped files will do: rows are read as needed.
    """

    nngp: Any = None
    ntk: Any = None

    def __post_init__(self):
        for name in KERNELS:  # nested lists become arrays, memory maps stay
            if isinstance(matrix := getattr(self, name), list | tuple):
                object.__setattr__(self, name, np.array(matrix, float))
        shapes = {np.shape(matrix) for matrix in (self.nngp, self.ntk) if matrix is not None}
        if len(shapes) != 1 or any(len(shape) != 2 or shape[0] != shape[1] for shape in shapes):
            came = ", ".join(f"{name} {np.shape(m)}" for name in KERNELS if (m := getattr(self, name)) is not None)
            raise ValueError(f"matrices {came or 'none'} came; one or two square ones of one size were expected")
        for name in KERNELS:
            dtype = getattr(getattr(self, name), "dtype", np.dtype(float))
            if not np.issubdtype(dtype, np.floating):
                raise ValueError(f"{name} has dtype {dtype}; a matrix of floats was expected")

    def __call__(self, X, Y=None, get: str | tuple[str, ...] = "ntk"):
        rows, columns = (self._numbers(Z, name) for Z, name in ((X, "X"), (X if Y is None else Y, "Y")))
        for name in _names(get):
            if getattr(self, name) is None:
                raise ValueError(f"the {name} is asked for and was not given: Precomputed(..., {name}=matrix)")
        kernels = [jnp.asarray(np.asarray(getattr(self, name)[rows])[:, columns]) for name in _names(get)]
        return kernels[0] if isinstance(get, str) else _result(_names(get))(*kernels)

    def _numbers(self, Z, name: str) -> np.ndarray:
        numbers, size = np.asarray(Z), len(self.nngp if self.ntk is None else self.ntk)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer) or not len(numbers):
            raise ValueError(
                f"{name} of shape {numbers.shape} and dtype {numbers.dtype} came; with Precomputed matrices, row "
                "numbers were expected, such as range(100)"
            )
        if numbers.min() < -size or numbers.max() >= size:
            raise ValueError(
                f"{name} has row numbers from {numbers.min()} to {numbers.max()}; the matrices have {size} rows"
            )
        return numbers


# ---------------------------------------------------------------------------------------------------------- inference


def posterior(net: Callable, X, y, X_test=None, *, noise=0.0, get: str = "nngp") -> Posterior:
    """The Gaussian process with the kernel of `net`, given y = f(X) + noise (Bayesian inference of all weights for the
    NNGP; Neal 1996, Lee et al. 2018).

        mean = K_* (K + noise I)^-1 y,   covariance = K_** - K_* (K + noise I)^-1 K_*'

    net      a network, or `Precomputed` matrices
    X, y     training points, as the network takes them, and targets (n,) or (n, targets)
    X_test   where to predict; at X if not given
    noise    the variance of the noise; without any, repeated points must have equal targets
    get      "nngp", or "ntk" for the process with that kernel
    Raises ValueError for targets of a wrong shape or not finite, negative noise, and kernels that are not positive
    semi-definite.
    """
    K, cross, test = _kernels(net, X, X_test, _one(get))
    y, noise = _targets(y, K), _nonnegative(noise, "noise", K)
    factor, jitter = _cholesky(K, noise)
    mean, covariance = _posterior(factor, cross, test, y)
    return Posterior(mean, covariance, jitter)


def kernel_ridge(net: Callable, X, y, X_test=None, *, ridge=0.0, get: str = "ntk") -> Ridge:
    """The function in the kernel's space with the least |y - f(X)|^2 + ridge |f|^2: coefficients (K + ridge I)^-1 y.

    Arguments and errors as in `posterior`, whose mean it is for the same kernel.
    """
    K, cross, _ = _kernels(net, X, X_test, _one(get), test=False)
    y, ridge = _targets(y, K), _nonnegative(ridge, "ridge", K)
    factor, jitter = _cholesky(K, ridge)
    coefficients = cho_solve((factor, True), y)
    return Ridge(_times(cross, coefficients), coefficients, jitter)


def gradient_flow(net: Callable, X, y, X_test=None, *, t=jnp.inf, get: str = "ntk") -> Flow:
    """Infinitely wide networks after gradient flow for a time t on (1/2) sum |f(X) - y|^2, learning rate 1.

    The outputs on X follow df/dt = -Theta (f - y), and those elsewhere df_*/dt = -Theta_* (f(X) - y), so that

        f_*(t) = f_*(0) + A (y - f(X)(0)),   A = Theta_* Theta^-1 (I - exp(-t Theta)),

    linear in the random outputs at the start, which are Gaussian with mean 0 and the NNGP K as covariance:

        mean = A y,   covariance = K_** - A K_*' - K_* A' + A K A'

    (Lee et al. 2019, eq. 15 and 16). A comes from the eigenvalues of Theta; where one is 0 but for rounding (repeated
    points), A is the limit: such directions are never learnt.

    t      0 or more, or inf: trained to the end
    get    the kernel Theta that drives the flow: "ntk" where all weights learn, "nngp" where the last layer alone does
           (in the "ntk" parameterization)
    The rest as in `posterior`. Gradients through it are NaN where Theta has equal eigenvalues.
    """
    names = ("nngp",) if _one(get) == "nngp" else KERNELS
    K, cross, test = _kernels(net, X, X_test, names)
    drive, cross_drive = (getattr(k, get) for k in (K, cross))
    y, t = _targets(y, drive), _nonnegative(t, "t", drive)
    return Flow(*_flow(drive, cross_drive, K.nngp, cross.nngp, test.nngp, y, t))


def log_marginal_likelihood(net: Callable, X, y, noise=0.0, *, get: str = "nngp") -> Evidence:
    """The log of the density of y under the Gaussian process: -(y' C^-1 y + log det C + n log 2 pi)/2, C = K + noise I,
    summed over targets. Arguments and errors as in `posterior`.

    To choose hyperparameters, maximize it by its gradient in the network, a pytree of W_std, b_std and parameters:

        gradient, jitter = jax.grad(lambda net: log_marginal_likelihood(net, X, y, 0.1), has_aux=True)(net)
    """
    K = net(X, get=_one(get))
    y, noise = _targets(y, K), _nonnegative(noise, "noise", K)
    factor, jitter = _cholesky(K, noise)
    return Evidence(_log_density(factor, y), jitter)


# ----------------------------------------------------------------------------------------------------- linear algebra


@jax.jit
def _posterior(factor: Array, cross: Array, test: Array, y: Array) -> tuple[Array, Array]:
    half = solve_triangular(factor, cross.T, lower=True)
    return _times(cross, cho_solve((factor, True), y)), _symmetric(test - _times(half.T, half))


@jax.jit
def _flow(drive, cross_drive, K, cross, test, y, t) -> tuple[Array, Array, Array]:
    values, vectors = jnp.linalg.eigh(drive)
    eps = float(jnp.finfo(drive.dtype).eps)
    top = jnp.abs(values).max()
    learnt = values > len(values) * eps * top
    safe = jnp.where(learnt, values, 1.0)
    # (1 - exp(-t v))/v, for which v = 0 gives t. Rounding leaves eps top of the projections of Theta_* that are 0 in
    # truth, which t must not blow up: from t top = 1/sqrt(eps) on they are taken as 0.
    early = jnp.where(t * top * eps**0.5 < 1, t, 0.0)
    gain = jnp.where(learnt, -jnp.expm1(-t * safe) / safe, early)
    A = _times(_times(cross_drive, vectors) * gain[None, :], vectors.T)
    covariance = test - 2 * _times(A, cross.T) + _times(_times(A, K), A.T)
    return _times(A, y), _symmetric(covariance), learnt.sum()


@jax.jit
def _log_density(factor: Array, y: Array) -> Array:
    y = y.reshape(len(y), -1)
    white = solve_triangular(factor, y, lower=True)
    n, targets = y.shape
    return -0.5 * jnp.sum(white**2) - targets * (jnp.log(jnp.diagonal(factor)).sum() + 0.5 * n * math.log(2 * math.pi))


def _symmetric(a: Array) -> Array:
    return (a + a.T) / 2


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _cholesky(K: Array, noise: Array) -> tuple[Array, Array]:
    """The lower factor of K + (noise + jitter) I and the jitter; ValueError where none up to MOST will do."""
    factor, jitter = _factor(K, noise)
    if known_true(~jnp.isfinite(jitter)):
        least = float(jnp.linalg.eigvalsh(jax.lax.stop_gradient(K))[0])
        raise ValueError(
            f"the kernel matrix with noise {float(noise):g} is not positive definite, also with a jitter of {MOST:g} "
            f"of its mean diagonal: its least eigenvalue is {least:.3g}. Add noise, work in float64, or look for "
            "zero rows, and for matrices that are no kernel"
        )
    return factor, jitter


@jax.jit
def _factor(K: Array, noise: Array) -> tuple[Array, Array]:
    """The jitter is 0, or from 10 eps of the mean diagonal on the first that leaves all pivots above 10 eps: below,
    rounding has made them. It is a constant for derivatives. NaN where none will do."""
    eye = jnp.eye(len(K), dtype=K.dtype)
    noisy = K + noise * eye
    known = jax.lax.stop_gradient(noisy)
    size = jnp.trace(known) / len(K)
    least = 10 * float(jnp.finfo(K.dtype).eps) * size

    def fails(jitter: Array) -> Array:
        pivots = jnp.diagonal(jnp.linalg.cholesky(known + jitter * eye)) ** 2
        return ~jnp.all(pivots > least)  # also NaN

    def more(jitter: Array) -> Array:
        return jnp.maximum(least, FACTOR * jitter)

    jitter = jax.lax.while_loop(lambda j: fails(j) & (j < MOST * size), more, jnp.zeros_like(size))
    jitter = jnp.where((jitter < MOST * size) | ~fails(jitter), jitter, jnp.nan)
    return jnp.linalg.cholesky(noisy + jitter * eye), jitter


# -------------------------------------------------------------------------------------------------------------- inputs


def _one(get) -> str:
    if not isinstance(get, str) or get not in KERNELS:
        raise ValueError(f"get={get!r} came; 'nngp' or 'ntk' was expected")
    return get


def _kernels(net: Callable, X, X_test, get: str | tuple[str, ...], test: bool = True):
    """Of the training points (n, n), test with training points (m, n), and the test points (m, m)."""
    train = net(X, get=get)
    if X_test is None:
        return train, train, train
    return train, net(X_test, X, get=get), net(X_test, get=get) if test else None


def _targets(y, K: Array) -> Array:
    """Finite targets (n,) or (n, targets) in the precision of the kernel."""
    try:
        targets = jnp.asarray(y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y: a {type(y).__name__} came that is not an array of numbers: {error}") from None
    n = len(K)
    if targets.ndim not in (1, 2) or len(targets) != n or 0 in targets.shape:
        raise ValueError(f"y has shape {targets.shape}; ({n},) or ({n}, targets) was expected, a row for each of X")
    if jnp.issubdtype(targets.dtype, jnp.complexfloating):
        raise ValueError(f"y has dtype {targets.dtype}; real numbers were expected")
    bad = ~jnp.isfinite(targets).reshape(n, -1).all(axis=1)
    if known_true(bad.any()):
        raise ValueError(f"row {int(jnp.argmax(bad))} of y is NaN or infinite; drop or mend such rows")
    return targets.astype(K.dtype)


def _nonnegative(value, name: str, K: Array) -> Array:
    number = jnp.asarray(value) if isinstance(value, int | float | np.ndarray | np.number | jax.Array) else None
    if number is None or number.ndim or isinstance(value, bool) or jnp.iscomplexobj(number):
        raise ValueError(f"{name}={value!r} came; a number was expected")
    # `t` alone may be infinite
    if known_true(~(number >= 0)) or (name != "t" and known_true(jnp.isinf(number))):
        raise ValueError(f"{name}={value!r} came; a number of 0 or more was expected")
    return number.astype(K.dtype)
