"""The layers of infinitely wide networks: what they do to the state (q, Theta) of a pair of inputs.

A layer is a small record that maps the state of pairs, given the variances q11 and q22 of the two inputs at the same
place (docs/duals.md; neural-tangents' conventions). Layers are JAX pytrees whose leaves are the hyperparameters, so
that `jit`, `grad` and `vmap` reach them, and a new value compiles nothing. `networks.py` puts them together, `conv.py`
adds those for images. `init` and `apply` are the layer of a network of finite width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .codegen import Compiled, NoClosedForm
from .codegen import compile as compile_dual
from .runtime import known_true

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
            self.theta if self.theta is None or is_zero(self.theta) else f(self.theta),
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
        return State(q, theta if theta is None or is_zero(theta) else _with_same_pixels(theta, state.theta), 4)

    def __add__(self, other: State) -> State:
        """Of the sum of independent signals."""
        if self.pixels != other.pixels:
            return self.same() + other.same()
        theta = None if self.theta is None or other.theta is None else self.theta + other.theta
        return State(self.q + other.q, theta, self.pixels)


def same(states):
    """Without the pairs of different pixels, also of branches."""
    return tuple(map(same, states)) if isinstance(states, tuple) else states.same()


def is_zero(theta) -> bool:
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
        """The degree in the norms after the layer, given that before: 0 where they do not matter, None for none."""
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
        return State(q, own if is_zero(summed.theta) else own + w * summed.theta, summed.pixels)

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
    if name == "W_std" and isinstance(value, int) and value >= WIDTH:
        warnings.warn(f"W_std = {value} came: layers are infinitely wide and have no width; leave it out", stacklevel=4)


WIDTH = 16  # an integer W_std from here on is taken for the width that finite layers have


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

        weighted = not (state.theta is None or is_zero(state.theta))

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

    def diagonal(self, state: State) -> tuple[State, Any]:
        """The diagonal pass; rows are bad, too, where the determinant of two such variances underflows."""
        after, trace = super().diagonal(state)
        low = (trace.q > 0) & (trace.q * trace.q < 128 * jnp.finfo(trace.q.dtype).tiny)
        return after, trace._replace(bad=trace.bad | low.reshape(len(low), -1).any(axis=1))

    def _applied(self, state: State, k: Callable, kdot: Callable) -> State:
        q = k()
        if state.theta is None or is_zero(state.theta):
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

    def __reduce__(self):
        """Pickled as it was written: generated code is compiled anew where it is read."""
        return partial(Activation, self.formula.spec, **self.formula.fixed, **self.arguments), ()

    def __deepcopy__(self, memo) -> Activation:
        return self  # frozen

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
