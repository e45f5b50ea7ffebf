"""The kernels of networks in scikit-learn: feature maps as transformers, ridge regression that streams, exact kernels.

    make_pipeline(NTKFeatures(net, n_components=2048), LogisticRegression())
    StreamingRidgeClassifier(NTKFeatures(net)).fit(X, y)
    make_pipeline(ExactKernel(net), SVC(kernel="precomputed"))

The one file that imports scikit-learn, an extra: `pip install "dualcalc[sklearn]"`. A network goes into GridSearchCV as
any parameter does. Features come in the precision of X where JAX is set to 64 bits, else as float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .features import OBLIVIOUS, Choice, choose, feature_map
from .layers import Activation, Dense
from .networks import Network, serial
from .nystrom import positive
from .ridge import Path, RidgeStream

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        RegressorMixin,
        TransformerMixin,
        clone,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(f'{error}: scikit-learn 1.6 or newer is needed, pip install "dualcalc[sklearn]"') from None

BATCH = 4096
"""Rows whose norms are looked at, or whose features are in memory, at a time."""


def default_network() -> Network:
    """A ReLU network of depth 3 whose NNGP keeps the norms: what an estimator without a network takes."""
    W_std = math.sqrt(2)
    return serial(*[Dense(W_std), Activation("relu")] * 3, Dense(W_std))


def _precisions() -> list[str]:
    """Those of features, JAX's setting permitting."""
    return ["float64", "float32"] if jnp.zeros(()).dtype == jnp.float64 else ["float32"]


def _slices(n: int, size: int = BATCH) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


# ------------------------------------------------------------------------------------------------------- transformers


class _Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What the two transformers share; they differ in the kernel, `_get`."""

    _get: str

    def __init__(
        self,
        net: Network | None = None,
        n_components: int = 4096,
        method: str = "sketch",
        random_state: Any = 0,
        options: dict[str, Any] | None = None,
    ):
        self.net = net
        self.n_components = n_components
        self.method = method
        self.random_state = random_state
        self.options = options

    def fit(self, X, y=None):
        """Build the map. A sketch takes from X only its number of columns and the range of norms."""
        X = self._validated(X, reset=True)
        self._seed = _seed(self.random_state)
        self.__dict__.pop("_extremes", None)
        if self.method in OBLIVIOUS:
            X = self._extremes = _extremes(X)
        return self._built(X)

    @available_if(lambda self: self.method in OBLIVIOUS)
    def partial_fit(self, X, y=None):
        """Widen the range of norms that a sketch serves to that of X too; a wider range is a new map, with the same
        random numbers. See all batches before the first `transform`. Other methods need all rows at once: `fit`."""
        if not hasattr(self, "_extremes"):
            return self.fit(X)
        known, X = self._extremes, self._validated(X, reset=False)
        self._extremes = _extremes(np.concatenate([known, _extremes(X)]))
        return self if np.array_equal(known, self._extremes) else self._built(self._extremes)

    def _built(self, X):
        if not isinstance(self.options, Mapping | None):
            raise ValueError(f"options={self.options!r} came; a dictionary was expected, such as {{'degree': 8}}")
        net, options = self.net or default_network(), dict(self.options or {})
        self.choice_ = Choice(self.method, "as asked")
        if self.method == "auto":
            self.choice_ = choose(net, X, self.n_components, get=self._get, random_state=self._seed, **options)
            options = {}
        method = self.choice_.method
        self.map_ = feature_map(net, X, self.n_components, method, get=self._get, random_state=self._seed, **options)
        self._n_features_out = self.map_.n_components
        return self

    def transform(self, X):
        """Features (n, n_components) as a NumPy array."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        return np.concatenate([_within(rows, X, self.map_) for rows in _slices(X.shape[0])])

    def _validated(self, X, reset: bool):
        sparse = "csr" if self.__sklearn_tags__().input_tags.sparse else False
        return validate_data(self, X, accept_sparse=sparse, dtype=_precisions(), allow_nd=True, reset=reset)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.method in OBLIVIOUS
        tags.transformer_tags.preserves_dtype = _precisions()
        return tags


class NTKFeatures(_Features):
    """Features whose products approximate the NTK of an infinitely wide network: Z Z' ~ Theta(X, X).

    net            a network, as `dc.serial(dc.Dense(1.5), dc.Activation("gelu"), dc.Dense())`; if not given, a ReLU
                   network of depth 3
    n_components   the columns, at most: fewer where there are fewer landmarks, or where a sketch mixes faster. The rows
                   of X for "exact"
    method         "sketch": random, knows only the number of columns and the norms of X, takes sparse rows. "centred":
                   a sketch about the mean direction of X. "nystrom": through landmarks among the rows of X, on most
                   data the best. "exact": every row a landmark. "layerwise": for images. "auto": the best of them on
                   X, or the cheapest; `choice_.reason` says why. Also "maclaurin", "tensorsketch", "polysketch"
    random_state   an integer, None, a NumPy RandomState or Generator; an integer gives the same features each time
    options        of the method: {"normalize": True, "degree": 8, "tol": 1e-4} of a sketch, {"selection": "uniform"} of
                   Nystrom, {"anchors": 32} of layerwise, {"seconds": 60} or {"error": 0.01} of auto (`features.choose`)

    Fitted: `map_` (`error` is the method's own bound or estimate), `choice_`, `n_features_in_`. How good features are
    on other rows, `dualcalc.features.feature_error` measures. Raises ValueError for NaN, wrong shapes, rows outside
    the range of norms that were fitted, and whatever the network's kernel refuses.
    """

    _get = "ntk"


class NNGPFeatures(_Features):
    """Features whose products approximate the NNGP of an infinitely wide network. All else as in `NTKFeatures`."""

    _get = "nngp"


class ExactKernel(TransformerMixin, BaseEstimator):
    """The exact kernel of X with the rows that it was fitted on, (n, n_fitted), for models with kernel="precomputed":
    `make_pipeline(ExactKernel(net), KernelRidge(kernel="precomputed"))`.

    net   a network; if not given, a ReLU network of depth 3
    get   "ntk" or "nngp"
    """

    def __init__(self, net: Network | None = None, get: str = "ntk"):
        self.net = net
        self.get = get

    def fit(self, X, y=None):
        """Keep the rows."""
        self.X_fit_ = self._validated(X, reset=True)
        self._net = self.net or default_network()
        self._net._variances(self._net._inputs(self.X_fit_, None)[0], self.get == "ntk", "X")
        return self

    def fit_transform(self, X, y=None):
        """The symmetric matrix of the rows with themselves."""
        return np.asarray(self.fit(X)._net(self.X_fit_, get=self.get))

    def transform(self, X):
        """The kernel (n, n_fitted)."""
        check_is_fitted(self)
        return np.asarray(self._net(self._validated(X, reset=False), self.X_fit_, get=self.get))

    def _validated(self, X, reset: bool):
        return validate_data(self, X, dtype=_precisions(), allow_nd=True, reset=reset)

    def get_feature_names_out(self, input_features=None):
        """One name for each fitted row."""
        check_is_fitted(self)
        return np.array([f"exactkernel{i}" for i in range(len(self.X_fit_))], dtype=object)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = _precisions()
        return tags


# -------------------------------------------------------------------------------------------------- ridge regression


class _Streaming(BaseEstimator):
    """Ridge regression on features, batch by batch; what the regressor and the classifier share."""

    def __init__(self, features=None, ridges=None, folds: int = 1, batch_size: int = BATCH, random_state: Any = 0):
        self.features = features
        self.ridges = ridges
        self.folds = folds
        self.batch_size = batch_size
        self.random_state = random_state

    def _started(self, X):
        stream = RidgeStream(folds=self.folds, seed=_seed(self.random_state))
        self.features_ = clone(self._transformer()).fit(X)
        self._stream, self._path = stream, None

    def _transformer(self):
        features = NTKFeatures() if self.features is None else self.features
        if not hasattr(features, "transform"):
            raise TypeError(f"features={features!r} came; a transformer was expected, such as NTKFeatures(net)")
        return features

    def _taken(self, X, targets):
        """All rows or, where one is refused, none. targets: of rows; one-hot ones are never in memory together."""
        stream = copy.deepcopy(self._stream)
        for rows in _slices(X.shape[0], positive(self.batch_size, "batch_size")):
            stream.add(_within(rows, X, self.features_.transform), targets(rows))
        self._stream, self._path = stream, None
        return self

    @property
    def path_(self) -> Path:
        """The fits for all ridge parameters; solved when first asked for after new rows."""
        check_is_fitted(self)
        if self._path is None:
            self._path = self._stream.solve(self.ridges)
        return self._path

    def _predicted(self, X) -> np.ndarray:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        slices = _slices(X.shape[0], positive(self.batch_size, "batch_size"))
        return np.concatenate([self.path_.predict(_within(rows, X, self.features_.transform)) for rows in slices])

    def _validated(self, X, *y, reset: bool, **options):
        sparse = "csr" if self.__sklearn_tags__().input_tags.sparse else False
        return validate_data(
            self, X, *y, accept_sparse=sparse, dtype=_precisions(), allow_nd=True, reset=reset, **options
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self._transformer().__sklearn_tags__().input_tags.sparse
        return tags


class StreamingRidge(RegressorMixin, _Streaming):
    """Ridge regression on features of a network that are never in memory together (`dualcalc.ridge`).

    features       a transformer, `NTKFeatures()` if not given; it is fitted on the rows of `fit`, or on the first batch
                   of `partial_fit`. To fit it on more, do that before, and give `FrozenEstimator(features)`
    ridges         the path of parameters; if not given, 20 in units of the features' mean squared length
    folds          1: the parameter is chosen by generalized cross-validation; K > 1: by K folds
    batch_size     rows whose features are in memory at a time; the same one gives the same bits
    random_state   of the folds

    Fitted: `features_`, and `path_` with all fits, their scores and the chosen `ridge`.
    """

    def fit(self, X, y):
        """Fit on rows X and real targets (n,) or (n, t)."""
        X, y = self._validated(X, y, reset=True, multi_output=True, y_numeric=True)
        self._vector = y.ndim == 1
        self._started(X)
        self._taken(X, lambda rows: y[rows])
        return self.path_ and self

    def partial_fit(self, X, y):
        """Take more rows."""
        first = not hasattr(self, "features_")
        X, y = self._validated(X, y, reset=first, multi_output=True, y_numeric=True)
        if first:
            self._vector = y.ndim == 1
            self._started(X)
        return self._taken(X, lambda rows: y[rows])

    def predict(self, X):
        """Targets, as those of `fit`."""
        found = self._predicted(X)
        return found[:, 0] if self._vector else found

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class StreamingRidgeClassifier(ClassifierMixin, _Streaming):
    """Classification by ridge regression of one-hot targets. Arguments as in `StreamingRidge`."""

    def fit(self, X, y):
        """Fit on rows X and labels (n,)."""
        X, y = self._validated(X, y, reset=True)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        self._started(X)
        return self._taken(X, lambda rows: y[rows, None] == self.classes_).path_ and self

    def partial_fit(self, X, y, classes=None):
        """Take more rows; `classes` are all labels that will come, given with the first rows."""
        first = not hasattr(self, "features_")
        X, y = self._validated(X, y, reset=first)
        if first:
            if classes is None:
                raise ValueError("classes=None came with the first rows; all labels that will come were expected")
            self.classes_ = np.unique(classes)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"the labels {unknown.tolist()} came; one of {self.classes_.tolist()} was expected")
        if first:
            self._started(X)
        return self._taken(X, lambda rows: y[rows, None] == self.classes_)

    def decision_function(self, X):
        """Scores (n, classes); of two classes their difference, (n,)."""
        scores = self._predicted(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X):
        """The labels of the largest scores."""
        best = self._predicted(X).argmax(axis=1)
        return self.classes_[best]


# ------------------------------------------------------------------------------------------------------------- inputs


def _within(rows: slice, X, features) -> np.ndarray:
    """Features of these rows of X; an error says where they are in X."""
    try:
        return np.asarray(features(X[rows]))
    except ValueError as error:
        raise ValueError(f"rows {rows.start} to {rows.stop - 1} of X, which count from 0 here: {error}") from None


def _seed(random_state) -> int:
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    return int(check_random_state(random_state).randint(2**31 - 1))


def _extremes(X) -> np.ndarray:
    """Two rows (2, d) with the least and the greatest norm, zero rows aside: all that a sketch takes from the data."""
    if X.ndim != 2:
        raise ValueError(f"X has shape {X.shape}; rows (n, d) were expected: for images take method='layerwise'")
    ends: list[tuple[float, np.ndarray]] = []
    for rows in _slices(X.shape[0]):
        part = X[rows]
        squares = np.asarray(part.multiply(part).sum(axis=1)).ravel() if hasattr(part, "multiply") else (part**2).sum(1)
        if not np.isfinite(squares).all():
            row = rows.start + int(np.argmin(np.isfinite(squares)))
            raise ValueError(f"row {row} of X: |x|^2 overflows {X.dtype}; scale X, or give float64")
        ends += [(float(squares[i]), part[[i]]) for i in _ends(squares)]
    both = [ends[i][1] for i in _ends(np.array([square for square, _ in ends]))]
    return np.concatenate([row.toarray() if hasattr(row, "toarray") else row for row in both])


def _ends(squares: np.ndarray) -> tuple[int, int]:
    positive = np.where(squares > 0, squares, np.inf)
    return int(positive.argmin()), int(squares.argmax())
