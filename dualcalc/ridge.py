"""Ridge regression on features that are never in memory together.

`RidgeStream` reads batches of features Z and targets y and keeps their moments: sums of z, y, z z', z y' and y^2. From
those alone come the fits for a whole path of ridge parameters (one eigendecomposition), and the parameter that is best
by cross-validation. The estimators and the image pipeline call it; it knows no network and no JAX.

A fit minimizes sum_i |y_i - b - z_i'w|^2 + ridge |w|^2: scikit-learn's `alpha`, and the `ridge` of `kernel_ridge` for
the kernel Z Z' but for the intercept b, which is not penalized.

**The dip at dimension = rows.** With a ridge near 0 and as many features as rows, the least eigenvalues of Z'Z are near
0 too, and the fit, which passes through every target, has its largest norm: the test error peaks there, and falls on
both sides of it ("double descent", Belkin et al. 2019). The chosen ridge is then large, and the peak is gone; an
accuracy at a fixed tiny ridge says nothing of the features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.blas import dsymm, dsyrk
from scipy.linalg.lapack import dpstrf

RIDGES = np.logspace(-10, 2, 20)
"""The paper's path, here in units of the mean squared length of the features about their mean."""


@dataclass
class Moments:
    """Sums over `count` rows, in float64: z (d,), y (t,), zz (d, d), zy (d, t), yy (t,).

    While sums are collected, only the lower triangle of zz is filled; `whole` fills the other one.
    """

    count: int
    z: np.ndarray
    y: np.ndarray
    zz: np.ndarray
    zy: np.ndarray
    yy: np.ndarray

    @classmethod
    def zero(cls, d: int, t: int) -> Moments:
        return cls(0, np.zeros(d), np.zeros(t), np.zeros((d, d), order="F"), np.zeros((d, t)), np.zeros(t))

    def add(self, Z: np.ndarray, Y: np.ndarray) -> None:
        self.count += len(Z)
        self.z += Z.sum(axis=0)
        self.y += Y.sum(axis=0)
        self.zz = dsyrk(1.0, Z.T, beta=1.0, c=self.zz, lower=1, overwrite_c=1)  # in place, half of the products
        self.zy += Z.T @ Y
        self.yy += np.einsum("nt,nt->t", Y, Y)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def whole(self) -> Moments:
        """The same with both triangles of zz."""
        return replace(self, zz=np.tril(self.zz) + np.tril(self.zz, -1).T)

    def fit(self, ridge: float, intercept: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients w (d, t) and intercepts b (t,): the least sum of |y - b - z'w|^2 + ridge |w|^2 over the rows."""
        if isinstance(ridge, bool) or not (math.isfinite(ridge) and ridge >= 0):
            raise ValueError(f"ridge={ridge!r} came; a number of 0 or more was expected")
        spectrum = Spectrum(self, intercept)
        (w,) = spectrum.coefficients(np.array([ridge], float))
        return w, spectrum.y - spectrum.z @ w

    def trace(self, intercept: bool) -> float:
        """The sum of squared lengths of the rows z, about their mean with an intercept."""
        return max(float(np.trace(self.zz) - intercept * (self.z @ self.z) / self.count), 0.0)


class Spectrum:
    """The eigendecomposition of moments about their means: fits for any ridge parameters.

    values    (m,), ascending, m = d or less; `kept` marks those above rounding, no more than rows can give
    vectors   (d, m)
    weights   (m, t): V' (Z'y), the right-hand side along the eigenvectors V
    """

    def __init__(self, moments: Moments, intercept: bool):
        n, d = moments.count, len(moments.z)
        self.count, self.free = n, n - intercept
        self.z, self.y = (intercept * s / n for s in (moments.z, moments.y))
        covariance = dsyrk(-n, self.z[:, None], beta=1.0, c=moments.zz.copy(order="F"), lower=1, overwrite_c=1)
        values, self.vectors = _eigen(covariance, self.free)
        self.values = np.maximum(values, 0.0)
        rounding = d * np.finfo(float).eps * values[-1]
        self.kept = (values > rounding) & (np.arange(len(values)) >= len(values) - self.free)
        self.weights = self.vectors.T @ (moments.zy - n * np.outer(self.z, self.y))
        self.yy = np.maximum(moments.yy - n * self.y**2, 0.0)

    def _over(self, numbers: np.ndarray, ridges: np.ndarray) -> np.ndarray:
        """numbers/(values + ridge), (r, m); 0 where rounding is all that is left."""
        return np.divide(numbers, self.values + ridges, out=np.zeros((len(ridges), len(self.kept))), where=self.kept)

    def coefficients(self, ridges: np.ndarray) -> np.ndarray:
        """(r, d, t); at ridge 0 those of least norm."""
        gains = self._over(np.ones(1), ridges[:, None])
        return self.vectors @ (gains[:, :, None] * self.weights)

    def gcv(self, ridges: np.ndarray) -> np.ndarray:
        """Generalized cross-validation (Golub, Heath & Wahba 1979) of the path, (r,): the mean over rows and targets of
        (residual/(1 - h))^2, with the mean of leverages for h. With G = Z'Z and its eigenvalues v, no row is needed:

            sum of residuals^2 = sum_i (ridge/(v_i + ridge))^2 w_i^2/v_i + (y'y - sum_i w_i^2/v_i)
            n (1 - h) = sum_i ridge/(v_i + ridge) + (n - 1 - rank)
        """
        squares = np.divide(
            self.weights**2, self.values[:, None], out=np.zeros_like(self.weights), where=self.kept[:, None]
        )
        rank = np.count_nonzero(self.kept)
        unexplained = np.maximum(self.yy - squares.sum(axis=0), 0.0) if rank < self.free else np.zeros_like(self.yy)
        shrinkage = self._over(ridges[:, None], ridges[:, None])
        residual = (shrinkage**2 @ squares + unexplained).mean(axis=1)
        freedom = shrinkage.sum(axis=1) + (self.free - rank)
        with np.errstate(divide="ignore"):
            return np.where(freedom > 0, self.count * residual / np.where(freedom > 0, freedom, 1.0) ** 2, np.inf)

    def held_out(self, ridges: np.ndarray, others: Moments) -> np.ndarray:
        """The sum of squared errors on other rows, (r,), of fits without them."""
        w = self.coefficients(ridges)
        r, d, t = w.shape
        flat = np.moveaxis(w, 0, 1).reshape(d, r * t)
        quadratic = np.einsum("dk,dk->k", flat, dsymm(1.0, others.zz, flat, lower=1)).reshape(r, t)
        squares = others.yy - 2 * np.einsum("rdt,dt->rt", w, others.zy) + quadratic
        intercept = self.y - self.z @ w
        sums = others.y - others.z @ w
        return (squares - 2 * intercept * sums + others.count * intercept**2).sum(axis=1)


def _eigen(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (m,), ascending, and vectors (d, m) of a positive semi-definite matrix (d, d), given in its lower
    triangle and overwritten, of at most this rank.

    Where the rank is small, of L'L for the factor L of a pivoted Cholesky decomposition, which is as exact as rounding
    in the matrix: 1000 rows of 3000 features take a fifth of the time."""
    d = len(matrix)
    if 2 * rank >= d:
        return eigh(matrix, lower=True, overwrite_a=True, check_finite=False, driver="evd")
    factor, pivots, found, _ = dpstrf(matrix, lower=1, overwrite_a=1)
    L = np.empty((d, max(1, min(found, rank))))
    L[pivots - 1] = np.tril(factor[:, : L.shape[1]])
    values, vectors = eigh(L.T @ L, check_finite=False, driver="evd")
    return values, L @ (vectors / np.sqrt(np.where(values > 0, values, np.inf)))


@dataclass(frozen=True)
class Path:
    """Fits for all ridge parameters.

    ridges         (r,)
    scores         (r,): the estimated squared error on new rows, a mean over targets; the least one is chosen
    coefficients   (r, d, t)
    intercepts     (r, t)
    best           the row of the chosen parameter
    """

    ridges: np.ndarray
    scores: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray
    best: int

    @property
    def ridge(self) -> float:
        """The chosen parameter."""
        return float(self.ridges[self.best])

    def predict(self, Z, row: int | None = None) -> np.ndarray:
        """(m, t) for features (m, d), with the chosen parameter or that of a row."""
        row = self.best if row is None else row
        return np.asarray(Z) @ self.coefficients[row] + self.intercepts[row]


class RidgeStream:
    """Ridge regression from batches: `stream.add(Z, y)` for each, then `stream.solve()`.

    folds       1: the parameter is chosen by generalized cross-validation, which needs nothing but the moments. K > 1:
                by K-fold cross-validation, as exact as with all rows at hand: each fold has moments of its own, and
                what they lack of the whole is the training part. Memory and time are K + 1 times as much
    intercept   whether the targets and features are taken about their means
    seed        of the folds, dealt evenly within each batch

    Memory: folds x d^2 x 8 bytes, and as much three times more while solving. Features of float32 are multiplied as
    float64, where their products are exact, and summed as float64. Sums are taken about the mean of the first batch, so
    that a large mean cancels no digits of the covariance. The same batches on the same machine give the same bits.
    """

    def __init__(self, *, folds: int = 1, intercept: bool = True, seed: int = 0):
        if isinstance(folds, bool) or not isinstance(folds, int | np.integer) or folds < 1:
            raise ValueError(f"folds={folds!r} came; 1, for generalized cross-validation, or more was expected")
        self.folds, self.intercept = int(folds), bool(intercept)
        self.count = 0
        self._deal = np.random.default_rng(seed)
        self._moments: list[Moments] = []

    def add(self, Z, y) -> RidgeStream:
        """Features (n, d) and targets (n,) or (n, t); ValueError for NaN, infinity and other shapes than before."""
        Z, Y = _numbers(Z, "Z"), _numbers(y, "y")
        if Z.ndim != 2 or Y.ndim not in (1, 2) or len(Z) != len(Y) or 0 in (*Z.shape, *Y.shape):
            raise ValueError(f"Z has shape {Z.shape} and y {Y.shape}; (n, d) and (n,) or (n, t) were expected, n > 0")
        Y = Y.reshape(len(Y), -1)
        if not self._moments:
            self._moments = [Moments.zero(Z.shape[1], Y.shape[1]) for _ in range(self.folds)]
            self._shift = [self.intercept * A.mean(axis=0) for A in (Z, Y)]
        d, t = (len(shift) for shift in self._shift)
        if (Z.shape[1], Y.shape[1]) != (d, t):
            raise ValueError(
                f"a batch of {Z.shape[1]} features and {Y.shape[1]} targets came; {d} and {t} were expected, as in the "
                "first one"
            )
        for numbers, shift in zip((Z, Y), self._shift, strict=True):
            numbers -= shift
        if self.folds == 1:
            self._moments[0].add(Z, Y)
        else:
            fold = self._deal.permutation((self.count + np.arange(len(Z))) % self.folds)
            for k in range(min(self.folds, self.count + len(Z))):
                self._moments[k].add(Z[fold == k], Y[fold == k])
        self.count += len(Z)
        return self

    def solve(self, ridges=None) -> Path:
        """The fits for all ridge parameters, nonnegative numbers; if not given, `RIDGES` times the mean squared length
        of the features about their mean."""
        if not self.count:
            raise ValueError("no rows came: the stream is empty; add(Z, y) at least once before solve()")
        if self.folds > 1 and self.count < 2:
            raise ValueError(f"1 row came for folds={self.folds}; two rows at least were expected, or folds=1")
        whole = self._moments[0]
        for moments in self._moments[1:]:
            whole = whole + moments
        ridges = RIDGES * (whole.trace(self.intercept) / self.count or 1.0) if ridges is None else _ridges(ridges)
        spectrum = Spectrum(whole, self.intercept)
        if self.folds == 1:
            scores = spectrum.gcv(ridges)
        else:
            held = [m for m in self._moments if m.count]
            losses = (Spectrum(whole - part, self.intercept).held_out(ridges, part) for part in held)
            scores = sum(losses, np.zeros(len(ridges))) / whole.yy.size / self.count
        w = spectrum.coefficients(ridges)
        z_shift, y_shift = self._shift
        intercepts = y_shift + spectrum.y - (z_shift + spectrum.z) @ w
        return Path(ridges, scores, w, intercepts, int(np.argmin(scores)))


def _numbers(data, name: str) -> np.ndarray:
    """Finite numbers as float64, in memory of their own."""
    try:
        array = np.asarray(data)
        real = not np.iscomplexobj(array)
        numbers = array.astype(np.float64, order="C") if real else array
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: a {type(data).__name__} came that is not an array of numbers: {error}") from None
    if not real:
        raise ValueError(f"{name} has dtype {array.dtype}; real numbers were expected")
    bad = ~np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim)))
    if bad.any():
        raise ValueError(f"row {int(np.argmax(bad))} of {name} has a NaN or an infinite entry; drop or mend such rows")
    return numbers


def _ridges(ridges) -> np.ndarray:
    path = _numbers(ridges, "ridges").reshape(-1)
    if not len(path) or (path < 0).any():
        raise ValueError(f"ridges={ridges!r} came; one or more numbers of 0 or more were expected")
    return path
