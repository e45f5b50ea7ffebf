"""Questions about kernels and data: `compare`, `nearest`, `examine_data`, `examine_kernel`.

Kernels side by side with their Mercer spectra on the sphere, the catalog's kernels nearest to a given one, and what may
go wrong with data or a kernel matrix, each with the remedy. Numbers come from the Hermite coefficients of
`expansions.py`; the command line is the caller, and pictures are panels of `plots.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy.special import betaln, gammaln

from . import catalog
from .atoms import NoClosedForm
from .codegen import emit, load
from .dual import Dual, derive, resolve
from .expansions import hermite, second_moment
from .quadrature import profile

# ---------------------------------------------------------------------------------------------- kernels on the sphere

SERIES = 600  # degrees that are summed
GREATEST = 1e150  # kappa(1), and 1/kappa(1)
RESOLVED = 4e-30  # chat_j^2 below this share of E[s^2] is rounding
NODES, WEIGHTS = leggauss(128)


@dataclass(frozen=True)
class Sphere:
    """The kernel kappa(c) of an activation at unit norm.

    weights   (SERIES + 1,) its power series in c, from Hermite coefficients: kappa(c) = sum_j weights_j c^j; None of a
              bare kernel
    top       kappa(1)
    """

    name: str
    weights: np.ndarray | None
    top: float
    function: Callable[[np.ndarray], np.ndarray]

    def __call__(self, c) -> np.ndarray:
        return self.function(np.asarray(c, dtype=float))


def sphere(activation, **parameters) -> Sphere:
    """Of text, a catalog id, or a Dual; ValueError where it is not square-integrable at norm 1, or zero."""
    name = activation if isinstance(activation, str) else str(activation)
    dual = activation if isinstance(activation, Dual) else resolve(activation, **parameters)
    if dual.activation is None:
        k = load(emit(derive(activation, **parameters), "numpy"), "numpy").k
        at = lambda c: np.asarray(k(c, np.ones_like(c), np.ones_like(c)))  # noqa: E731
        return Sphere(name, None, float(at(np.ones(1))[0]), at)
    p = profile(activation, **parameters)
    weights, top = hermite(p, SERIES, 1.0) ** 2, second_moment(p, 1.0)
    if not top > 0:
        raise ValueError(f"{p.activation} is zero: there is no kernel")
    if not 1 / GREATEST < top < GREATEST:
        raise ValueError(f"E[s^2] = {top:.3g} at norm 1, whose square float64 cannot hold; scale {p.activation}")
    weights[weights < RESOLVED * top] = 0.0
    return Sphere(name, weights, top, lambda c: np.polynomial.polynomial.polyval(c, weights))


@dataclass(frozen=True)
class Compared:
    """One kernel among others, all at unit norm and over kappa(1).

    cosines      (m,) and kappa there, `values` (m,); towards c = -1 in error by the mass beyond degree SERIES
    spectrum     (degrees + 1,) chat_j^2/E[s^2], the mass of degree j; None of a bare kernel
    eigenvalues  (degrees + 1,) of the kernel operator on the uniform sphere of `dimension`, one for each degree l; the
                 multiplicity of degree l is `multiplicity(dimension, l)`
    """

    name: str
    top: float
    cosines: np.ndarray
    values: np.ndarray
    spectrum: np.ndarray | None
    eigenvalues: np.ndarray


COSINES = (-0.9, -0.5, 0.0, 0.5, 0.9, 0.99, 1.0)
DIMENSION = 10


def compare(activations: Sequence[Any], cosines=COSINES, degrees: int = 10, dimension: int = DIMENSION, **parameters):
    """Kernels side by side: a list of `Compared`.

    activations   two or more texts, catalog ids or Duals
    parameters    each for those that have it; others take their defaults
    degrees       of the spectra, 0 to 100
    dimension     of the space whose unit sphere carries the eigenvalues, 3 or more
    """
    if len(activations) < 2:
        raise ValueError(f"{len(activations)} activations came; two or more were expected")
    cosines = np.asarray(cosines, dtype=float)
    if cosines.ndim != 1 or not (np.abs(cosines) <= 1).all():
        raise ValueError(f"cosines={cosines!r} came; numbers from -1 to 1 were expected")
    for name, value, low, high in (("degrees", degrees, 0, 100), ("dimension", dimension, 3, 10**6)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name}={value!r} came; an integer from {low} to {high} was expected")
    found = []
    for s in _spheres(activations, parameters):
        spectrum = None if s.weights is None else s.weights[: degrees + 1] / s.top
        values = np.where(cosines == 1, s.top, s(cosines)) / s.top
        found.append(Compared(s.name, s.top, cosines, values, spectrum, _eigenvalues(s, degrees, dimension) / s.top))
    return found


def _spheres(activations: Sequence[Any], parameters: dict[str, Any]) -> list[Sphere]:
    """Each with its own of the parameters."""
    own = [{name: parameters[name] for name in parameters if name in _names(one)} for one in activations]
    for name in parameters:
        if not any(name in given for given in own):
            raise ValueError(f"{name} came; none of {', '.join(map(str, activations))} has such a parameter")
    return [sphere(one, **given) for one, given in zip(activations, own, strict=True)]


def _names(activation) -> set[str]:
    """The names that may be its parameters."""
    if isinstance(activation, Dual):
        return {symbol.name for symbol in activation.parameters}
    entry = catalog.load().get(activation) if isinstance(activation, str) else None
    return set(entry.parameters) if entry else set(re.findall(r"[A-Za-z]\w*", str(activation)))


def multiplicity(d: int, degree: int) -> int:
    """Independent spherical harmonics of a degree on the sphere in R^d."""
    return math.comb(degree + d - 1, d - 1) - (math.comb(degree + d - 3, d - 1) if degree > 1 else 0)


def _eigenvalues(s: Sphere, degrees: int, d: int) -> np.ndarray:
    """lambda_l = E[kappa(c) P_l(c)], c a coordinate of a uniform point on the sphere (Funk and Hecke; Bach 2017).

    From the power series, term by term by Rodrigues' formula, without cancellation:
        E[c^j P_l] = G(d/2 - 1/2)/(2^l G(l + d/2 - 1/2)) j!/(j - l)! B((j - l + 1)/2, l + d/2 - 1/2)/B(1/2, d/2 - 1/2)
    for j - l even and >= 0. A bare kernel has no series here: Gauss-Legendre in the angle, and P_l by recurrence."""
    a = (d - 1) / 2
    if s.weights is None:
        angles = (NODES + 1) * math.pi / 2
        c, density = np.cos(angles), WEIGHTS * np.sin(angles) ** (d - 2)
        values, before, now, found = s(c) * density / density.sum(), np.ones_like(c), c, []
        for degree in range(degrees + 1):
            found.append(float(values @ before))
            before, now = now, ((2 * degree + d) * c * now - (degree + 1) * before) / (degree + d - 1)
        return np.array(found)
    rows = []
    for degree in range(degrees + 1):
        j = np.arange(degree, len(s.weights), 2)
        logs = gammaln(a) - degree * math.log(2) - gammaln(degree + a) + gammaln(j + 1) - gammaln(j - degree + 1)
        logs = logs + betaln((j - degree + 1) / 2, degree + a) - betaln(0.5, a)
        rows.append(float(s.weights[j] @ np.exp(logs)))
    return np.array(rows)


def compare_panels(found: Sequence[Compared], names: Sequence[Any], **parameters) -> list[Any]:
    """The duals, the Hermite spectra, and the eigenvalues against their degree."""
    from .plots import Curve, Panel

    c = np.linspace(-1, 1, 401)
    dense = _spheres(names, parameters)

    def seen(values: np.ndarray, name: str, style: int) -> Curve:
        at = np.flatnonzero(values > 1e-16)
        return Curve(at, values[at], name, style, "marked")

    return [
        Panel("Dual at unit norm", [Curve(c, s(c) / s.top, s.name) for s in dense], "cosine c", "k / k(1)"),
        Panel(
            "Hermite spectrum",
            [seen(f.spectrum, f.name, i) for i, f in enumerate(found) if f.spectrum is not None],
            "degree j",
            r"$\hat c_j^2\,/\,E[s^2]$",
            yscale="log",
        ),
        Panel(
            "Eigenvalues on the sphere",
            [seen(f.eigenvalues, f.name, i) for i, f in enumerate(found)],
            "degree l",
            "eigenvalue / k(1)",
            yscale="log",
        ),
    ]


# ------------------------------------------------------------------------------------------------------------- nearest


class Near(NamedTuple):
    """A catalog entry, the distance of its kernel (0: the same up to scale; 1: orthogonal), and the scale: kappa is
    nearest to scale times the entry's."""

    id: str
    distance: float
    scale: float


class Nearest(NamedTuple):
    """Entries by distance; those that have no kernel at unit norm, with the reason."""

    entries: list[Near]
    skipped: dict[str, str]


MEASURES = ("kernel", "hermite")


def nearest(activation, by: str = "kernel", **parameters) -> Nearest:
    """The catalog's other entries, parameters at their defaults, by the distance of their kernel to that of this.

    by   "kernel": L2 of kappa(c) over c in [-1, 1]; "hermite": L2 of its coefficients, the masses chat_j^2 of degrees
         (bare kernels are skipped). Up to scale: the sine of the angle between the two, min |f - scale g|/|f|
    """
    if by not in MEASURES:
        raise ValueError(f"by={by!r} came; one of {', '.join(MEASURES)} was expected")
    target = _vector(sphere(activation, **parameters), by)
    size = float(np.linalg.norm(target))
    found, skipped = [], {}
    for id in catalog.load():
        if id == activation:
            continue
        try:
            other = _vector(sphere(id), by)
        except (NoClosedForm, ValueError) as reason:
            skipped[id] = str(reason)
            continue
        scale = float(target @ other) / float(other @ other)
        found.append(Near(id, min(float(np.linalg.norm(target - scale * other)) / size, 1.0), scale))
    return Nearest(sorted(found, key=lambda near: (near.distance, near.id)), skipped)


def _vector(s: Sphere, by: str) -> np.ndarray:
    """The kernel as a vector whose Euclidean products are those of the measure."""
    if by == "kernel":
        return np.sqrt(WEIGHTS) * s(NODES)
    if s.weights is None:
        raise ValueError(f"{s.name} is a bare kernel: its activation, and so its Hermite coefficients, are unknown")
    return s.weights


# -------------------------------------------------------------------------------------------------------------- doctor

MOST_PAIRS = 4096  # of nearly parallel rows, that are looked at
SAMPLE = 512
"""Rows, evenly spaced, on which kernels are computed and eigenvalues sought."""


class Finding(NamedTuple):
    """A warning: a short name, what was found, and what to do."""

    name: str
    found: str
    remedy: str


def examine_data(X, net: Any = None, get: str = "ntk") -> list[Finding]:
    """What may go wrong with rows (n, d), or with the kernel of a network on them (on at most SAMPLE of them)."""
    X = _matrix(X, "data")
    findings: list[Finding] = []
    bad = ~np.isfinite(X).all(axis=1)
    if bad.any():
        findings.append(Finding("not finite", f"{_rows(bad)} NaN or infinite entries", "drop or mend these rows"))
        X = X[~bad]
    if not len(X):
        return findings
    with np.errstate(over="ignore", under="ignore"):
        q = np.einsum("nd,nd->n", X, X) / X.shape[1]
    findings += _sizes(q)
    X, q = X[(q > 0) & np.isfinite(q)], q[(q > 0) & np.isfinite(q)]
    findings += _duplicates(X)
    if len(X) < 2:
        return findings
    rows = X[_evenly(len(X))]
    unit = rows / np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    findings += _near_parallel(unit)
    if net is None:
        return findings
    try:
        wide, narrow = _both_precisions(net, rows, get)
    except ValueError as reason:
        found, _, remedy = str(reason).partition(". ")
        return [*findings, Finding("refused", found, remedy.rstrip(".") or "choose another activation")]
    findings += [f for f in examine_kernel(wide) if f.name != "float32 too coarse"]
    scale = np.sqrt(np.outer(np.diag(wide), np.diag(wide)))
    error = float(np.abs(narrow - wide).max() / scale.max()) if np.isfinite(narrow).all() else math.inf
    if error > 1e-4:
        findings.append(
            Finding(
                "float32 too coarse",
                f"the kernel in float32 errs by {error:.1e} of its scale",
                "give the data in float64, with jax_enable_x64, or scale the rows",
            )
        )
    return findings


def _sizes(q: np.ndarray) -> list[Finding]:
    """Variances |x|^2/d that are 0, or that products of them leave float32."""
    findings, positive = [], q[(q > 0) & np.isfinite(q)]
    if (q == 0).any():
        findings.append(
            Finding("zero rows", f"{_rows(q == 0)} no entry but 0", "drop them, or take b_std > 0 in the first layer")
        )
    single = np.finfo(np.float32)
    for name, wrong, text in (
        (
            "overflow",
            ~np.isfinite(q) | (q > math.sqrt(single.max) / 1e3),
            "so large that products of variances overflow",
        ),
        ("underflow", (q > 0) & (q < math.sqrt(single.tiny) * 1e3), "so small that products of variances underflow"),
    ):
        if wrong.any():
            remedy = (
                "divide all rows by one number, such as the root of the mean of |x|^2/d, or standardize the columns"
            )
            findings.append(Finding(name, f"{_rows(wrong)} entries {text} in float32", remedy))
    if len(positive) and positive.max() > 1e6 * positive.min():
        found = f"norms |x|/sqrt(d) run from {math.sqrt(positive.min()):.2g} to {math.sqrt(positive.max()):.2g}"
        findings.append(
            Finding("norms differ", found, "normalize the rows, or put LayerNorm() first, unless norms matter")
        )
    return findings


def _duplicates(X: np.ndarray) -> list[Finding]:
    _, first, counts = np.unique(X, axis=0, return_index=True, return_counts=True)
    if not (counts > 1).any():
        return []
    example = int(first[counts > 1].min())
    many = int((counts - 1).sum())
    found = f"{many} row{' repeats' if many == 1 else 's repeat'} another, as row {example} is repeated"
    return [
        Finding("duplicate rows", found, "keep one of each (with the mean of the targets), or give noise/ridge > 0")
    ]


def _near_parallel(unit: np.ndarray) -> list[Finding]:
    """Pairs of rows, not equal, whose angle float32 cannot hold."""
    c = unit @ unit.T
    i, j = (k[:MOST_PAIRS] for k in np.nonzero(np.triu(np.abs(c), 1) > 1 - 1e-5))
    angle = np.linalg.norm(unit[i] - np.sign(c[i, j])[:, None] * unit[j], axis=1)
    close = (angle > 1e-12) & (angle < 4 * math.sqrt(np.finfo(np.float32).eps))
    if not close.any():
        return []
    found = (
        f"{int(close.sum())} pairs are parallel up to an angle of {angle[close].min():.1e}, which x.y in float32 loses"
    )
    remedy = "give the data in float64, or merge such rows (networks on float32 vectors mend them by themselves)"
    return [Finding("float32 too coarse", found, remedy)]


def _both_precisions(net: Any, rows: np.ndarray, get: str) -> tuple[np.ndarray, np.ndarray]:
    import jax

    from .networks import _double

    with _double():
        wide = np.asarray(net(rows.astype(np.float64), get=get))
    with np.errstate(over="ignore"):
        single = rows.astype(np.float32)
    if not np.isfinite(single).all():
        return wide, np.full_like(wide, np.nan)
    try:
        return wide, np.asarray(jax.device_get(net(single, get=get)), np.float64)
    except ValueError:  # a variance leaves float32
        return wide, np.full_like(wide, np.nan)


def examine_kernel(K) -> list[Finding]:
    """What is wrong with a kernel matrix (n, n). Eigenvalues are those of SAMPLE rows: a principal submatrix that is
    not positive semi-definite proves that the whole is not."""
    K = _matrix(K, "kernel")
    if K.shape[0] != K.shape[1]:
        raise ValueError(
            f"a kernel of shape {K.shape} came; a square one was expected: K(X, X), or data without --kernel"
        )
    bad = ~np.isfinite(K)
    if bad.any():
        found = f"{int(bad.sum())} entries, the first in row {int(np.argmax(bad.any(axis=1)))}, are NaN or infinite"
        return [Finding("overflow", found, "scale the rows down, take smaller W_std, or float64; then compute it anew")]
    findings: list[Finding] = []
    size, info = float(np.abs(K).max()), np.finfo(np.float32 if _is_single(K) else np.float64)
    if 0 < size < 1e4 * info.tiny:
        small = f"the largest entry is {size:.1e}: the others lose digits"
        findings.append(Finding("underflow", small, "scale the rows up, or take float64; then compute it anew"))
    K = np.ldexp(K, -int(np.frexp(size)[1]))  # entries up to 1: what follows has no scale
    diagonal = np.diag(K)
    if (diagonal <= 0).any():
        zero = Finding("zero rows", f"{_rows(diagonal <= 0)} K(x, x) <= 0", "drop them, or take b_std > 0")
        findings.append(zero)
    size = float(np.abs(K).max())
    asymmetry = float(np.abs(K - K.T).max())
    eps = float(info.eps)
    if asymmetry > 8 * eps * size:
        findings.append(
            Finding(
                "not symmetric",
                f"|K - K'| is up to {asymmetry / size:.1e} of the largest entry",
                "compute it as net(X), not net(X, X), or take (K + K')/2",
            )
        )
    keep = np.flatnonzero(diagonal > 0)
    keep = keep[_evenly(len(keep))]
    if len(keep) < 2:
        return findings
    part = (K[np.ix_(keep, keep)] + K[np.ix_(keep, keep)].T) / 2
    findings += _definite(part, eps)
    correlation = part / np.sqrt(np.outer(np.diag(part), np.diag(part)))
    upper = correlation[np.triu_indices(len(part), 1)]
    same = upper > 1 - 4 * eps
    if same.any():
        found = f"{int(same.sum())} pairs of rows have correlation 1"
        findings.append(Finding("duplicate rows", found, "keep one of each, or give noise/ridge > 0"))
    if len(upper) and np.median(upper) > 0.99:
        findings.append(
            Finding(
                "ordered phase",
                f"the median correlation is {np.median(upper):.5f}: all rows look alike to this kernel",
                "take fewer layers, a larger W_std, a smaller b_std, or centre the data; `dualcalc phase` tells where",
            )
        )
    elif len(upper) and np.median(np.abs(upper)) < 1e-3 and len(part) > 4:
        findings.append(
            Finding(
                "chaotic phase",
                f"the median |correlation| is {np.median(np.abs(upper)):.1e}: nothing is like anything else",
                "take fewer layers or a smaller W_std; `dualcalc phase` tells where",
            )
        )
    return findings


def _definite(part: np.ndarray, eps: float) -> list[Finding]:
    """Of a symmetric matrix: negative eigenvalues, and a range that float32 cannot hold."""
    values = np.linalg.eigvalsh(part)
    least, most = float(values[0]), float(values[-1])
    if least < -len(part) * eps * most:
        found = f"the least eigenvalue is {least:.2g}, the largest {most:.2g}, of {len(part)} rows"
        remedy = "it is no kernel, or it was rounded: compute it in float64, with net(X) itself; do not clip entries"
        return [Finding("not positive semi-definite", found, remedy)]
    single = float(np.finfo(np.float32).eps)
    if least < len(part) * single * most:
        found = f"eigenvalues run from {least:.1e} to {most:.1e}: below {single * most:.0e} float32 has only rounding"
        remedy = f"solve in float64, or with noise/ridge of {len(part) * single * most:.0e} or more"
        return [Finding("float32 too coarse", found, remedy)]
    return []


def _matrix(values, what: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{what} of shape {array.shape} and type {array.dtype} came; a matrix of real numbers was expected, one "
            "row per point. Images: reshape to (n, height*width*channels)"
        )
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _is_single(K: np.ndarray) -> bool:
    """Whether the numbers are float32's, also when a file holds them wider."""
    return K.dtype == np.float32 or bool((K == K.astype(np.float32)).all() and (K != np.round(K)).any())


def _evenly(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int)) if n else np.arange(0)


def _rows(mask: np.ndarray) -> str:
    count, first = int(mask.sum()), int(np.argmax(mask))
    return f"row {first} has" if count == 1 else f"{count} rows (the first is {first}) have"
