"""Exact NNGP and NTK of infinitely wide networks: `serial(Dense(W_std=1.5), Activation("gelu"), Dense())(X, Y)`.

A network is evaluated twice: on the diagonal, where a pair is (x, x), which gives the variance of every row at every
layer in O(n); then on all pairs, by the tiles of `gram.py`. `layers.py` and `conv.py` have the layers; branches and
sequences of them are here. `finite.py` samples networks of finite width.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from . import fusion, gram
from .layers import Activation, Layer, Place, State, Trace, is_zero, pytree, same
from .runtime import known_true

KERNELS = ("nngp", "ntk")
"""What `get` may ask for."""

# ------------------------------------------------------------------------------------------------------------ branches


@pytree(leaves=(), static=("number",))
@dataclass(frozen=True)
class FanOut(Layer):
    """The signal handed to `number` branches: `serial(FanOut(2), parallel(a, b), FanInSum())`."""

    number: int

    def __post_init__(self):
        if isinstance(self.number, bool) or not (isinstance(self.number, int) and self.number > 0):
            raise ValueError(f"FanOut({self.number!r}) came; the number of branches was expected, such as 2")

    def homogeneity(self, degree):
        return None

    def follow(self, place):
        return (Place(place.shape, place.gaussian),) * self.number

    def diagonal(self, state):
        return (state,) * self.number, ()

    def pairs(self, state, rows, columns):
        return (state,) * self.number

    def leaves(self, trace, label):
        return iter(())

    def init(self, key, shape, width):
        return (shape,) * self.number, ()

    def apply(self, weights, x):
        return (x,) * self.number


@pytree(leaves=())
@dataclass(frozen=True)
class FanInSum(Layer):
    """The sum of the branches."""

    def homogeneity(self, degree):
        return None

    def follow(self, places):
        if not isinstance(places, tuple):
            raise ValueError("one signal came; FanOut and parallel were expected before it")
        if len({place.shape for place in places}) > 1:
            raise ValueError(f"branches of the shapes {[place.shape for place in places]} came; give them one shape")
        if sum(not place.fresh for place in places) > 1:
            raise ValueError(
                "the branches are not independent, and their kernels do not add: all but one of them must have a "
                "Dense or Conv after their last activation"
            )
        return Place(places[0].shape, all(p.gaussian for p in places), all(p.fresh for p in places))

    def diagonal(self, states):
        return _sum(states), ()

    def pairs(self, states, rows, columns):
        return _sum(states)

    def leaves(self, trace, label):
        return iter(())

    def init(self, key, shapes, width):
        if len(set(shapes)) > 1:
            raise ValueError(f"branches of the shapes {shapes} came to FanInSum; choose a width that makes them equal")
        return shapes[0], ()

    def apply(self, weights, xs):
        return sum(xs[1:], xs[0])


def _sum(states: tuple[State, ...]) -> State:
    total = states[0]
    for state in states[1:]:
        total = total + state
    return total


@pytree(leaves=("branches",))
@dataclass(frozen=True, repr=False)
class Parallel(Layer):
    """Branches side by side; build it with `parallel`."""

    branches: tuple[Layer, ...]

    def homogeneity(self, degree):
        return None

    def follow(self, places):
        if not isinstance(places, tuple) or len(places) != len(self.branches):
            came = len(places) if isinstance(places, tuple) else 1
            raise ValueError(
                f"{came} signals came for {len(self.branches)} branches; put FanOut({len(self.branches)}) before"
            )
        return tuple(branch.follow(place) for branch, place in zip(self.branches, places, strict=True))

    def needs_pairs(self, after):
        return any(branch.needs_pairs(after) for branch in self.branches)

    def diagonal(self, states):
        both = [branch.diagonal(state) for branch, state in zip(self.branches, states, strict=True)]
        return tuple(state for state, _ in both), tuple(trace for _, trace in both)

    def pairs(self, states, rows, columns):
        return tuple(b.pairs(*arguments) for b, *arguments in zip(self.branches, states, rows, columns, strict=True))

    def leaves(self, trace, label):
        for i, (branch, part) in enumerate(zip(self.branches, trace, strict=True), 1):
            yield from branch.leaves(part, f"{label}.{i}")

    def init(self, key, shapes, width):
        keys = jax.random.split(key, len(self.branches))
        both = [b.init(k, shape, width) for b, k, shape in zip(self.branches, keys, shapes, strict=True)]
        return tuple(shape for shape, _ in both), tuple(weights for _, weights in both)

    def apply(self, weights, xs):
        return tuple(b.apply(w, x) for b, w, x in zip(self.branches, weights, xs, strict=True))

    def __repr__(self) -> str:
        return f"parallel({', '.join(map(repr, self.branches))})"


def parallel(*branches) -> Parallel:
    """Branches side by side, each a layer or a network, between `FanOut` and `FanInSum`."""
    if not branches:
        raise ValueError("parallel() came without branches; at least one was expected")
    return Parallel(tuple(_layer(b, f"branch {i} of parallel") for i, b in enumerate(branches, 1)))


@pytree(leaves=("inner",))
@dataclass(frozen=True, init=False, repr=False)
class Residual(Layer):
    """x + inner(x): `Residual(Activation("relu"), Dense())`. The kernels add, as weights in `inner` are independent."""

    inner: Network

    def __init__(self, *layers):
        object.__setattr__(self, "inner", serial(*layers))

    def homogeneity(self, degree):
        return degree if self.inner.homogeneity(degree) == degree else None

    def follow(self, place):
        return FanInSum().follow(
            (Place(place.shape, place.gaussian), self.inner.follow(Place(place.shape, place.gaussian)))
        )

    def needs_pairs(self, after):
        return self.inner.needs_pairs(after)

    def diagonal(self, state):
        after, trace = self.inner.diagonal(state)
        return state + after, trace

    def pairs(self, state, rows, columns):
        return state + self.inner.pairs(state, rows, columns)

    def leaves(self, trace, label):
        return self.inner.leaves(trace, label)

    def init(self, key, shape, width):
        after, weights = self.inner.init(key, shape, width)
        return FanInSum().init(key, (shape, after), width)[0], weights

    def apply(self, weights, x):
        return x + self.inner.apply(weights, x)

    def __repr__(self) -> str:
        return f"Residual({', '.join(map(repr, self.inner.layers))})"


# ------------------------------------------------------------------------------------------------------------ network


@pytree(leaves=("layers",))
@dataclass(frozen=True, repr=False)
class Network(Layer):
    """Layers one after the other; a kernel function of inputs. Build it with `serial`."""

    layers: tuple[Layer, ...]

    def __call__(
        self,
        X,
        Y=None,
        get: str | tuple[str, ...] = "ntk",
        *,
        tol: float | None = None,
        out=None,
        overwrite: bool = False,
        tile: int | None = None,
        memory: int | None = None,
        progress: bool | Callable[[int, int], None] = False,
        devices=None,
    ):
        """The kernel of every row of X with every row of Y, (n, m), in their precision (the wider of the two).

        X, Y   (n, d) and (m, d), or images (n, height, width, channels): NumPy or JAX arrays or nested lists, finite;
               integers are taken as floats. Without Y the pairs of X: exactly symmetric, the diagonal from k(q, q, q)
               and kdot(q, q, q)
        get    "nngp", "ntk", or a tuple of them, which gives a named tuple in that order
        tol    of depth fusion (`fusion.py`), one polynomial in place of the recursion: its largest error over
               sqrt(K(x, x) K(y, y)). If not given: 8 eps in float32, where rows have one norm, or the network is
               homogeneous, or pairs are many and the activations smooth. 0, and float64 if nothing is given, is the
               recursion
        out, overwrite, tile, memory, progress, devices   of the tiles: see `gram.compute`. With `out`, paths of `.npy`
               files, the result is memory-mapped; without, JAX arrays. While JAX traces there are no tiles
        Raises NoClosedForm for the NTK of an activation that jumps, ValueError for layers that cannot follow each
        other or a row outside the domain of an activation (while JAX traces, that row becomes inf or NaN instead).
        """
        names = _names(get)
        if _traced((self, X, Y)):
            X, Y = self._inputs(X, Y)
            points, ends = self._prepared(names, X, Y, memory)
            kernels = _whole(self, names, points[0], points[-1], ends)
        else:
            options = {"out": out, "overwrite": overwrite, "tile": tile, "memory": memory, "devices": devices}
            kernels = gram.run(self.work(X, Y, get, tol=tol, **options), progress)
            kernels = kernels if out is not None else tuple(map(jax.device_put, kernels))
        return kernels[0] if isinstance(get, str) else _result(names)(*kernels)

    def plan(
        self,
        X,
        Y=None,
        get: str | tuple[str, ...] = "ntk",
        *,
        tol: float | None = None,
        out=None,
        overwrite: bool = False,
        tile: int | None = None,
        memory: int | None = None,
        devices=None,
    ) -> gram.Plan:
        """What a call with these arguments takes: tiles, bytes, operations by XLA's count, and seconds, measured on one
        tile (which compiles; the call itself need not any more). `print` it."""
        options = {"out": out, "overwrite": overwrite, "tile": tile, "memory": memory, "devices": devices}
        work = self.work(X, Y, get, tol=tol, **options)
        columns = None if Y is None else work.columns
        return gram.calibrate(work.plan, work.bound, work.rows, columns, marks=work.mend is not None)

    def work(
        self,
        X,
        Y=None,
        get: str | tuple[str, ...] = "ntk",
        *,
        tol: float | None = None,
        memory: int | None = None,
        **options,
    ) -> gram.Work:
        """What a call with these arguments does, checked and prepared but for its tiles: the diagonal pass is done.

        options   `out`, `overwrite`, `tile`, `devices`, as of a call
        """
        names = _names(get)
        X, Y = self._inputs(X, Y)
        points, ends = self._prepared(names, X, Y, memory)
        function, rows, columns, mend = self._pairs(names, X, Y, points, tol)
        per_pair = self._bytes_per_pair(X)
        return gram.prepare(
            function, rows, columns, diagonal=ends, mend=mend, memory=memory, bytes_per_pair=per_pair, **options
        )

    def _prepared(self, names, X: Array, Y: Array | None, memory: int | None):
        """The points of either side with their traces, and the diagonals where Y is None."""
        sides = [(X, "X")] if Y is None else [(X, "X"), (Y, "Y")]
        passes = [self._variances(Z, "ntk" in names, name, memory) for Z, name in sides]
        points = [(Z, trace) for (Z, _), (trace, _) in zip(sides, passes, strict=True)]
        return points, None if Y is not None else _chosen(names, passes[0][1])

    def _pairs(self, names, X: Array, Y: Array | None, points, tol: float | None):
        """The function of pairs for `gram.compute`, its rows and columns, and `mend`."""
        near = X.ndim == 2 and X.dtype == jnp.float32
        arrays = [np.asarray(Z) for Z, _ in points]
        function, rows, columns = self._fused(names, [Z for Z, _ in points], tol, near) or (
            Partial(_tile(names, near), self),
            points[0],
            points[-1],
        )
        mend = partial(self._mended, names, arrays[0], arrays[-1]) if near else None
        return function, rows, None if Y is None else columns, mend

    def fusion(self, X, Y=None, get: str | tuple[str, ...] = "ntk", tol: float | None = None) -> fusion.Fused | None:
        """The polynomials that a call with these arguments takes (degree and error are on them), None for recursion."""
        X, Y = self._inputs(X, Y)
        return self._path(_names(get), [Z for Z in (X, Y) if Z is not None], tol)[0]

    def _path(self, names, sides: list[Array], tol: float | None):
        """Polynomials of c at a fixed norm, the degree of the network in the norms, the variances of either side; None
        for the polynomials where norms matter or there is no tolerance."""
        eps, single = float(jnp.finfo(sides[0].dtype).eps), sides[0].dtype == jnp.float32
        tol = _tolerance(tol)
        worth = tol is not None or (len(sides[0]) * len(sides[-1]) >= MANY and not self._kinked())
        tol = (8 * eps if single else 0.0) if tol is None else tol
        if sides[0].ndim == 4 or not tol > 0:
            return None, 0, []
        variances = [jnp.einsum("nd,nd->n", Z, Z, precision="highest") / Z.shape[1] for Z in sides]
        low, high = (float(f([f(q) for q in map(np.asarray, variances)])) for f in (np.min, np.max))
        degree = self.homogeneity(1)
        if high == 0:
            return None, 0, variances
        if degree is None and high - low <= 8 * eps * high:
            degree, low = 0, high
        elif degree is not None:
            if degree == 0 and low == 0:
                return None, 0, variances
            low = high = 1.0
        elif not worth or not 0 < low * WIDEST >= high:
            return None, 0, variances
        else:  # few ranges, so that the polynomials of one call serve another
            degree, low, high = 0, 2 ** (math.floor(2 * math.log2(low)) / 2), 2 ** (math.ceil(2 * math.log2(high)) / 2)
        leaves, structure = jax.tree.flatten(self)
        found = _polynomials(structure, tuple(map(float, leaves)), names, low, high, sides[0].dtype, tol)
        return found, degree, variances

    def _kinked(self) -> bool:
        """Whether an activation is in pieces: behind a bias, its kernels are not smooth in the norms."""
        layers = jax.tree.leaves(self, is_leaf=lambda x: isinstance(x, Activation))
        return any(isinstance(layer, Activation) and layer.fns.dual.kinks for layer in layers)

    def _mended(self, names, X: np.ndarray, Y: np.ndarray, i: np.ndarray, j: np.ndarray) -> list[np.ndarray]:
        """The kernels of nearly parallel pairs (X[i], Y[j]) in float64, from the differences of the rows."""
        square = lambda z: np.einsum("nd,nd->n", z, z) / z.shape[1]  # noqa: E731
        step = max(2**21 // X.shape[1], 1)  # rows of 16 MB
        pairs = []
        for start in range(0, len(i), step):
            x, y = (Z[k[start : start + step]].astype(np.float64) for Z, k in ((X, i), (Y, j)))
            sign = np.sign(np.einsum("nd,nd->n", x, y))
            q11, q22, gap = square(x), square(y), square(x - sign[:, None] * y)
            pairs.append(np.stack([sign * ((q11 + q22) - gap) / 2, q11, q22]))
        with _double():
            doubled = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self)
            return _recursion(names, doubled, np.concatenate(pairs, axis=1))

    def _fused(self, names, sides: list[Array], tol: float | None, near: bool):
        """The arguments for `gram.compute` of depth fusion, or None."""
        found, degree, variances = self._path(names, sides, tol)
        if found is None:
            return None
        dtype = sides[0].dtype
        points = [
            (Z, q, tuple(F.astype(dtype) for F in found.factors(np.asarray(q, float))))
            for Z, q in zip(sides, variances, strict=True)
        ]
        signs = tuple(jnp.asarray(s, dtype) for s in found.signs())
        return Partial(_fused_tile(degree, found.ranks, near), signs), points[0], points[-1]

    def _bytes_per_pair(self, X: Array) -> int:
        """What a pair takes while its tile is computed: some arrays of the size of the largest state."""
        pixels = int(np.prod(X.shape[1:-1]))
        return 8 * X.dtype.itemsize * (pixels**2 if X.ndim == 4 and self.needs_pairs(False) else pixels)

    def _inputs(self, X, Y) -> tuple[Array, Array | None]:
        """X and Y, checked, in the wider of their precisions; the layers, checked."""
        X = _points(X, "X")
        end = self.follow(Place(X.shape[1:-1]))
        if not isinstance(end, Place) or end.shape:
            came = "branches" if not isinstance(end, Place) else f"images {end.shape}"
            last = "FanInSum()" if not isinstance(end, Place) else "Flatten() or GlobalAvgPool()"
            hint = f"; for vectors, reshape X to ({len(X)}, {X[0].size})" if isinstance(end, Place) else ""
            raise ValueError(f"the network ends in {came}; a kernel needs one vector per point: append {last}{hint}")
        if Y is None:
            return X, None
        Y = _points(Y, "Y")
        if X.shape[1:] != Y.shape[1:]:
            axes = "(height, width, channels)" if X.ndim == 4 else "features d"
            raise ValueError(f"X has shape {X.shape} and Y {Y.shape}; both must have the same number of {axes}")
        wider = np.promote_types(X.dtype, Y.dtype)
        return X.astype(wider), Y.astype(wider)

    def _variances(self, X: Array, ntk: bool, name: str, memory: int | None = None) -> tuple[Any, State]:
        """The diagonal pass: the traces, and the state (n,) at the end; ValueError where a row leaves a domain."""
        step = len(X) if X.ndim == 2 else max((memory or 2**29) // self._bytes_per_pair(X), 1)
        parts = [_diagonal(self, X[i : i + step], ntk) for i in range(0, len(X), step)]
        trace, end = parts[0] if len(parts) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
        for label, layer, part in self.leaves(trace, "") if known_true(_any_bad(trace)) else ():
            if known_true(part.bad.any()):
                row = int(jnp.argmax(part.bad))
                q = float(jax.lax.stop_gradient(part.q[row]).max())
                raise ValueError(
                    f"row {row} of {name} has variance q = {q:.6g} at layer {label}, {layer!r}, whose output is not "
                    f"finite there (its domain: {layer.domain}; {X.dtype} ends at {jnp.finfo(X.dtype).max:.1e}, "
                    f"q*q included). {_remedy(layer, q, name)}"
                )
        return jax.tree.map(lambda part: part._replace(bad=None), trace, is_leaf=_is_trace), end

    def homogeneity(self, degree):
        for layer in self.layers:
            degree = layer.homogeneity(degree)
        return degree

    def follow(self, place):
        for number, layer in enumerate(self.layers, 1):
            try:
                place = layer.follow(place)
            except ValueError as reason:
                inner = "" if str(reason).startswith("layer ") else ": "
                raise ValueError(
                    f"layer {number}, {layer!r}: {reason}" if inner else f"layer {number}, in it {reason}"
                ) from None
        return place

    def needs_pairs(self, after):
        return self._needs(after)[0]

    def diagonal(self, state, after: bool = True):
        traces: list[Any] = []
        for blocks, needs in self._runs(after):
            step = partial(_diagonal_in_turn, needs)
            state, first = step(state, blocks[0])
            if _repeats(step, state, blocks[1:]):
                state, rest = jax.lax.scan(step, state, _stacked(blocks[1:]), length=len(blocks) - 1)
                traces.append(Loop(first, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), rest)))
            else:
                traces.append(first)
                for block in blocks[1:]:
                    state, trace = step(state, block)
                    traces.append(trace)
        return state, tuple(traces)

    def pairs(self, state, rows, columns, after: bool = True):
        sides = zip(rows, columns, strict=True)
        for blocks, needs in self._runs(after):
            step = partial(_pairs_in_turn, needs)
            for n, block in enumerate(blocks):
                row, column = next(sides)
                if isinstance(row, Loop):
                    state, _ = step(state, (block, row.first, column.first))
                    rest = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (row.rest, column.rest))
                    state, _ = jax.lax.scan(step, state, (_stacked(blocks[n + 1 :]), *rest), length=len(blocks) - n - 1)
                    break
                state, _ = step(state, (block, row, column))
        return state

    def _runs(self, after: bool) -> Iterator[tuple[list[tuple[Layer, ...]], tuple[bool, ...]]]:
        """Blocks of layers that repeat REPEATS times or more, numbers aside, and single layers else; with what `_needs`
        says of each layer of a block. XLA compiles a repeated block once."""
        needs, i = self._needs(after), 0
        kinds = [(jax.tree.structure(layer), need) for layer, need in zip(self.layers, needs, strict=True)]
        while i < len(self.layers):
            size, times = 1, 1
            for period in range(1, (len(kinds) - i) // REPEATS + 1):
                count = 1
                while kinds[i + period * count : i + period * (count + 1)] == kinds[i : i + period]:
                    count += 1
                if count >= REPEATS and period * count > size * times:
                    size, times = period, count
            yield [self.layers[i + size * n : i + size * (n + 1)] for n in range(times)], tuple(needs[i : i + size])
            i += size * times

    def _needs(self, after: bool) -> list[bool]:
        """Whether each layer, or one behind it, needs all pairs of pixels; `after`: one behind the network does."""
        needs = [after]
        for layer in reversed(self.layers):
            needs.append(layer.needs_pairs(needs[-1]))
        return needs[:0:-1]

    def leaves(self, trace, label):
        number = 0
        for part in trace:
            parts = [part]
            if isinstance(part, Loop):
                times = jax.tree.leaves(part.rest)[0].shape[1]
                parts = [part.first, *(jax.tree.map(lambda a, i=i: a[:, i], part.rest) for i in range(times))]
            for one in (x for block in parts for x in block):
                yield from self.layers[number].leaves(one, f"{label}.{number + 1}" if label else f"{number + 1}")
                number += 1

    def init(self, key: Array, shape: tuple[int, ...], width: int = 512):
        """Random weights of the network with `width` units (channels) in every layer.

        key     of jax.random
        shape   of one input: (d,) or (height, width, channels)
        Returns the shape of one output, and the weights for `apply`.
        """
        weights = []
        for layer, k in zip(self.layers, jax.random.split(key, len(self.layers)), strict=True):
            shape, w = layer.init(k, shape, width)
            weights.append(w)
        return shape, tuple(weights)

    def apply(self, weights, x: Array) -> Array:
        """The finite network on x, (n, d) or (n, height, width, channels)."""
        for layer, w in zip(self.layers, weights, strict=True):
            x = layer.apply(w, x)
        return x

    def __repr__(self) -> str:
        return f"serial({', '.join(map(repr, self.layers))})"


def serial(*layers) -> Network:
    """The network of these layers, in order; a Network among them contributes its layers."""
    if not layers:
        raise ValueError("serial() came without layers; at least one was expected, as in serial(Dense())")
    built = [_layer(layer, f"layer {number} of serial") for number, layer in enumerate(layers, 1)]
    return Network(tuple(inner for x in built for inner in (x.layers if isinstance(x, Network) else (x,))))


def repeat(block: Layer, times: int) -> Network:
    """The same layer or network `times` times, with weights of its own each time."""
    if not (isinstance(times, int) and times > 0):
        raise ValueError(f"times={times!r} came; a positive integer was expected")
    return serial(*[block] * times)


def _layer(layer, place: str) -> Layer:
    if isinstance(layer, Layer):
        return layer
    if isinstance(layer, type):
        raise ValueError(f"{place}: the class {layer.__name__} came; a layer was expected: {layer.__name__}(...)")
    hint = f"; did you mean Activation({layer!r})?" if isinstance(layer, str) else ""
    raise ValueError(
        f"{place}: {layer!r} ({type(layer).__name__}) came; Dense(...), Activation(...) or a network was expected{hint}"
    )


# --------------------------------------------------------------------------------------------------------- two passes


class Loop(NamedTuple):
    """The traces of a repeated block of layers: of the first time, and of the others, along axis 1."""

    first: Any
    rest: Any


REPEATS = 4
"""So many equal blocks of layers, or more, become a loop."""


def _diagonal_in_turn(needs: tuple[bool, ...], state, layers: tuple[Layer, ...]) -> tuple[Any, list]:
    traces = []
    for layer, needed in zip(layers, needs, strict=True):
        state, trace = layer.diagonal(state if needed else same(state))
        traces.append(trace)
    return state, traces


def _pairs_in_turn(needs: tuple[bool, ...], state, block) -> tuple[Any, None]:
    for needed, layer, row, column in zip(needs, *block, strict=True):
        state = layer.pairs(state if needed else same(state), row, column)
    return state, None


def _repeats(step: Callable, state, blocks: list) -> bool:
    """Whether the blocks can be a loop: numbers of equal kinds, and a state that keeps its shape."""
    if not blocks:
        return False
    kinds = {tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(block)) for block in blocks}
    before, after = (jax.tree.map(jax.typeof, s) for s in (state, jax.eval_shape(step, state, blocks[0])[0]))
    return len(kinds) == 1 and before == after


def _stacked(blocks: list):
    return jax.tree.map(lambda *numbers: jnp.stack([jnp.asarray(x) for x in numbers]), *blocks)


def _start(network: Network, X: Array, Z: Array | None, ntk: bool) -> State:
    """The state of the inputs: the pairs of X and Z, or, without Z, each x with itself."""
    rows, columns, out = ("n", "n", "n") if Z is None else ("n", "m", "nm")
    Z = X if Z is None else Z

    def covariance(first: str, second: str, pixels: str) -> Array:
        subscripts = f"{rows}{first}c,{columns}{second}c->{out}{pixels}"
        return jnp.einsum(subscripts, X, Z, precision="highest") / X.shape[-1]

    theta = 0.0 if ntk else None
    if X.ndim == 2:
        return State(covariance("", "", ""), theta)
    if network.needs_pairs(False):
        return State(covariance("hw", "ij", "hwij"), theta, 4)
    return State(covariance("hw", "hw", "hw"), theta, 2)


@partial(jax.jit, static_argnames="ntk")
def _diagonal(network: Network, X: Array, ntk: bool) -> tuple[Any, State]:
    """The traces of all layers on the pairs (x, x), and the state (n,) at the end.

    Outside an activation's domain of norms generated code gives inf or NaN."""
    state, trace = network.diagonal(_start(network, X, None, ntk), after=False)
    return trace, _ended(state)


NEAR = 2.0**-7
"""In float32, pairs of vectors with 1 - |c| below this are computed once more, in float64, from the difference of the
rows: rounding of x.y is lost to the angle, and depth makes it grow."""


@lru_cache
def _tile(names: tuple[str, ...], near: bool = False) -> Callable:
    """The function of `gram.compute` for these kernels; with `near`, marks of nearly parallel pairs come last."""

    @jax.jit
    def tile(network: Network, rows, columns) -> tuple[Array, ...]:
        (X, row_trace), (Y, column_trace) = rows, columns
        start = _start(network, X, Y, "ntk" in names)
        kernels = _chosen(names, _ended(network.pairs(start, row_trace, column_trace, after=False)))
        if not near:
            return kernels
        a, b = (jnp.sqrt(jnp.einsum("nd,nd->n", Z, Z) / Z.shape[1]) for Z in (X, Y))
        return *kernels, jnp.abs(start.q) > (1 - NEAR) * a[:, None] * b[None, :]

    return tile


MANY = 2**19
"""So many pairs, or more, are worth polynomials in the norms where no tolerance is given."""

WIDEST = 2.0**10
"""The largest ratio of variances for polynomials in the norms."""


@lru_cache
def _fused_tile(degree: int, ranks, near: bool) -> Callable:
    """The same for polynomials of the angle; `degree` in the norms, where they matter no further."""

    @jax.jit
    def tile(signs: tuple[Array, ...], rows, columns) -> tuple[Array, ...]:
        (X, q11, left), (Y, q22, right) = rows, columns
        a, b = (jnp.where(q == 0, 0.0, jax.lax.rsqrt(q)) for q in (q11, q22))
        c = jnp.matmul(X, Y.T, precision="highest") * (a[:, None] * b[None, :] / X.shape[1])
        scale = jnp.power(q11, degree / 2)[:, None] * jnp.power(q22, degree / 2)[None, :] if degree else 1.0
        y, nothing = fusion.angle_of(jnp.clip(c, -1, 1)), (None,) * len(signs)
        product = partial(jnp.matmul, precision="highest")
        parts = zip(ranks or nothing, signs, left or nothing, right or nothing, strict=True)
        kernels = tuple(scale * fusion.series(fusion.terms(*part, product), y) for part in parts)
        return (*kernels, jnp.abs(c) > 1 - NEAR) if near else kernels

    return tile


@lru_cache(maxsize=64)
def _polynomials(structure, numbers: tuple[float, ...], names, low, high, dtype, tol: float) -> fusion.Fused | None:
    """Of the network of this structure and these numbers, for inputs of these variances."""
    with _double():
        network = jax.tree.unflatten(structure, map(np.float64, numbers))
        return fusion.fuse(partial(_sampled, names, network), low, high, dtype, tol)


def _sampled(names: tuple[str, ...], network: Network, q: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    """The kernels (p, p, n) of inputs of variances q (p,) at the cosines c (n,), by recursion in float64."""
    i, j = np.triu_indices(len(q))
    pairs = np.stack(np.broadcast_arrays(np.sqrt(q[i] * q[j])[:, None] * c, q[i][:, None], q[j][:, None]))
    kernels = []
    for values in _recursion(names, network, pairs.reshape(3, -1)):
        full = np.empty((len(q), len(q), len(c)))
        full[i, j] = full[j, i] = values.reshape(len(i), len(c))
        kernels.append(full)
    return kernels


PORTION = 2048
"""Pairs one by one are computed in portions of so many: one shape is compiled."""


def _recursion(names: tuple[str, ...], network: Network, pairs: np.ndarray) -> list[np.ndarray]:
    """The kernels (p,) of pairs (q12, q11, q22), (3, p)."""
    count = pairs.shape[1]
    padded = np.pad(pairs, ((0, 0), (0, -count % PORTION)), mode="edge")
    portions = np.split(padded, padded.shape[1] // PORTION, axis=1)
    parts = [_one_by_one(names, network, jnp.asarray(portion)) for portion in portions]
    return [np.concatenate(kernel)[:count] for kernel in zip(*parts, strict=True)]


@partial(jax.jit, static_argnames="names")
def _one_by_one(names, network: Network, pairs: Array) -> tuple[Array, ...]:
    """The kernels (p,) of pairs given as (q12, q11, q22), (3, p)."""

    def one(pair: Array) -> tuple[Array, ...]:
        q12, q11, q22 = pair
        theta = 0.0 if "ntk" in names else None
        row, column = (network.diagonal(State(q[None], theta), after=False)[1] for q in (q11, q22))
        state = network.pairs(State(q12[None, None], theta), row, column, after=False)
        return tuple(kernel[0, 0] for kernel in _chosen(names, _ended(state)))

    return jax.vmap(one, in_axes=1)(pairs)


def _double():
    """JAX in 64 bits, whatever it is set to, for what is done once."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()  # type: ignore[attr-defined]


def _chosen(names: tuple[str, ...], state: State) -> tuple[Any, ...]:
    return tuple({"nngp": state.q, "ntk": state.theta}[name] for name in names)


@partial(jax.jit, static_argnames="names")
def _whole(network: Network, names, rows, columns, ends) -> tuple[Array, ...]:
    """All pairs at once; with `ends`, the diagonals, symmetric."""
    kernels = _tile(names)(network, rows, columns)
    return kernels if ends is None else tuple(map(_mirrored, kernels, ends))


def _traced(tree) -> bool:
    """Whether JAX is tracing some of it, or whatever is computed here. Nothing is compiled for its shapes."""
    try:
        np.asarray(jnp.zeros(()))
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array):
                leaf.devices()
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return True
    return False


def _is_trace(x) -> bool:
    return isinstance(x, Trace)


def _remedy(layer: Layer, q: float, name: str) -> str:
    norms = layer.fns.norms if isinstance(layer, Activation) else None
    if norms is None and q < 1e-15:
        return f"Products of variances underflow: scale the rows of {name} up, or compute in float64"
    if norms is not None and q < norms[0] ** 2:
        return f"Scale the rows of {name} up, take b_std > 0 before it, or Activation(..., norms=(less, {norms[1]:g}))"
    wider = "" if norms is None else f", or Activation(..., norms=({norms[0]:g}, more))"
    return f"Scale the rows of {name} down, or take a smaller W_std or b_std in the layers before{wider}"


def _ended(state: State) -> State:
    """With a Theta of the shape of q, also where no weights came."""
    return State(state.q, jnp.zeros_like(state.q)) if is_zero(state.theta) else state


@jax.jit
def _any_bad(trace) -> Array:
    return jnp.stack([part.bad.any() for part in jax.tree.leaves(trace, is_leaf=_is_trace)]).any()


def _mirrored(kernel: Array, diagonal: Array) -> Array:
    """The upper triangle (n, n) on both sides of the diagonal (n,)."""
    upper = jnp.triu(kernel, 1)
    return jnp.where(jnp.eye(len(diagonal), dtype=bool), diagonal[:, None], upper + upper.T)


# ------------------------------------------------------------------------------------------------------------- inputs


def _names(get) -> tuple[str, ...]:
    names = (get,) if isinstance(get, str) else tuple(get) if isinstance(get, tuple | list) else ()
    if not names or set(names) - set(KERNELS) or len(set(names)) < len(names):
        raise ValueError(f"get={get!r} came; 'nngp', 'ntk' or a tuple of them such as ('nngp', 'ntk') was expected")
    return names


@lru_cache
def _result(names: tuple[str, ...]):
    """The named tuple of these kernels: one class each, as JAX compares results by class."""
    return namedtuple("Kernels", names)


def _tolerance(tol) -> float | None:
    try:
        number = None if tol is None else float(tol)
    except (TypeError, ValueError):
        number = -1.0
    if number is not None and not 0 <= number < 1 or isinstance(tol, bool):
        raise ValueError(f"tol={tol!r} came; a number in [0, 1) was expected, as 1e-6, or None")
    return number


@jax.jit
def _not_finite(rows: Array) -> tuple[Array, Array]:
    """Which rows are not finite, (n,), and whether any is."""
    bad = ~jnp.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    return bad, bad.any()


def _points(data, name: str) -> Array:
    """Finite floats (at least float32): vectors (n, d) or images (n, height, width, channels)."""
    try:
        rows = jnp.asarray(data)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: a {type(data).__name__} came that is not an array (n, d) of numbers: {error}"
        ) from None
    if rows.ndim not in (2, 4):
        raise ValueError(
            f"{name} has shape {rows.shape}; (n, d) was expected, one row per point, or images (n, height, width, "
            "channels). For one point take x[None, :], for numbers x[:, None], for images in grey x[..., None]"
        )
    if 0 in rows.shape:
        raise ValueError(f"{name} has shape {rows.shape}; at least one row and one feature were expected")
    if jnp.issubdtype(rows.dtype, jnp.complexfloating):
        raise ValueError(f"{name} has dtype {rows.dtype}; real numbers were expected")
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        rows = rows.astype(jnp.zeros(()).dtype)
    elif jnp.finfo(rows.dtype).bits < 32:
        rows = rows.astype(jnp.float32)
    bad, some = _not_finite(rows)
    if known_true(some):
        row = int(jnp.argmax(bad))
        raise ValueError(
            f"row {row} of {name} has a NaN or an infinite entry (in {rows.dtype}); drop or mend such rows"
        )
    return rows
