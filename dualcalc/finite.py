"""Kernels of networks of finite width, by sampling: an independent check of the infinitely wide ones.

`monte_carlo` draws the weights of a network many times, runs it, and averages: what `networks.py` and `conv.py` compute
in closed form is the limit for large widths. It needs the activation, not its dual, and none of the kernel formulas, so
it serves to check a new layer or activation, and to see how far a network of a given width is from its limit.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .layers import Place
from .networks import Network, _names, _result

OUTPUTS = 4
"""So many outputs, drawn anew for every sample, give its NTK: outputs differ less than samples, and cost as much."""


class Estimate(NamedTuple):
    """The mean over samples (n, m), and its standard error. The bias of a finite width, about 1/width, is not in it."""

    mean: Array
    error: Array


def monte_carlo(
    net: Network,
    X,
    Y=None,
    get: str | tuple[str, ...] = "ntk",
    *,
    key: Array,
    width: int = 256,
    samples: int = 64,
):
    """Kernels of `net` with `width` units (channels) in every layer, the last too, averaged over random weights.

    X, Y, get   as a network takes them. NNGP: f_j(x) f_j(y), averaged over all outputs j. NTK: the sum over weights and
                biases w of df_j(x)/dw df_j(y)/dw, averaged over some outputs (`OUTPUTS`)
    key         of jax.random, such as jax.random.key(0)
    samples     2 or more, one after the other, so that memory does not grow with them: for the NTK it is the gradient
                of one output in all weights, for all points
    Returns an `Estimate`, or for a tuple `get` a named tuple of them, in JAX's default precision.

    In the standard parameterization a layer's own part of the NTK, fan_in q + [b_std > 0], counts its inputs. Estimate
    and kernel agree where every `fan_in` is what the layer has here: the features of X for a first Dense, its channels
    times the window's size for a first Conv; `width` (times the window's size) behind a layer with weights; `width`
    times the pixels for Dense behind Flatten. The first layer agrees exactly, others in the limit.

    Raises ValueError for kernels whose activation is unknown, for Dropout, and for an activation before all weights:
    its kernel takes its inputs as Gaussian, which those of a finite network are not.
    """
    names = _names(get)
    X, Y = net._inputs(X, Y)
    _check(key, width, samples)
    try:
        net.follow(Place(X.shape[1:-1], gaussian=False))
    except ValueError:
        raise ValueError(
            f"{net!r} has an activation before all weights: its kernel takes the inputs as Gaussian, and those of a "
            "finite network are given numbers. Put a Dense or Conv before it"
        ) from None
    precision = jnp.zeros(()).dtype  # of the weights that `init` draws
    net, points = jax.tree.map(lambda numbers: jnp.asarray(numbers, precision), (net, (X,) if Y is None else (X, Y)))
    # The network is part of the program, not its argument: an activation's formula is read for known parameters.
    try:
        with jax.numpy_rank_promotion("allow"):  # biases are vectors
            estimates = jax.jit(partial(_estimates, net, names, width, samples))(points, key)
    except NotImplementedError as reason:
        raise ValueError(str(reason)) from None
    return estimates[0] if isinstance(get, str) else _result(names)(*estimates)


def _estimates(net, names, width, samples, points, key) -> tuple[Estimate, ...]:
    first = partial(_sample, net, names, width, points)
    kernels = jax.lax.map(first, jax.random.split(key, samples))
    return tuple(Estimate(k.mean(axis=0), k.std(axis=0, ddof=1) / np.sqrt(samples)) for k in kernels)


def _sample(net, names, width, points, key) -> tuple[Array, ...]:
    """The kernels of one network."""
    for_weights, for_outputs = jax.random.split(key)
    (outputs,), weights = net.init(for_weights, points[0].shape[1:], width)
    kernels = {}
    if "nngp" in names:
        kernels["nngp"] = _gram([net.apply(weights, X) for X in points]) / outputs
    if "ntk" in names:

        def of(output: Array) -> Array:
            def gradient(x: Array):
                return jax.grad(lambda w: net.apply(w, x[None])[0, output])(weights)

            sides = [jax.tree.leaves(jax.vmap(gradient)(X)) for X in points]
            blocks = (_gram([g.reshape(len(g), -1) for g in block]) for block in zip(*sides, strict=True))
            return sum(blocks, jnp.zeros((len(points[0]), len(points[-1]))))  # all zero without weights

        chosen = jax.random.choice(for_outputs, outputs, (min(outputs, OUTPUTS),), replace=False)
        kernels["ntk"] = jax.lax.map(of, chosen).mean(axis=0)
    return tuple(kernels[name] for name in names)


def _gram(sides: list[Array]) -> Array:
    return jnp.matmul(sides[0], sides[-1].T, precision="highest")


def _check(key, width, samples) -> None:
    try:
        single = jax.eval_shape(jax.random.split, key).shape[:1] == (2,) and jnp.ndim(jax.random.bits(key)) == 0
    except (TypeError, ValueError):
        single = False
    if not single:
        raise ValueError(f"key={key!r} came; one key of jax.random was expected, such as jax.random.key(0)")
    for name, value, least in (("width", width, 1), ("samples", samples, 2)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r} came; an integer of {least} or more was expected")
