"""Exact NNGP and NTK of infinitely wide networks: `serial(Dense(W_std=1.5), Activation("gelu"), Dense())(X, Y)`.

A layer is a small record with one act on scalars: it maps the state (q, Theta) of a pair of inputs, given the variances
q11 and q22 of the two at the same place (MATH.md section 1; neural-tangents' conventions, NTK parameterisation). A
network applies the acts twice: on the diagonal, where a pair is (x, x), which gives the variance of every row at every
layer in O(n); then on all pairs at once. Layers are JAX pytrees whose leaves are the hyperparameters, so that `jit`,
`grad` and `vmap` reach them, and a new value compiles nothing. `gram.py` evaluates networks by tiles.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .codegen import Compiled, NoClosedForm
from .codegen import compile as compile_dual
from .runtime import known_true

KERNELS = ("nngp", "ntk")
"""What `get` may ask for."""


class State(NamedTuple):
    """Where a pair of inputs stands: the covariance q of its preactivations and Theta, None unless the NTK is asked."""

    q: Array
    theta: Array | None


# ------------------------------------------------------------------------------------------------------------- layers


def _pytree(leaves: tuple[str, ...], static: tuple[str, ...]):
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


@_pytree(leaves=("W_std", "b_std"), static=())
@dataclass(frozen=True)
class Dense:
    """A fully connected layer, weights of variance W_std^2 / width and biases of variance b_std^2.

    W_std, b_std   numbers or JAX scalars; only their squares matter
    """

    W_std: float | Array = 1.0
    b_std: float | Array = 0.0

    domain = "all q >= 0"

    def __post_init__(self):
        for name in ("W_std", "b_std"):
            _check_scalar(name, getattr(self, name))

    def act(self, state: State, q11: Array, q22: Array) -> State:
        """q' = W_std^2 q + b_std^2, Theta' = q' + W_std^2 Theta, in the precision of q."""
        w, b = (jnp.square(jnp.asarray(std, state.q.dtype)) for std in (self.W_std, self.b_std))
        q = w * state.q + b
        return State(q, None if state.theta is None else q + w * state.theta)

    def act_diagonal(self, state: State) -> State:
        """The same for the pairs (x, x)."""
        return self.act(state, state.q, state.q)


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


@_pytree(leaves=("arguments",), static=("formula",))
@dataclass(frozen=True, init=False, repr=False)
class Activation:
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

    def act(self, state: State, q11: Array, q22: Array) -> State:
        """q' = k(q, q11, q22), Theta' = Theta kdot(q, q11, q22)."""
        q12 = _projected(state.q, q11, q22)
        return self._applied(state, *(partial(f, q12, q11, q22, **self.arguments) for f in (self.fns.k, self.fns.kdot)))

    def act_diagonal(self, state: State) -> State:
        """The same for the pairs (x, x); of an approximation from one-dimensional quadrature."""
        if self.fns.diagonal is None:
            return self.act(state, state.q, state.q)
        return self._applied(state, *(partial(f, state.q) for f in self.fns.diagonal))

    def _applied(self, state: State, k: Callable, kdot: Callable) -> State:
        q = k()
        if state.theta is None:
            return State(q, None)
        try:
            return State(q, state.theta * kdot())
        except NoClosedForm as reason:
            raise NoClosedForm(f"{self!r}: {reason}") from None

    def __repr__(self) -> str:
        given = {**self.formula.fixed, **self.arguments}
        return f"Activation({', '.join([_show(self.formula.spec), *(f'{n}={v!r}' for n, v in given.items())])})"


def _projected(q12: Array, q11: Array, q22: Array) -> Array:
    """q12 within Cauchy-Schwarz, with the derivative of q12.

    For parallel rows x.y can overshoot |x| |y| by the rounding of d additions, more than the 10 eps q11 q22 in the
    determinant that `runtime.gram_det` forgives (beyond them it says NaN). Two eps are left over the edge: there the
    determinant is exactly 0, where rounding of the square roots would put a pair just inside (NTK of relu: 1e-8)."""
    most = jnp.sqrt(q11) * jnp.sqrt(q22) * (1 + 2 * float(jnp.finfo(q12.dtype).eps))
    return q12 + jax.lax.stop_gradient(jnp.clip(q12, -most, most) - q12)


def _show(spec) -> str:
    return repr(spec) if isinstance(spec, str) else str(spec)


# ------------------------------------------------------------------------------------------------------------ network


@_pytree(leaves=("layers",), static=())
@dataclass(frozen=True, repr=False)
class Network:
    """Layers one after the other; a kernel function of inputs. Build it with `serial`."""

    layers: tuple[Dense | Activation, ...]

    def __post_init__(self):
        if not self.layers:
            raise ValueError("serial() came without layers; at least one was expected, as in serial(Dense())")
        for number, layer in enumerate(self.layers, 1):
            if not isinstance(layer, Dense | Activation):
                raise ValueError(f"layer {number} of serial: {_what_came(layer)}")

    def __call__(self, X, Y=None, get: str | tuple[str, ...] = "ntk"):
        """The kernel of every row of X with every row of Y, (n, m), in their precision (the wider of the two).

        X, Y   (n, d) and (m, d): NumPy or JAX arrays or nested lists, finite; integers are taken as floats. Without Y
               the pairs of X: exactly symmetric, the diagonal from k(q, q, q) and kdot(q, q, q)
        get    "nngp", "ntk", or a tuple of them, which gives a named tuple in that order
        Raises NoClosedForm for the NTK of an activation that jumps, ValueError for a row outside the domain of an
        activation (while JAX traces, that row becomes inf or NaN instead).
        """
        names = _names(get)
        X, Y = _inputs(X, Y)
        rows = self._variances(X, "ntk" in names, "X")
        columns = None if Y is None else self._variances(Y, "ntk" in names, "Y")
        state = _pairs(self, X, Y, rows, columns)
        values = {"nngp": state.q, "ntk": state.theta}
        return values[get] if isinstance(get, str) else _result(names)(*(values[name] for name in names))

    def _variances(self, X: Array, ntk: bool, name: str) -> tuple[State, ...]:
        """The diagonal pass, (n,) each; ValueError where a row leaves a layer's domain."""
        states, bad = _diagonal(self, X, ntk)
        if known_true(bad.any()):
            place, row = divmod(int(jnp.argmax(bad)), len(X))
            number = max(place, 1)  # place 0 is the input itself
            layer, q = self.layers[number - 1], jax.lax.stop_gradient(states[number - 1].q)
            raise ValueError(
                f"row {row} of {name} has variance q = {float(q[row]):.6g} at layer {number}, {layer!r}, whose output "
                f"is not finite there (its domain: {layer.domain}; {q.dtype} ends at {jnp.finfo(q.dtype).max:.1e}). "
                f"Scale the rows of {name} down, or take a smaller W_std or b_std in the layers before"
            )
        return states

    def __repr__(self) -> str:
        return f"serial({', '.join(map(repr, self.layers))})"


def serial(*layers) -> Network:
    """The network of these layers, in order; a Network among them contributes its layers."""
    return Network(tuple(inner for x in layers for inner in (x.layers if isinstance(x, Network) else (x,))))


def _what_came(layer) -> str:
    if isinstance(layer, type):
        return f"the class {layer.__name__} came; a layer was expected: {layer.__name__}(...)"
    hint = f"; did you mean Activation({layer!r})?" if isinstance(layer, str) else ""
    return f"{layer!r} ({type(layer).__name__}) came; Dense(...), Activation(...) or a network was expected{hint}"


# --------------------------------------------------------------------------------------------------------- two passes


@partial(jax.jit, static_argnames="ntk")
def _diagonal(network: Network, X: Array, ntk: bool) -> tuple[tuple[State, ...], Array]:
    """The states (n,) of the pairs (x, x) at the input of every layer and at the output; where q is not finite there.

    Outside an activation's domain of norms generated code gives inf."""
    q = jnp.einsum("nd,nd->n", X, X, precision="highest") / X.shape[1]
    states = [State(q, jnp.zeros_like(q) if ntk else None)]
    for layer in network.layers:
        state = states[-1]
        states.append(layer.act_diagonal(state))
    return tuple(states), ~jnp.isfinite(jnp.stack([state.q for state in states]))


@jax.jit
def _pairs(network: Network, X: Array, Y: Array | None, rows, columns) -> State:
    """The state (n, m) of all pairs at the output; `rows` and `columns` are the diagonal passes of X and Y."""
    q = jnp.matmul(X, (X if Y is None else Y).T, precision="highest") / X.shape[1]
    state = State(q, None if rows[-1].theta is None else jnp.zeros_like(q))
    for layer, row, column in zip(network.layers, rows, rows if Y is None else columns, strict=False):
        state = layer.act(state, row.q[:, None], column.q[None, :])
    return jax.tree.map(_mirrored, state, rows[-1]) if Y is None else state


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


def _inputs(X, Y) -> tuple[Array, Array | None]:
    """X (n, d) and Y (m, d), checked, in the wider of their precisions."""
    X = _rows(X, "X")
    if Y is None:
        return X, None
    Y = _rows(Y, "Y")
    if X.shape[1] != Y.shape[1]:
        raise ValueError(
            f"X has shape {X.shape} and Y {Y.shape}; both must have the same number of features d in (n, d) and (m, d)"
        )
    wider = np.promote_types(X.dtype, Y.dtype)
    return X.astype(wider), Y.astype(wider)


def _rows(data, name: str) -> Array:
    """A matrix of finite floats (at least float32), one row per point."""
    try:
        rows = jnp.asarray(data)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: a {type(data).__name__} came that is not an array (n, d) of numbers: {error}"
        ) from None
    if rows.ndim != 2:
        raise ValueError(
            f"{name} has shape {rows.shape}; (n, d) was expected, one row per point. For one point take x[None, :], "
            "for numbers x[:, None], for images x.reshape(len(x), -1)"
        )
    if 0 in rows.shape:
        raise ValueError(f"{name} has shape {rows.shape}; at least one row and one feature were expected")
    if jnp.issubdtype(rows.dtype, jnp.complexfloating):
        raise ValueError(f"{name} has dtype {rows.dtype}; real numbers were expected")
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        rows = rows.astype(jnp.zeros(()).dtype)
    elif jnp.finfo(rows.dtype).bits < 32:
        rows = rows.astype(jnp.float32)
    bad = ~jnp.isfinite(rows).all(axis=1)
    if known_true(bad.any()):
        row = int(jnp.argmax(bad))
        raise ValueError(
            f"row {row} of {name} has a NaN or an infinite entry (in {rows.dtype}); drop or mend such rows"
        )
    return rows
