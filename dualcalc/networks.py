"""Exact NNGP and NTK of infinitely wide networks: `serial(Dense(W_std=1.5), Activation("gelu"), Dense())(X, Y)`.

A layer is a small record that maps the state (q, Theta) of pairs of inputs, given the variances q11 and q22 of the two
at the same place (MATH.md section 1; neural-tangents' conventions). A network is evaluated twice: on the diagonal,
where a pair is (x, x), which gives the variance of every row at every layer in O(n); then on all pairs, by the tiles of
`gram.py`. Layers are JAX pytrees whose leaves are the hyperparameters, so that `jit`, `grad` and `vmap` reach them, and
a new value compiles nothing. `conv.py` adds layers for images; `finite.py` samples networks of finite width.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from . import fusion, gram
from .codegen import Compiled, NoClosedForm
from .codegen import compile as compile_dual
from .runtime import known_true

KERNELS = ("nngp", "ntk")
"""What `get` may ask for."""


# -------------------------------------------------------------------------------------------------- pytrees and states


def pytree(leaves: tuple[str, ...], static: tuple[str, ...] = ()):
    """Make a frozen dataclass a JAX pytree. Rebuilding skips its checks: JAX puts placeholders where numbers were."""

    def register(cls):
        def flatten(record):
            return [getattr(record, name) for name in leaves], tuple(getattr(record, name) for name in static)

        def rebuild(values, children):
            record = object.__new__(cls)
            for name, value in zip((*leaves, *static), (*children, *values), strict=True):
                object.__setattr__(record, name, value)
            return record

        jax.tree_util.register_pytree_node(cls, flatten, rebuild)
        return cls

    return register


@pytree(leaves=("q", "theta"), static=("pixels",))
@dataclass(frozen=True)
class State:
    """Where pairs of inputs stand: the covariance q of their preactivations, and Theta.

    q        (n,) on the diagonal or (n, m) for pairs, followed by axes of pixels
    theta    of the shape of q; the number 0 before the first weights; None unless the NTK is asked
    pixels   0 for vectors; 2 (height, width) where a pixel of one image is paired with the same pixel of the other;
             4 (height, width, height, width) for all pairs of pixels
    """

    q: Array
    theta: Any
    pixels: int = 0

    def map(self, f: Callable[[Array], Array], pixels: int | None = None) -> State:
        """f of q and of Theta, for a linear f."""
        return State(
            f(self.q),
            self.theta if self.theta is None or _is_zero(self.theta) else f(self.theta),
            self.pixels if pixels is None else pixels,
        )

    def same(self) -> State:
        """Without the pairs of different pixels."""
        return self.map(_same_pixels, 2) if self.pixels == 4 else self

    def variance(self) -> Array:
        """q of the pairs of equal pixels: on the diagonal, the variances."""
        return _same_pixels(self.q) if self.pixels == 4 else self.q

    def spread(self, q11: Array, q22: Array) -> tuple[Array, Array]:
        """Variances of the pixels of the first and the second image, so that they broadcast with q."""
        if self.pixels < 4:
            return q11, q22
        return q11[..., :, :, None, None], q22[..., None, None, :, :]

    def with_variance(self, state: State) -> State:
        """With the q and Theta of another state at the pairs of equal pixels."""
        if self.pixels < 4:
            return state
        q, theta = _with_same_pixels(self.q, state.q), self.theta
        return State(q, theta if theta is None or _is_zero(theta) else _with_same_pixels(theta, state.theta), 4)

    def __add__(self, other: State) -> State:
        """Of the sum of independent signals."""
        if self.pixels != other.pixels:
            return self.same() + other.same()
        theta = None if self.theta is None or other.theta is None else self.theta + other.theta
        return State(self.q + other.q, theta, self.pixels)


def _same(states):
    """Without the pairs of different pixels, also of branches."""
    return tuple(map(_same, states)) if isinstance(states, tuple) else states.same()


def _is_zero(theta) -> bool:
    return isinstance(theta, float) and theta == 0.0


def _same_pixels(x: Array) -> Array:
    return jnp.einsum("...hwhw->...hw", x)


def _with_same_pixels(x: Array, same: Array) -> Array:
    height, width = x.shape[-2:]
    h, w = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return x.at[..., h, w, h, w].set(same)


class Trace(NamedTuple):
    """What the diagonal pass leaves of a layer: the variances at its input, and which rows are not finite after it."""

    q: Array
    bad: Array


class Loop(NamedTuple):
    """The traces of a repeated block of layers: of the first time, and of the others, along axis 1."""

    first: Any
    rest: Any


@dataclass(frozen=True)
class Place:
    """What is known of a signal without numbers.

    shape      () of vectors, (height, width) of images; channels are not counted
    gaussian   whether an activation may follow: the signal is Gaussian in the limit
    fresh      whether weights of its own, after the last branching and the last activation, make it independent
    """

    shape: tuple[int, ...]
    gaussian: bool = True
    fresh: bool = False

    def images(self) -> tuple[int, int]:
        """The size of the images; ValueError where they are vectors."""
        if len(self.shape) != 2:
            raise ValueError("it needs images, an input (n, height, width, channels), and vectors came")
        return self.shape[0], self.shape[1]


# ------------------------------------------------------------------------------------------------------------- layers


class Layer:
    """What all layers can do. A layer says what it does to a state in `act`; the rest follows."""

    @property
    def domain(self) -> str:
        """The variances that the layer accepts, in words."""
        return "all q >= 0"

    def follow(self, place: Place) -> Place:
        """What is known after the layer; ValueError with the reason where it cannot stand there."""
        return place

    def needs_pairs(self, after: bool) -> bool:
        """Whether the layer needs all pairs of pixels, given whether the layers after it do."""
        return after

    def homogeneity(self, degree: int | None) -> int | None:
        """The degree in the norms after the layer, given that before it (0: norms do not matter); None: there is none."""
        return degree

    def act(self, state: State, q11: Array, q22: Array) -> State:
        """The state after the layer, of pairs with these variances (which broadcast with the state)."""
        raise NotImplementedError

    def act_diagonal(self, state: State) -> State:
        """The same for the pairs (x, x)."""
        q = state.variance()
        return self.act(state, *state.spread(q, q))

    def diagonal(self, state: State) -> tuple[State, Any]:
        """The diagonal pass: the state (n, ...) of the pairs (x, x) after the layer, and its Trace."""
        after = self.act_diagonal(state)
        wrong = ~jnp.isfinite(after.variance())
        return after, Trace(state.variance(), wrong.reshape(len(wrong), -1).any(axis=1))

    def pairs(self, state: State, rows: Any, columns: Any) -> State:
        """The pass over pairs: the state (n, m, ...) after the layer, given the traces of either side."""
        return self.act(state, *state.spread(rows.q[:, None], columns.q[None, :]))

    def leaves(self, trace: Any, label: str) -> Iterator[tuple[str, Layer, Trace]]:
        """The layers without layers in them, with their traces and a label such as "2.1"."""
        yield label, self, trace

    def init(self, key: Array, shape: tuple[int, ...], width: int) -> tuple[tuple[int, ...], Any]:
        """Random weights of a finite network, and the shape (channels last) that they lead to."""
        return shape, ()

    def apply(self, weights: Any, x: Array) -> Array:
        """The layer of a finite network on x (n, ..., channels)."""
        return x


@dataclass(frozen=True)
class Affine(Layer):
    """Weights and biases: what Dense and Conv share.

    W_std, b_std       numbers or JAX scalars; only their squares matter
    parameterization   "ntk": weights N(0, 1), scaled by W_std/sqrt(fan-in) in the network; "standard": weights
                       N(0, W_std^2/fan-in) (Sohl-Dickstein et al. 2020), whose NTK counts the inputs of a unit
    fan_in             that count, for "standard" only
    """

    W_std: float | Array = 1.0
    b_std: float | Array = 0.0
    parameterization: str = "ntk"
    fan_in: int | None = None

    def __post_init__(self):
        for name in ("W_std", "b_std"):
            _check_scalar(name, getattr(self, name))
        if self.parameterization not in ("ntk", "standard"):
            raise ValueError(f"parameterization={self.parameterization!r} came; 'ntk' or 'standard' was expected")
        standard, fan_in = self.parameterization == "standard", self.fan_in
        if standard != (fan_in is not None) or (standard and not (isinstance(fan_in, int) and fan_in > 0)):
            raise ValueError(
                f"fan_in={fan_in!r} came with parameterization={self.parameterization!r}; the standard "
                "parameterization, and it alone, needs fan_in, the number of inputs of a unit, such as 512"
            )

    def follow(self, place: Place) -> Place:
        return Place(place.shape, gaussian=True, fresh=True)

    def homogeneity(self, degree):
        return degree if degree == 0 or known_true(jnp.asarray(self.b_std) == 0) else None

    def affine(self, summed: State) -> State:
        """q' = W_std^2 q + b_std^2, Theta' = q' + W_std^2 Theta, in the precision of q."""
        w, b = (jnp.square(jnp.asarray(std, summed.q.dtype)) for std in (self.W_std, self.b_std))
        q = w * summed.q + b
        if summed.theta is None:
            return State(q, None, summed.pixels)
        own = q if self.fan_in is None else self.fan_in * summed.q + jnp.sign(b)
        return State(q, own if _is_zero(summed.theta) else own + w * summed.theta, summed.pixels)

    def _draw(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Weights of this shape (the last axis is that of the outputs) and biases."""
        first, second = jax.random.split(key)
        w, b = jax.random.normal(first, shape), jax.random.normal(second, shape[-1:])
        return (w, b) if self.fan_in is None else (self._scale(w) * w, self.b_std * b)

    def _scaled(self, weights: tuple[Array, Array]) -> tuple[Array, Array]:
        """The weights and biases that are applied. A bias of standard deviation 0 is none, and does not learn."""
        w, b = weights
        return (self._scale(w) * w, self.b_std * b) if self.fan_in is None else (w, jnp.sign(self.b_std) ** 2 * b)

    def _scale(self, w: Array):
        return self.W_std / math.sqrt(math.prod(w.shape[:-1]))

    def _numbers(self) -> str:
        """The arguments that all have, and what differs from its default."""
        standard = "" if self.fan_in is None else f", parameterization='standard', fan_in={self.fan_in}"
        return f"W_std={self.W_std!r}, b_std={self.b_std!r}{standard}"


@pytree(leaves=("W_std", "b_std"), static=("parameterization", "fan_in"))
@dataclass(frozen=True, repr=False)
class Dense(Affine):
    """A fully connected layer, weights of variance W_std^2/fan-in and biases of variance b_std^2.

    Arguments as in `Affine`. On images it acts on every pixel.
    """

    def act(self, state: State, q11: Array, q22: Array) -> State:
        return self.affine(state)

    def init(self, key, shape, width):
        return (*shape[:-1], width), self._draw(key, (shape[-1], width))

    def apply(self, weights, x):
        w, b = self._scaled(weights)
        return x @ w + jnp.expand_dims(b, tuple(range(x.ndim - 1)))

    def __repr__(self) -> str:
        return f"Dense({self._numbers()})"


def _check_scalar(name: str, value) -> None:
    array = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and not jnp.iscomplexobj(value)
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not (array or number):
        raise ValueError(f"{name} = {value!r} came; a real number or a JAX scalar was expected")
    if known_true(~jnp.isfinite(value)):
        raise ValueError(f"{name} = {value!r} came; a finite number was expected")


@dataclass(frozen=True)
class Formula:
    """What of an Activation is fixed while JAX traces; equal where the generated code is, so that JAX compiles once."""

    spec: Any = field(compare=False)
    fixed: Mapping[str, Any] = field(compare=False)
    fns: Compiled = field(compare=False)
    code: object


@pytree(leaves=("arguments",), static=("formula",))
@dataclass(frozen=True, init=False, repr=False)
class Activation(Layer):
    """An activation between layers: `Activation("gelu")`, `Activation("abrelu", A=0.3, B=1.1)`.

    spec         a catalog id, a text in t or x, a SymPy expression, or a Dual
    tol, norms   of an activation without closed form: the error of its approximation over sqrt(k11 k22), and the range
                 of sqrt(q) in which it holds (`compile`); rows outside raise
    parameters   numbers become exact rationals in the formula; JAX scalars stay arguments of the code, so that `jit`
                 and `grad` reach them; what is not given takes the catalog's default
    Raises ValueError where a parameter has no value or the tolerance cannot be reached.
    """

    formula: Formula
    arguments: dict[str, Array] = field(hash=False)

    def __init__(self, spec, **parameters):
        arguments = {name: value for name, value in parameters.items() if isinstance(value, jax.Array)}
        fixed = {name: value for name, value in parameters.items() if name not in arguments}
        fns = compile_dual(spec, **fixed)
        # a kernel given as a callable has no code: it is equal to itself alone
        object.__setattr__(self, "formula", Formula(spec, fixed, fns, fns.source or fns.k))
        object.__setattr__(self, "arguments", arguments)
        self._check_parameters()

    def _check_parameters(self) -> None:
        free = {symbol.name: symbol for symbol in self.fns.dual.parameters}
        for name, value in self.arguments.items():
            if name not in free:
                known = ", ".join(free) or "none"
                raise ValueError(f"{self!r}: {name} is not a free parameter of it; those are: {known}")
            _check_scalar(name, value)
            below = value <= 0 if free[name].is_positive else value < 0
            if free[name].is_nonnegative and known_true(below):
                sign = "positive" if free[name].is_positive else "nonnegative"
                raise ValueError(f"{self!r}: {name} = {value} came; the formula needs a {sign} {name}")
        for name in free:
            if name not in self.arguments and name not in self.fns.dual.defaults:
                raise ValueError(
                    f"{self!r}: the parameter {name} has neither a value nor a default. "
                    f"Give it one: Activation({_show(self.formula.spec)}, {name}=1.0)"
                )

    @property
    def fns(self) -> Compiled:
        return self.formula.fns

    @property
    def domain(self) -> str:
        """The variances for which the activation is square-integrable, or its approximation holds, in words."""
        if self.fns.norms is not None:
            return f"norms {self.fns.norms[0]:g} <= sqrt(q) <= {self.fns.norms[1]:g}"
        return self.fns.dual.domain

    def follow(self, place: Place) -> Place:
        if not place.gaussian:
            raise ValueError(
                "its input is not Gaussian: an activation came before it. Put a Dense or Conv between them"
            )
        return Place(place.shape, gaussian=False)

    def act(self, state: State, q11: Array, q22: Array) -> State:
        """q' = k(q, q11, q22), Theta' = Theta kdot(q, q11, q22)."""

        weighted = not (state.theta is None or _is_zero(state.theta))

        def applied() -> State:
            q12 = _projected(state.q, q11, q22)
            functions = (partial(f, q12, q11, q22, **self.arguments) for f in (self.fns.k, self.fns.kdot))
            return self._applied(State(state.q, state.theta if weighted else None, state.pixels), *functions)

        after = _apart(applied)
        return after if weighted else State(after.q, state.theta, state.pixels)

    def act_diagonal(self, state: State) -> State:
        """The same for the pairs (x, x); of an approximation from one-dimensional quadrature."""
        if self.fns.diagonal is None:
            return super().act_diagonal(state)
        same = state.same()
        exact = self._applied(same, *(partial(f, same.q) for f in self.fns.diagonal))
        return super().act_diagonal(state).with_variance(exact) if state.pixels == 4 else exact

    def _applied(self, state: State, k: Callable, kdot: Callable) -> State:
        q = k()
        if state.theta is None or _is_zero(state.theta):
            return State(q, state.theta, state.pixels)
        try:
            return State(q, state.theta * kdot(), state.pixels)
        except NoClosedForm as reason:
            raise NoClosedForm(f"{self!r}: {reason}") from None

    def homogeneity(self, degree):
        own = self.fns.dual.homogeneity if self.fns.method in ("closed form", "given kernel") else None
        return degree if not degree else None if own is None else own * degree

    def apply(self, weights, x):
        return self.fns.activation(x, **self.arguments)

    def __repr__(self) -> str:
        given = {**self.formula.fixed, **self.arguments}
        return f"Activation({', '.join([_show(self.formula.spec), *(f'{n}={v!r}' for n, v in given.items())])})"


def _apart(f: Callable):
    """f(), as a computation of its own: a branch that is always taken, which XLA does not know.

    Else XLA computes an activation anew for whatever needs it: for both kernels in the next layer, and, without vector
    instructions, for every shifted copy that a convolution takes. A depth-3 network takes twice the time, a
    convolutional one four times; `optimization_barrier` alone is gone before XLA decides that."""
    return jax.lax.cond(jax.lax.optimization_barrier(jnp.zeros((), bool)), f, f)


def _projected(q12: Array, q11: Array, q22: Array) -> Array:
    """q12 within Cauchy-Schwarz, with the derivative of q12.

    For parallel rows x.y can overshoot |x| |y| by the rounding of d additions, more than the 10 eps q11 q22 in the
    determinant that `runtime.gram_det` forgives (beyond them it says NaN). Two eps are left over the edge: there the
    determinant is exactly 0, where rounding of the square roots would put a pair just inside (NTK of relu: 1e-8)."""
    most = jnp.sqrt(q11) * jnp.sqrt(q22) * (1 + 2 * float(jnp.finfo(q12.dtype).eps))
    return q12 + jax.lax.stop_gradient(jnp.clip(q12, -most, most) - q12)


def _show(spec) -> str:
    return repr(spec) if isinstance(spec, str) else str(spec)


@pytree(leaves=())
@dataclass(frozen=True)
class Identity(Layer):
    """Nothing: a branch that hands its input on."""

    def act(self, state: State, q11: Array, q22: Array) -> State:
        return state


@pytree(leaves=())
@dataclass(frozen=True)
class LayerNorm(Layer):
    """Every vector (of an image, every pixel's channels) to mean square 1, without an epsilon: q and Theta divided by
    sqrt(q11 q22). Zero rows stay zero."""

    def homogeneity(self, degree):
        return None if degree is None else 0

    def act(self, state: State, q11: Array, q22: Array) -> State:
        zero = (q11 == 0) | (q22 == 0)
        scale = jnp.where(
            zero, 0.0, jax.lax.rsqrt(jnp.where(zero, 1.0, q11)) * jax.lax.rsqrt(jnp.where(zero, 1.0, q22))
        )
        return state.map(lambda x: x * scale)

    def apply(self, weights, x):
        square = jnp.mean(x * x, axis=-1, keepdims=True)
        return jnp.where(square == 0, 0.0, x / jnp.sqrt(jnp.where(square == 0, 1.0, square)))


@pytree(leaves=("factor",))
@dataclass(frozen=True)
class Scale(Layer):
    """The signal times a number: q and Theta times its square."""

    factor: float | Array

    def __post_init__(self):
        _check_scalar("factor", self.factor)

    def act(self, state: State, q11: Array, q22: Array) -> State:
        square = jnp.square(jnp.asarray(self.factor, state.q.dtype))
        return state.map(lambda x: square * x)

    def apply(self, weights, x):
        return self.factor * x


@pytree(leaves=(), static=("rate",))
@dataclass(frozen=True)
class Dropout(Layer):
    """Units set to zero with probability `rate`, the others divided by 1 - rate, anew for every input (and pixel).

    Variances are divided by 1 - rate, covariances of different inputs stay: the kernel of a network while it trains.
    At test time there is no dropout: leave the layer out.
    """

    rate: float

    def __post_init__(self):
        if not (isinstance(self.rate, int | float) and 0 <= self.rate < 1):
            raise ValueError(f"rate={self.rate!r} came; the probability that a unit is dropped was expected, in [0, 1)")

    def act(self, state: State, q11: Array, q22: Array) -> State:
        return state

    def act_diagonal(self, state: State) -> State:
        return state.with_variance(state.same().map(lambda x: x / (1 - self.rate)))

    def apply(self, weights, x):
        raise NotImplementedError("the finite network of Dropout is not sampled; leave the layer out")


# ------------------------------------------------------------------------------------------------------------ branches


@pytree(leaves=(), static=("number",))
@dataclass(frozen=True)
class FanOut(Layer):
    """The signal handed to `number` branches: `serial(FanOut(2), parallel(a, b), FanInSum())`."""

    number: int

    def __post_init__(self):
        if not (isinstance(self.number, int) and self.number > 0):
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
        tol    of depth fusion, which takes the place of the recursion where the rows have one norm or the network is
               homogeneous (`fusion.py`): its largest error over the largest entry. 4 eps in float32 if not given; 0,
               and float64 if nothing is given, is the recursion
        out, overwrite, tile, memory, progress, devices   of the tiles: see `gram.compute`. With `out`, paths of `.npy`
               files, the result is memory-mapped; without, JAX arrays. While JAX traces there are no tiles
        Raises NoClosedForm for the NTK of an activation that jumps, ValueError for layers that cannot follow each
        other or a row outside the domain of an activation (while JAX traces, that row becomes inf or NaN instead).
        """
        names = _names(get)
        X, Y = self._inputs(X, Y)
        sides = [(X, "X")] if Y is None else [(X, "X"), (Y, "Y")]
        passes = [self._variances(Z, "ntk" in names, name, memory) for Z, name in sides]
        points = [(Z, trace) for (Z, _), (trace, _) in zip(sides, passes, strict=True)]
        ends = None if Y is not None else _chosen(names, passes[0][1])
        if _traced((self, X, Y)):
            kernels = _whole(self, names, points[0], points[-1], ends)
        else:
            near = X.ndim == 2 and X.dtype == jnp.float32
            arrays = [np.asarray(Z) for Z, _ in points]
            function, left, right = self._fused(names, [Z for Z, _ in points], tol, near) or (
                Partial(_tile(names, near), self),
                points[0],
                points[-1],
            )
            kernels = gram.compute(
                function,
                left,
                None if Y is None else right,
                diagonal=ends,
                out=out,
                overwrite=overwrite,
                tile=tile,
                memory=memory,
                bytes_per_pair=self._bytes_per_pair(X),
                progress=progress,
                devices=devices,
                mend=partial(self._mended, names, arrays[0], arrays[-1]) if near else None,
            )
            kernels = kernels if out is not None else tuple(map(jax.device_put, kernels))
        return kernels[0] if isinstance(get, str) else _result(names)(*kernels)

    def fusion(self, X, Y=None, get: str | tuple[str, ...] = "ntk", tol: float | None = None) -> fusion.Fused | None:
        """The polynomials that a call with these arguments takes (degree and error are on them), None for recursion."""
        X, Y = self._inputs(X, Y)
        return self._path(_names(get), [Z for Z in (X, Y) if Z is not None], tol)[0]

    def _path(self, names, sides: list[Array], tol: float | None):
        """Polynomials of c at a fixed norm, the degree of the network in the norms, the variances of either side; None
        for the polynomials where norms matter or there is no tolerance."""
        eps, single = float(jnp.finfo(sides[0].dtype).eps), sides[0].dtype == jnp.float32
        tol = (4 * eps if single else 0.0) if tol is None else tol
        if sides[0].ndim == 4 or not tol > 0:
            return None, 0, []
        variances = [jnp.einsum("nd,nd->n", Z, Z, precision="highest") / Z.shape[1] for Z in sides]
        low, high = (float(f([f(q) for q in map(np.asarray, variances)])) for f in (np.min, np.max))
        degree, q = self.homogeneity(1), 1.0
        if degree is None and high - low <= 8 * eps * high:
            degree, q = 0, high
        elif degree is None or (degree == 0 and low == 0):
            return None, 0, variances
        leaves, structure = jax.tree.flatten(self)
        return _polynomials(structure, tuple(map(float, leaves)), names, q, sides[0].dtype, tol), degree, variances

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
        count = 1 << max(6, (len(i) - 1).bit_length())  # few shapes, so that little is compiled
        padded = np.pad(np.concatenate(pairs, axis=1), ((0, 0), (0, count - len(i))), mode="edge")
        with _double():
            doubled = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self)
            return [np.asarray(kernel)[: len(i)] for kernel in _one_by_one(names, doubled, jnp.asarray(padded))]

    def _fused(self, names, sides: list[Array], tol: float | None, near: bool):
        """The arguments for `gram.compute` of depth fusion, or None."""
        found, degree, variances = self._path(names, sides, tol)
        if found is None:
            return None
        points = list(zip(sides, variances, strict=True))
        return Partial(_fused_tile(degree, near), found.coefficients), points[0], points[-1]

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
                    f"finite there (its domain: {layer.domain}; {X.dtype} ends at {jnp.finfo(X.dtype).max:.1e}). "
                    f"{_remedy(layer, q, name)}"
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
                state, rest = jax.lax.scan(step, state, _stacked(blocks[1:]))
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
                    state, _ = jax.lax.scan(step, state, (_stacked(blocks[n + 1 :]), *rest))
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

REPEATS = 4
"""So many equal blocks of layers, or more, become a loop."""


def _diagonal_in_turn(needs: tuple[bool, ...], state, layers: tuple[Layer, ...]) -> tuple[Any, list]:
    traces = []
    for layer, needed in zip(layers, needs, strict=True):
        state, trace = layer.diagonal(state if needed else _same(state))
        traces.append(trace)
    return state, traces


def _pairs_in_turn(needs: tuple[bool, ...], state, block) -> tuple[Any, None]:
    for needed, layer, row, column in zip(needs, *block, strict=True):
        state = layer.pairs(state if needed else _same(state), row, column)
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
rows: rounding of x.y is lost to the angle, and depth makes it grow (MATH.md section 3)."""


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


@lru_cache
def _fused_tile(degree: int, near: bool) -> Callable:
    """The same for polynomials of the cosine, of a network of this degree in the norms."""

    @jax.jit
    def tile(coefficients: fusion.Coefficients, rows, columns) -> tuple[Array, ...]:
        (X, q11), (Y, q22) = rows, columns
        a, b = (jnp.where(q == 0, 0.0, jax.lax.rsqrt(q)) for q in (q11, q22))
        c = jnp.matmul(X, Y.T, precision="highest") * (a[:, None] * b[None, :] / X.shape[1])
        scale = jnp.power(q11, degree / 2)[:, None] * jnp.power(q22, degree / 2)[None, :] if degree else 1.0
        kernels = tuple(scale * kernel for kernel in fusion.evaluate(coefficients, jnp.clip(c, -1, 1)))
        return (*kernels, jnp.abs(c) > 1 - NEAR) if near else kernels

    return tile


@lru_cache(maxsize=64)
def _polynomials(structure, numbers: tuple[float, ...], names, q: float, dtype, tol: float) -> fusion.Fused | None:
    """Of the network of this structure and these numbers, along inputs of variance q."""
    with _double():
        network = jax.tree.unflatten(structure, map(np.float64, numbers))
        return fusion.fuse(lambda c: _along(names, network, q, c), dtype, tol)


def _along(names: tuple[str, ...], network: Network, q: float, c: np.ndarray) -> list[np.ndarray]:
    """The kernels of inputs of variance q at the cosines c, by recursion in float64."""
    padded = np.resize(c, max(256, len(c)))  # one shape: compiled once
    return [
        np.asarray(kernel)[: len(c)] for kernel in _recursion(names, network, jnp.asarray([q]), jnp.asarray(padded))
    ]


@partial(jax.jit, static_argnames="names")
def _recursion(names, network: Network, q: Array, c: Array) -> tuple[Array, ...]:
    theta = 0.0 if "ntk" in names else None
    _, trace = network.diagonal(State(q, theta), after=False)
    state = network.pairs(State(q[0] * c[None], theta), trace, trace, after=False)
    return tuple(kernel[0] for kernel in _chosen(names, _ended(state)))


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
    """Whether JAX is tracing some of it."""
    try:
        for leaf in jax.tree.leaves(tree):
            np.asarray(jnp.ravel(leaf)[:1])
    except jax.errors.TracerArrayConversionError:
        return True
    return False


def _is_trace(x) -> bool:
    return isinstance(x, Trace)


def _remedy(layer: Layer, q: float, name: str) -> str:
    norms = layer.fns.norms if isinstance(layer, Activation) else None
    if norms is not None and q < norms[0] ** 2:
        return f"Scale the rows of {name} up, take b_std > 0 before it, or Activation(..., norms=(less, {norms[1]:g}))"
    wider = "" if norms is None else f", or Activation(..., norms=({norms[0]:g}, more))"
    return f"Scale the rows of {name} down, or take a smaller W_std or b_std in the layers before{wider}"


def _ended(state: State) -> State:
    """With a Theta of the shape of q, also where no weights came."""
    return State(state.q, jnp.zeros_like(state.q)) if _is_zero(state.theta) else state


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
    bad = ~jnp.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if known_true(bad.any()):
        row = int(jnp.argmax(bad))
        raise ValueError(
            f"row {row} of {name} has a NaN or an infinite entry (in {rows.dtype}); drop or mend such rows"
        )
    return rows
