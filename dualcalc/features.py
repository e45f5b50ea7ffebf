"""Which feature map of a network, and how good it is: the choice between exact, Nystrom and sketch.

`feature_map` builds one by name; `choose` measures the candidates on rows of the data and says which and why;
`feature_error` compares features with the exact kernel. The estimators and the command line call them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.linalg import eigh

from .layerwise import layerwise
from .networks import Network, _names
from .nystrom import nystrom, positive
from .sketch import sketch

METHODS = ("sketch", "centred", "nystrom", "exact", "layerwise", "auto")
OBLIVIOUS = ("sketch", "horner", "maclaurin", "tensorsketch", "polysketch")
"""Maps that know of the data only the number of features and the range of norms."""

SAMPLE, SCORED = 1024, 256
"""`choose` fits the candidates on so many rows, and scores them on so many others."""

LAMBDA = 1e-3
"""The ridge of the spectral error, over the trace of the kernel matrix."""


def feature_map(
    net: Network, X, n_components: int = 4096, method: str = "sketch", *, get: str = "ntk", random_state=0, **options
) -> Any:
    """The feature map of `net` by this method: a callable of rows with `n_components` and `error`.

    method    "sketch" (oblivious) or the name of a sketch, "centred", "nystrom", "exact" (every row of X a landmark),
              "layerwise" (images), or "auto": what `choose` says
    options   of `sketch.sketch` and `nystrom.nystrom`, or of `choose`
    """
    n_components = positive(n_components, "n_components")
    _check_options(method, options)
    if method == "auto":
        choice = choose(net, X, n_components, get=get, random_state=random_state, **options)
        return feature_map(net, X, n_components, choice.method, get=get, random_state=random_state)
    if method == "exact":
        return nystrom(net, X, len(X), get=get, selection="uniform", rows=len(X), random_state=random_state, **options)
    if method == "nystrom":
        return nystrom(net, X, n_components, get=get, random_state=random_state, **options)
    if method == "layerwise":
        return layerwise(net, X, n_components, get=get, random_state=random_state, **options)
    if method in (*OBLIVIOUS, "centred"):
        name = "horner" if method == "sketch" else method
        return sketch(net, X, n_components, get=get, method=name, random_state=random_state, **options)
    raise ValueError(f"method={method!r} came; one of {', '.join(map(repr, (*METHODS, *OBLIVIOUS[1:])))} was expected")


def _check_options(method: str, options: dict[str, Any]) -> None:
    """ValueError for an option that the method has not."""
    builders: dict[str, Callable[..., Any]] = {
        "auto": choose,
        "layerwise": layerwise,
        "nystrom": nystrom,
        "exact": nystrom,
    }
    known = {p.name for p in signature(builders.get(method, sketch)).parameters.values() if p.kind is p.KEYWORD_ONLY}
    known -= {"get", "random_state", "method"} | ({"selection", "rows"} if method == "exact" else set())
    for name in options:
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ValueError(f"the option {name!r} came for method={method!r}; it knows {names}")


# -------------------------------------------------------------------------------------------------------- the error


class FeatureError(NamedTuple):
    """Of features Z against the kernel matrix K on a block of rows, unscaled.

    frobenius   |Z Z' - K|/|K|
    spectral    the largest |eigenvalue| of (K + ridge I)^(-1/2) (Z Z' - K) (K + ridge I)^(-1/2): the paper's Theorem 4
                holds with this epsilon; from 1 on it guarantees nothing
    ridge       of the spectral error
    rows        how many
    """

    frobenius: float
    spectral: float
    ridge: float
    rows: int


def feature_error(
    net: Network,
    features: Callable[[Any], Any],
    X,
    *,
    get: str = "ntk",
    rows: int = 512,
    ridge: float | None = None,
    random_state=0,
) -> FeatureError:
    """The error of features on at most `rows` rows of X, drawn at random; ridge is 1e-3 trace(K) if not given.

    Rows on which the features were fitted flatter them: give others.
    """
    (name,) = _names((get,))
    if ridge is not None and not ridge > 0:
        raise ValueError(f"ridge={ridge!r} came; a positive number was expected")
    X = _rows(X)
    block = X[_drawn(len(X), positive(rows, "rows"), random_state)]
    return _errors(_kernel(net, block, name), np.asarray(features(block), float), ridge)


def _errors(K: np.ndarray, Z: np.ndarray, ridge: float | None) -> FeatureError:
    difference, size = Z @ Z.T - K, np.linalg.norm(K)
    if not size > 0:
        raise ValueError("the kernel is zero on these rows; its relative error has no value")
    ridge = LAMBDA * float(np.trace(K)) if ridge is None else float(ridge)
    values = eigh(difference, K + ridge * np.eye(len(K)), eigvals_only=True)
    return FeatureError(float(np.linalg.norm(difference) / size), float(np.abs(values).max()), ridge, len(K))


def _kernel(net: Network, X, get: str) -> np.ndarray:
    return np.asarray(net(np.asarray(X.todense()) if hasattr(X, "todense") else X, get=get), float)


# ------------------------------------------------------------------------------------------------------- the choice


class Candidate(NamedTuple):
    """A map as it was measured: columns, the relative Frobenius error on rows that it was not fitted on, and seconds
    for all rows of the data, fitting included (of Nystrom, extrapolated to all landmarks)."""

    method: str
    n_components: int
    error: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.method} with {self.n_components} columns: error {self.error:.2g}, about {self.seconds:.2g} s"


class Choice(NamedTuple):
    """method: the name for `feature_map`; reason: why, in words; candidates: what was measured."""

    method: str
    reason: str
    candidates: tuple[Candidate, ...] = ()


def choose(
    net: Network,
    X,
    n_components: int = 4096,
    *,
    get: str = "ntk",
    seconds: float | None = None,
    error: float | None = None,
    random_state=0,
) -> Choice:
    """The method for these rows and a budget: columns, and seconds for all rows or a relative Frobenius error.

    Sketch, centred sketch and Nystrom are built on a sample of the rows, at `n_components` columns or as many as the
    sample allows, and scored on other rows; so is the exact kernel, where there are no more rows than columns. Without
    further budget the least error wins; with `seconds` the least error within them; with `error` the fastest within it.
    """
    (name,), n_components = _names((get,)), positive(n_components, "n_components")
    for label, value in (("seconds", seconds), ("error", error)):
        if value is not None and not value > 0:
            raise ValueError(f"{label}={value!r} came; a positive number was expected, or None")
    if seconds is not None and error is not None:
        raise ValueError("seconds and error came together; give one of them, the other is what you get")
    X = _rows(X)
    if hasattr(X, "todense"):
        return Choice("sketch", "the rows are sparse: the sketch alone takes time in proportion to the non-zeros")
    if X.ndim == 4:
        return Choice("layerwise", "the rows are images: every pair of them takes the exact kernel a sum over pixels")
    n = len(X)
    if seconds is None and error is None and n <= n_components:
        reason = f"{n} rows are no more than {n_components} columns: with every row a landmark the kernel is exact"
        return Choice("exact", reason)
    if n < 4:
        return Choice("exact", f"{n} rows are too few to measure anything on")
    drawn = _drawn(n, SAMPLE + SCORED, random_state, shuffled=True)
    scored = min(SCORED, len(drawn) // 4)
    fitted, others = X[drawn[scored:]], X[drawn[:scored]]
    K = _kernel(net, others, name)

    def measured(method: str, columns: int, final: int) -> Candidate:
        """With `columns`, where the final map has `final`: Nystrom's cost is cubic in them to fit, quadratic a row."""
        start = time.perf_counter()
        features = feature_map(net, fitted, columns, method, get=name, random_state=random_state)
        Z = np.asarray(features(others))
        middle = time.perf_counter()
        jax.block_until_ready(features(others))
        again = time.perf_counter() - middle
        growth = final / columns
        fit = max(middle - start - again, 0.0)
        cost = fit * (growth**3 if method == "nystrom" else 1.0) + again * n / len(others) * growth**2
        return Candidate(method, features.n_components, _errors(K, Z, None).frobenius, cost)

    candidates, refusals = [], []
    for method in ("sketch", "centred", "nystrom"):
        sizes = (n_components,) * 2 if method != "nystrom" else (min(n_components, len(fitted)), min(n_components, n))
        try:
            candidates.append(measured(method, *sizes))
        except ValueError as reason:  # a network without series, or too few columns for it
            refusals.append(f"{method} refuses: {reason}")
    if not candidates:
        raise ValueError("; ".join(refusals))
    if n <= n_components and candidates[-1].method == "nystrom":
        candidates.append(candidates.pop()._replace(method="exact", n_components=n, error=0.0))
    choice = _best(candidates, seconds, error)
    return choice._replace(reason="; ".join([choice.reason, *refusals]))


def _best(candidates: list[Candidate], seconds: float | None, error: float | None) -> Choice:
    by_error = sorted(candidates, key=lambda c: c.error)
    by_time = sorted(candidates, key=lambda c: c.seconds)
    if seconds is not None:
        within = [c for c in by_error if c.seconds <= seconds]
        rule = f"the least error within {seconds:g} s" if within else f"none is within {seconds:g} s; it is the fastest"
        ranked = within or by_time
    elif error is not None:
        within = [c for c in by_time if c.error <= error]
        rule = (
            f"the fastest with an error of at most {error:g}"
            if within
            else (f"none has an error of at most {error:g}; it has the least")
        )
        ranked = within or by_error
    else:
        rule, ranked = "the least error on rows that it was not fitted on", by_error
    others = "; ".join(str(c) for c in by_error if c is not ranked[0])
    return Choice(ranked[0].method, f"{rule}: {ranked[0]}. Others: {others}", tuple(by_error))


# ------------------------------------------------------------------------------------------------------------ inputs


def _rows(X):
    """An array of rows, or a sparse matrix as CSR."""
    return X.tocsr() if hasattr(X, "tocsr") else np.asarray(X)


def _drawn(n: int, count: int, random_state, shuffled: bool = False) -> np.ndarray:
    chosen = np.random.default_rng(random_state).permutation(n)[:count]
    return chosen if shuffled else np.sort(chosen)
