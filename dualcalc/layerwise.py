"""Features layer by layer, for images: time linear in the pixels, and no pairs of images.

The kernel of one activation after another is approximated by anchors among the patches before it (convolutional kernel
networks: Mairal et al. 2014), or by an oblivious sketch for comparison; convolutions and pooling are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.polynomial import chebyshev

from .conv import AvgPool, Conv, Flatten, GlobalAvgPool, slide
from .layers import Activation, Affine, Dense, Identity, Layer, LayerNorm, Scale, State
from .networks import KERNELS, FanInSum, FanOut, Network, Parallel, Residual, _double, _points, serial
from .nystrom import batches, drawn, inverse_root, pivoted, positive
from .series import Series, series

# --------------------------------------------------------------------------------------------------------- the signal


class Part(NamedTuple):
    """A summand of the covariances of pixels: q = .. + q <z, z'> + .., Theta = .. + theta <z, z'> + ..

    x          (n, height, width, channels); vectors are images of one pixel
    q, theta   numbers; None where the part is not in the sum
    window     None where z is x; else z is the patch of x under this convolution's window, which is not written out
    root       None where z is x; else z is x @ root, to be multiplied after pooling, which leaves fewer pixels
    """

    x: Array
    q: Any
    theta: Any
    window: Conv | None = None
    root: Array | None = None

    def times(self, patterns: Array) -> Array:
        """<z, pattern> (n, height, width, m), for patterns (m, dimensions of z): a convolution."""
        if self.window is None:
            return jnp.einsum("nhwc,mc->nhwm", self.written().x, patterns)
        kernel = patterns.reshape(len(patterns), *self.window.window, -1).transpose(1, 2, 3, 0)
        return jax.lax.conv_general_dilated(
            self._padded(self.x), kernel, self.window.strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def square(self) -> Array:
        """|z|^2 (n, height, width, 1)."""
        if self.window is None:
            return jnp.square(self.written().x).sum(axis=-1, keepdims=True)
        total = self._padded(jnp.square(self.x).sum(axis=-1, keepdims=True))
        for axis in (0, 1):
            total = slide(total, (1 + axis,), self.window.window[axis], self.window.strides[axis])
        return total

    def map(self, f: Callable[[Array], Array]) -> Part:
        """f of z, written out."""
        part = self.written()
        return part._replace(x=f(part.x))

    def written(self) -> Part:
        """The same with z as x, in the order (down, across, channels) of a convolution's weights."""
        if self.root is not None:
            return Part(self.x @ self.root, self.q, self.theta)
        if self.window is None:
            return self
        x = self._padded(self.x)
        for axis in (1, 0):
            window, stride = self.window.window[axis], self.window.strides[axis]
            length = x.shape[1 + axis] - window + 1
            shifted = [jax.lax.slice_in_dim(x, i, i + length, stride, 1 + axis) for i in range(window)]
            x = jnp.concatenate(shifted, axis=-1)
        return Part(x, self.q, self.theta)

    def _padded(self, x: Array) -> Array:
        assert self.window is not None
        for axis in (0, 1):
            x = self.window._padded(x, (1 + axis,), axis)
        return x


Signal = tuple[Part, ...]


def _times(weight, factor):
    return None if weight is None else weight * factor


def _sum(weights: Iterable[Any], arrays: Iterable[Array | None]) -> Array:
    """Of weights times arrays, without those that are None."""
    products = [w * x for w, x in zip(weights, arrays, strict=True) if w is not None and x is not None]
    return sum(products[1:], products[0])


def _shape(signal: Sequence[Part]) -> tuple[int, ...]:
    """(n, height, width, 1)"""
    return jax.eval_shape(signal[0].square).shape


def _variance(signal: Signal) -> Array:
    return _sum((part.q for part in signal), (part.square() for part in signal))


# what stands for an activation


class Polynomials(NamedTuple):
    """k(c, 1, 1) and kdot(c, 1, 1) of a homogeneous activation as polynomials in y = 2 sqrt(1 - |c|) - 1, in which they
    are analytic on either side of c = 0: coefficients (2, degree + 1) for c >= 0 and for c < 0, lowest first. XLA takes
    15 ns for an angle on a CPU, and 1 ns for these."""

    k: Array
    kdot: Array | None


NODES = 13
"""Coefficients of the polynomials that stand for the kernels of a homogeneous activation."""


def _polynomials(layer: Activation, dtype, ntk: bool) -> Polynomials | None:
    """Through 13 points, and right to rounding in float32 at 26 others; None where they are not, in float64, and for
    activations that are not homogeneous."""
    if dtype != np.float32 or not layer.homogeneity(1):
        return None
    y, between = (np.cos(np.pi * (2 * np.arange(count) + 1) / (2 * count)) for count in (NODES, 2 * NODES))
    both = ((np.append(y, between) + 1) / 2) ** 2
    c = np.stack([1 - both, both - 1])

    def fitted(f: Callable) -> Array | None:
        found = np.asarray(f(c, np.ones_like(c), np.ones_like(c), **layer.arguments))  # of one shape: compiled once
        values, exact = np.split(found, [NODES], axis=1)
        rows = [chebyshev.chebfit(y, v, NODES - 1) for v in values]
        errors = [chebyshev.chebval(between, row) - v for row, v in zip(rows, exact, strict=True)]
        if not np.abs(errors).max() <= 4 * np.finfo(np.float32).eps * np.abs(exact).max():
            return None
        return jnp.asarray([chebyshev.cheb2poly(row) for row in rows], dtype)

    with _double():
        k, kdot = fitted(layer.fns.k), fitted(layer.fns.kdot) if ntk else None
    return None if k is None or (ntk and kdot is None) else Polynomials(k, kdot)


def _polynomial(coefficients: Array, c: Array) -> Array:
    y, positive = 2 * jnp.sqrt(1 - jnp.abs(c)) - 1, c >= 0
    total = jnp.zeros_like(c)
    for above, below in coefficients.T[::-1]:
        total = total * y + jnp.where(positive, above, below)
    return total


class Anchors(NamedTuple):
    """Nystrom features: the kernels of a pixel with m anchors, times a root that is fitted on many pixels (`_root`).

    patterns      for every part of the signal, the anchors' z (m, dimensions)
    variances     (m,) of the anchors
    roots         (m, rank) for q; after it, for the NTK, one for Theta; None while they are fitted
    polynomials   see there
    """

    patterns: tuple[Array, ...]
    variances: Array
    roots: tuple[Array | None, ...]
    polynomials: Polynomials | None

    def kernels(self, layer: Activation, signal: Signal) -> tuple[Array, ...]:
        """q and, for the NTK, Theta (n, height, width, m) of pixels and anchors, after the activation."""
        products = [part.times(pattern) for part, pattern in zip(signal, self.patterns, strict=True)]
        q11, q22 = _variance(signal), self.variances[None, None, None]
        q12 = _sum((part.q for part in signal), products)
        theta = _sum((part.theta for part in signal), products) if len(self.roots) > 1 else None
        if self.polynomials is None:
            state = layer.act(State(q12, theta), q11, q22)
            return (state.q,) if theta is None else (state.q, state.theta)
        a, b = (jnp.where(q == 0, 0.0, jax.lax.rsqrt(q)) for q in (q11, q22))
        c, norms = jnp.clip(q12 * (a * b), -1, 1), jnp.sqrt(q11) * jnp.sqrt(q22)
        degree = layer.homogeneity(1)
        q = norms**degree * _polynomial(self.polynomials.k, c)
        if theta is None or self.polynomials.kdot is None:
            return (q,)
        return q, norms ** (degree - 1) * _polynomial(self.polynomials.kdot, c) * theta

    def __call__(self, layer: Activation, signal: Signal) -> Signal:
        kernels = self.kernels(layer, signal)
        return tuple(p._replace(root=root) for p, root in zip(_fresh(*kernels), self.roots, strict=True))


class Sketch(NamedTuple):
    """Oblivious features, by Horner's rule (docs/features.md): with k = sum_j V_j(a) V_j(b) c^j, random signs U_j and
    random rotations R_j, phi_j = V_j e_0 + (R_j phi_(j+1)) o (U_j z/a) has <phi_j, phi_j'> = V_j V_j' + c <phi_(j+1),
    phi_(j+1)'> in the mean. Theta kdot goes alike, with projected features of Theta in the place of e_0.

    signs      for every part in q, (degree, m, dimensions of z); else None
    start      for every part in Theta, (m, dimensions of z)/sqrt(m) signs; else None
    turns      (degree, m, m) for q; after it, for the NTK, one for Theta
    series     V
    """

    signs: tuple[Array | None, ...]
    start: tuple[Array | None, ...]
    turns: tuple[Array, ...]
    series: Series

    def __call__(self, layer: Activation, signal: Signal) -> Signal:
        norm = jnp.sqrt(_variance(signal))
        inverse = jnp.where(norm == 0, 0.0, 1 / jnp.where(norm == 0, 1.0, norm))
        V = self.series(norm.ravel())[:, :, 0].reshape(*norm.shape[:3], -1)
        within = (self.series.norms[0] <= norm) & (norm <= self.series.norms[1]) | (norm == 0)
        V = jnp.where(within, V, jnp.nan) * jnp.ones_like(norm)

        def projected(weights: list, patterns: Iterable[Array | None]) -> Array:
            products = [None if p is None else part.times(p) for part, p in zip(signal, patterns, strict=True)]
            return _sum((None if w is None else jnp.sqrt(w) for w in weights), products)

        degree, m = self.turns[0].shape[:2]
        first = (jnp.arange(m) == 0).astype(norm.dtype)[None, None, None]
        turned = [
            inverse * projected([p.q for p in signal], [None if s is None else s[j] for s in self.signs])
            for j in range(degree)
        ]
        phi = V[..., degree:] * first
        for j in reversed(range(degree)):
            phi = V[..., j : j + 1] * first + (phi @ self.turns[0][j]) * turned[j]
        if len(self.turns) == 1:
            return _fresh(phi)
        theta = inverse * projected([p.theta for p in signal], self.start)
        psi = math.sqrt(degree) * V[..., degree:] * theta
        for j in reversed(range(degree - 1)):  # kdot = sum_j (j + 1) V_(j+1) V_(j+1)' c^j / (a b)
            psi = math.sqrt(j + 1) * V[..., j + 1 : j + 2] * theta + (psi @ self.turns[1][j]) * turned[j]
        return _fresh(phi, psi)


def _fresh(phi: Array, psi: Array | None = None) -> Signal:
    """The signal after an activation: features of q and of Theta."""
    one = jnp.ones((), phi.dtype)
    return (Part(phi, one, None),) if psi is None else (Part(phi, one, None), Part(psi, None, one))


@partial(jax.jit, static_argnames="ntk")
def _exact(layer: Activation, signal: Signal, ntk: bool) -> list[Array]:
    """k(q, q, q) and, for the NTK, Theta kdot(q, q, q) of the pixels, (n, height, width, 1)."""
    theta = _sum((part.theta for part in signal), (part.square() for part in signal)) if ntk else None
    after = layer.act_diagonal(State(_variance(signal), theta))
    return [x for x in (after.q, after.theta) if x is not None]


# what the layers do to a signal; `active(layer, signal)` is what an activation does


def _affine(layer: Affine, signal: Signal, active) -> Signal:
    window = layer if isinstance(layer, Conv) else None
    dtype = signal[0].x.dtype
    w, b = (jnp.square(jnp.asarray(std, dtype)) for std in (layer.W_std, layer.b_std))
    share = 1 / (math.prod(window.window) if window is not None else 1)
    parts = []
    for part in signal:
        part = part.written()
        own = _times(part.q, share * w if layer.fan_in is None else share * layer.fan_in)
        before = _times(part.theta, share * w)
        theta = own if before is None else before if own is None else own + before
        parts.append(Part(part.x, _times(part.q, share * w), theta, window))
    return (*parts, Part(jnp.ones(_shape(parts), dtype), b, b if layer.fan_in is None else jnp.sign(b)))


def _pool(mean: Callable[[Array], Array], signal: Signal) -> Signal:
    return tuple(p.map(mean) if p.root is None else p._replace(x=mean(p.x)) for p in signal)


def _flatten(layer: Flatten, signal: Signal, active) -> Signal:
    return tuple(p.map(lambda x: x.reshape(len(x), 1, 1, -1) / math.sqrt(x.shape[1] * x.shape[2])) for p in signal)


def _norm(layer: LayerNorm, signal: Signal, active) -> Signal:
    q = _variance(signal)
    inverse = jnp.where(q == 0, 0.0, jax.lax.rsqrt(jnp.where(q == 0, 1.0, q)))
    return tuple(part.map(lambda z: z * inverse) for part in signal)


def _scale(layer: Scale, signal: Signal, active) -> Signal:
    square = jnp.square(jnp.asarray(layer.factor, signal[0].x.dtype))
    return tuple(part._replace(q=_times(part.q, square), theta=_times(part.theta, square)) for part in signal)


RULES: dict[type, Callable] = {
    Conv: _affine,
    Dense: _affine,
    Activation: lambda layer, signal, active: active(layer, signal),
    AvgPool: lambda layer, signal, active: _pool(lambda x: layer._pooled(x, (1, 2)), signal),
    GlobalAvgPool: lambda layer, signal, active: _pool(lambda x: x.mean((1, 2), keepdims=True), signal),
    Flatten: _flatten,
    LayerNorm: _norm,
    Scale: _scale,
    Identity: lambda layer, signal, active: signal,
    Network: lambda layer, signal, active: reduce(lambda s, inner: _run(inner, s, active), layer.layers, signal),
    Residual: lambda layer, signal, active: signal + _run(layer.inner, signal, active),
    FanOut: lambda layer, signal, active: (signal,) * layer.number,
    Parallel: lambda layer, signals, active: tuple(
        _run(branch, signal, active) for branch, signal in zip(layer.branches, signals, strict=True)
    ),
    FanInSum: lambda layer, signals, active: sum(signals, ()),
}


def _run(layer: Layer, signal, active: Callable[[Activation, Signal], Signal]):
    return RULES[type(layer)](layer, signal, active)


def _activations(layer: Layer) -> int:
    """How many there are; ValueError for a layer without a rule, also inside others."""
    if type(layer) not in RULES:
        known = ", ".join(kind.__name__ for kind in RULES)
        raise ValueError(f"{layer!r} came; features layer by layer know {known}. Leave it out, or take `nystrom`")
    inner = (layer.inner,) if isinstance(layer, Residual) else getattr(layer, "layers", getattr(layer, "branches", ()))
    return isinstance(layer, Activation) + sum(map(_activations, inner))


def _start(X: Array) -> Signal:
    share = jnp.asarray(1 / X.shape[-1], X.dtype)
    return (Part(X if X.ndim == 4 else X[:, None, None], share, jnp.zeros_like(share)),)


@partial(jax.jit, static_argnames=("ntk", "kept"))
def _features(net: Network, tables: tuple, projection: Array | None, X: Array, ntk: bool, kept) -> Array:
    turn = iter(tables)
    signal = _run(net, _start(X), lambda layer, signal: next(turn)(layer, signal))
    columns = _columns(signal, ntk, kept)
    return columns if projection is None else jnp.matmul(columns, projection, precision="highest")


def _columns(signal: Signal, ntk: bool, kept: tuple[bool, ...]) -> Array:
    """Features (n, columns) at the end, of the parts that are kept."""
    parts = [part.written() for part, keep in zip(signal, kept, strict=True) if keep]
    roots = [jnp.sqrt(part.theta if ntk else part.q) for part in parts]
    return jnp.concatenate([r * p.x.reshape(len(p.x), -1) for r, p in zip(roots, parts, strict=True)], axis=1)


@dataclass(frozen=True, repr=False)
class Layerwise:
    """Features layer by layer, the result of `layerwise`.

    net, get       the kernel
    tables         what stands for every activation, in order
    errors         for every activation (q, Theta), or (q,): |trace(K - Z Z')|/trace(K) of its own kernel, given the
                   features before it, on the pixels that it was fitted on
    projection     (columns, n_components) of the last reduction, or None
    kept           which parts of the signal at the end have columns
    n_components   the columns
    shape, dtype   of one input
    bytes          of the largest part of the signal of one input
    """

    net: Network
    get: str
    tables: tuple
    errors: tuple[tuple[float, ...], ...]
    projection: Array | None
    kept: tuple[bool, ...]
    n_components: int
    shape: tuple[int, ...]
    dtype: np.dtype
    bytes: int

    @property
    def error(self) -> float:
        """The largest of `errors`, in the kernel that was asked for."""
        return max((error[-1] for error in self.errors), default=0.0)

    def __call__(self, X) -> np.ndarray:
        """Features (n, n_components), in the precision of the images that the map was fitted on."""
        X = np.asarray(_points(X, "X"))
        if X.shape[1:] != self.shape:
            raise ValueError(f"X has shape {X.shape}; rows of shape {self.shape} were fitted")
        features = np.empty((len(X), self.n_components), self.dtype)
        for start, rows, block in batches(X.astype(self.dtype), LIVE * self.bytes):
            found = _features(self.net, self.tables, self.projection, block, self.get == "ntk", self.kept)
            features[start : start + rows] = np.asarray(found)[:rows]
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"row {int(np.argmin(finite))} of X has features that are not finite: at some layer its norm is "
                "outside the range of an activation or of its sketch, or overflows. Scale it, fit on rows like it, or "
                "take Activation(..., norms=(less, more))"
            )
        return features

    def __repr__(self) -> str:
        return f"<{self.get} features layer by layer, {self.n_components} columns, of {self.net!r}>"


GROWTH = 2 / 3
"""Anchors grow as pixels^-GROWTH: of the rules tried, about the least error of Myrtle-5 for its time."""

LIVE = 8
"""So many arrays of the size of the largest part of a signal are alive at a time, about."""


def layerwise(
    net: Network,
    X,
    n_components: int,
    *,
    anchors: int | Sequence[int] = 64,
    get: str = "ntk",
    method: str = "nystrom",
    selection: str = "k-means",
    images: int = 256,
    patches: int = 4096,
    degree: int = 8,
    random_state=0,
) -> Layerwise:
    """A feature map of `net` layer by layer: time linear in the pixels, no pairs of images. Here a pixel's features of
    q, then of Theta, go through the network as a signal does; convolutions and pooling are exact, and every activation
    is approximated by `anchors` features of either kernel. For images, and for vectors too.

    X              images (n, height, width, channels), or (n, d), to fit on
    n_components   the columns at most. Where the network ends in more, the last reduction is a Nystrom approximation of
                   the linear kernel of its columns through as many rows of X; where it ends in fewer, take more anchors
                   for more
    anchors        of the first activation; where pooling leaves fewer pixels there are more (`GROWTH`), in Myrtle-5
                   64, 64, 161, 406. Or a number for every activation. A pixel has at most as many features per kernel
    method         "nystrom": the kernels with anchors among the patches before the activation; "sketch": oblivious
                   (`Sketch`), for comparison
    selection      of anchors: "k-means" (centroids), "pivoted" (as in `nystrom`, by the sum of both kernels), "uniform"
    images         of so many rows of X, drawn uniformly, the signals are looked at and stay in memory while fitting
    patches        so many pixels of them, per activation, are candidates
    degree         of the power series, for a sketch
    random_state   a seed, or a NumPy Generator: the same seed gives the same map
    Raises ValueError for bad input and for layers that it does not know, NoClosedForm for the NTK of an activation that
    jumps.
    """
    for name, value, choices in (
        ("get", get, KERNELS),
        ("method", method, ("nystrom", "sketch")),
        ("selection", selection, ("k-means", "pivoted", "uniform")),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} came; one of {', '.join(map(repr, choices))} was expected")
    counts = dict(n_components=n_components, images=images, patches=patches, degree=degree)
    n_components, images, patches, degree = (positive(value, name) for name, value in counts.items())
    given = _given(anchors, activations := _activations(net))
    X, ntk, generator = np.asarray(net._inputs(X, None)[0]), get == "ntk", np.random.default_rng(random_state)
    sample = jnp.asarray(drawn(X, images, generator))
    tables: list[Anchors | Sketch] = []
    errors, sizes, places = [], [sample[0].nbytes], []

    def active(layer: Activation, signal: Signal) -> Signal:
        places.append(math.prod(_shape(signal)[1:3]))
        grown = round(given[0] * (places[0] / places[-1]) ** GROWTH)
        count = given[len(tables)] if len(given) == activations else max(given[0], grown)
        pixels = _pixels(signal, patches, generator)
        if not np.isfinite(_variance(pixels)).all():
            raise ValueError(f"some q before {layer!r} is not finite in {X.dtype}; scale X, or give float64")
        choose = partial(_sketched, degree=degree) if method == "sketch" else partial(_anchored, selection=selection)
        table = choose(layer, pixels, count, ntk, generator)
        errors.append(_errors(table, layer, pixels, ntk))
        tables.append(table)
        after = _applied(table, layer, signal)
        sizes.extend(part.x.nbytes // len(sample) for part in (*signal, *after))
        return after

    signal = _run(net, _start(sample), active)
    weights = [part.theta if ntk else part.q for part in signal]
    empty = [jax.eval_shape(Part.written, part).x.size == 0 for part in signal]
    kept = tuple(w is not None and bool(w > 0) and not none for w, none in zip(weights, empty, strict=True))
    if not any(kept):
        raise ValueError(f"the {get} of {net!r} is zero on every row of X; there is nothing to approximate")
    columns = jax.eval_shape(partial(_columns, ntk=ntk, kept=kept), signal).shape[1]
    about = get, tuple(tables), tuple(errors), None, kept, columns, X.shape[1:], X.dtype, max(sizes)
    found = Layerwise(net, *about)
    if columns <= n_components:
        return found
    landmarks = found(drawn(X, n_components, generator))
    root = inverse_root(landmarks.astype(float) @ landmarks.T.astype(float), float(np.finfo(X.dtype).eps))
    projection = jnp.asarray(landmarks.T @ root, X.dtype)
    return replace(found, projection=projection, n_components=projection.shape[1])


def _given(anchors, activations: int) -> list[int]:
    """One number, or one for every activation; ValueError otherwise."""
    if isinstance(anchors, str) or not isinstance(anchors, Sequence | np.ndarray):
        return [positive(anchors, "anchors")]
    given = [positive(count, "an entry of anchors") for count in anchors]
    if len(given) != activations:
        raise ValueError(f"anchors={anchors!r} came; a number for each of {activations} activations was expected")
    return given


@jax.jit
def _applied(table, layer: Activation, signal: Signal) -> Signal:
    return table(layer, signal)


def _pixels(signal: Signal, count: int, generator) -> Signal:
    """At most `count` pixels of the signal, drawn uniformly, as one image (1, 1, count, dimensions of z)."""
    n, height, width, _ = _shape(signal)
    chosen = np.sort(generator.choice(n * height * width, min(count, n * height * width), replace=False))
    image, pixel = np.divmod(chosen, height * width)

    def values(part: Part) -> Array:
        rows = [
            np.asarray(_written(part._replace(x=part.x[i : i + 1]))).reshape(height * width, -1)[pixel[image == i]]
            for i in np.unique(image)
        ]
        return jnp.asarray(np.concatenate(rows)[None, None])

    return tuple(Part(values(part), part.q, part.theta) for part in signal)


@jax.jit
def _written(part: Part) -> Array:
    return part.written().x


def _errors(table, layer: Activation, pixels: Signal, ntk: bool) -> tuple[float, ...]:
    approximate = [float(part.square().sum()) for part in _applied(table, layer, pixels)]
    exact = [float(diagonal.sum()) for diagonal in _exact(layer, pixels, ntk)]
    return tuple(float(abs(1 - a / e)) if e else 0.0 for a, e in zip(approximate, exact, strict=True))


CUT = 100
"""Directions of the kernel with the anchors that are below so many eps of the largest are rounding."""

SLACK = 0.5, 0.08
"""A root leaves out its least directions, which the next convolution then need not look at, up to this share of the
trace that the anchors miss anyway: of q where it only serves Theta, and of the kernel that was asked for."""

BLOCK = 512
"""Columns of the kernel between the pixels that are in memory at a time, when roots are fitted."""


def _anchored(layer: Activation, pixels: Signal, count: int, ntk: bool, generator, selection: str) -> Anchors:
    values = [np.asarray(part.x[0, 0]) for part in pixels]
    polynomials = _polynomials(layer, values[0].dtype, ntk)
    eps, n = float(np.finfo(values[0].dtype).eps), len(values[0])
    diagonals = [np.asarray(x, float).ravel() for x in _exact(layer, pixels, ntk)]

    def table(chosen: list[np.ndarray]) -> Anchors:
        """Anchors with these z of the parts of the signal, without roots."""
        images = [jnp.asarray(z[None, None], values[0].dtype) for z in chosen]
        own = tuple(Part(x, p.q, p.theta) for x, p in zip(images, pixels, strict=True))
        return Anchors(tuple(p.x[0, 0] for p in own), _variance(own)[0, 0, :, 0], (None,) * (1 + ntk), polynomials)

    def kernels(chosen: list[np.ndarray]) -> list[np.ndarray]:
        """q and, for the NTK, Theta, (n, m), of all pixels with those of these z."""
        return [np.array(k[0, 0], float) for k in _kernels(table(chosen), layer, pixels)]

    def columns(indices: np.ndarray) -> np.ndarray:
        return np.sum(kernels([z[indices] for z in values]), axis=0)

    count = min(count, n)
    if selection == "k-means":
        thetas = [part.theta for part in pixels]
        weights = thetas if ntk and any(w is not None and w > 0 for w in thetas) else [part.q for part in pixels]
        coordinates = [math.sqrt(w) * z for w, z in zip(weights, values, strict=True) if w is not None]
        means = centroids(np.concatenate(coordinates, axis=1), count, generator)
        anchors = [means @ z for z in values]
    elif selection == "pivoted":
        indices, _ = pivoted(columns, np.sum(diagonals, axis=0), count, eps, generator)
        anchors = [z[indices] for z in values]
    else:
        indices = generator.choice(n, count, replace=False)
        anchors = [z[indices] for z in values]
    bases = [_basis(kernel, eps) for kernel in kernels(anchors)]
    cores = [np.zeros((inverse.shape[1],) * 2) for _, inverse in bases]
    for block in (slice(start, start + BLOCK) for start in range(0, n, BLOCK)):
        found = kernels([z[block] for z in values])
        for core, (U, _), kernel, diagonal in zip(cores, bases, found, diagonals, strict=True):
            np.fill_diagonal(kernel[block], diagonal[block])
            core += U.T @ kernel @ U[block]
    roots = [
        _root(core, inverse, diagonal.sum(), slack)
        for core, (_, inverse), diagonal, slack in zip(cores, bases, diagonals, SLACK[-len(bases) :], strict=True)
    ]
    return table(anchors)._replace(roots=tuple(jnp.asarray(root, values[0].dtype) for root in roots))


@jax.jit
def _kernels(table: Anchors, layer: Activation, signal: Signal) -> tuple[Array, ...]:
    return table.kernels(layer, signal)


def _basis(kernel: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """U (n, rank), orthonormal, and W (m, rank) with U = kernel W, for a kernel (n, m) of pixels and anchors."""
    U, values, Vt = np.linalg.svd(kernel, full_matrices=False)
    kept = values > CUT * eps * values[0]
    return U[:, kept], Vt[kept].T / values[kept]


def _root(core: np.ndarray, inverse: np.ndarray, trace: float, slack: float) -> np.ndarray:
    """R (m, rank): on the pixels that it is fitted on, features C R are the best that the span of C allows.

    With C = U S V' (n, m) the kernel K of pixels and anchors, core = U' K U and inverse = V / S: then C R R' C' is
    U U' K U U' (the modified Nystrom method, Wang and Zhang 2013), where C K_mm^(-1) C' fits the anchors alone."""
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    values = np.maximum(values, 0.0)
    kept = np.cumsum(values) > slack * max(trace - values.sum(), 0.0)
    return (inverse @ (vectors[:, kept] * np.sqrt(values[kept])))[:, ::-1]


ROUNDS = 20
"""Of Lloyd's algorithm."""


def centroids(points: np.ndarray, count: int, generator) -> np.ndarray:
    """Weights (count, n) whose products with points (n, d) are centroids: Lloyd's algorithm after k-means++ (Arthur and
    Vassilvitskii 2007). A centroid that no point is nearest to stays where it was."""
    n, squares = len(points), np.square(points).sum(axis=1)
    weights = np.zeros((count, n), points.dtype)
    distances = np.full(n, np.inf)
    for i in range(count):
        chances = distances / distances.sum() if i and distances.any() else np.full(n, 1 / n)
        first = int(generator.choice(n, p=chances))
        weights[i, first] = 1
        distances = np.minimum(distances, np.maximum(squares + squares[first] - 2 * points @ points[first], 0))
        distances[first] = 0
    for _ in range(ROUNDS):
        centres = weights @ points
        nearest = np.argmax(points @ centres.T - np.square(centres).sum(axis=1) / 2, axis=1)
        members = np.zeros_like(weights)
        members[nearest, np.arange(n)] = 1
        sizes = members.sum(axis=1, keepdims=True)
        weights = np.where(sizes > 0, members / np.maximum(sizes, 1), weights)
    return weights


def _sketched(layer: Activation, pixels: Signal, m: int, ntk: bool, generator, degree: int) -> Sketch:
    dtype = pixels[0].x.dtype
    norms = np.sqrt(np.asarray(_variance(pixels), float))
    norms = norms[norms > 0]
    if not norms.size:
        raise ValueError(f"all patches before {layer!r} are zero; rows that are not were expected")
    expansion = series(serial(layer), (norms.min() / 2, norms.max() * 2), "nngp", degree=degree)
    if expansion.ranks.max() > 1:
        raise ValueError(f"{layer!r}: its kernel has several factors per degree; a sketch of layers needs one of each")
    if ntk:
        layer.act_diagonal(State(jnp.ones(1, dtype), jnp.ones(1, dtype)))  # NoClosedForm where there is no kdot

    def signs(part: Part, *shape: int) -> Array:
        return jnp.asarray(generator.choice((-1.0, 1.0), (*shape, part.x.shape[-1])), dtype)

    def turns() -> Array:
        return jnp.asarray([np.linalg.qr(generator.standard_normal((m, m)))[0] for _ in range(degree)], dtype)

    return Sketch(
        tuple(None if part.q is None else signs(part, degree, m) for part in pixels),
        tuple(None if part.theta is None or not ntk else signs(part, m) / math.sqrt(m) for part in pixels),
        tuple(turns() for _ in range(1 + ntk)),
        expansion,
    )
