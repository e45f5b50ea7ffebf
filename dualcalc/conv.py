"""Layers for images: convolution, pooling, flattening (CNN-GP and CNTK), and the Myrtle networks.

Covariances of images are those of pairs of pixels (docs/networks.md). A convolution averages them over windows that
move along both pixels at once: shifted copies are added along the two heights, then along the two widths. Pooling needs
all pairs of pixels; where none comes behind, only pairs of equal pixels are carried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .layers import Activation, Affine, Dense, Layer, Place, State, pytree
from .networks import Network, serial

PADDINGS = ("SAME", "VALID", "CIRCULAR")


@pytree(leaves=("W_std", "b_std"), static=("window", "strides", "padding", "parameterization", "fan_in"))
@dataclass(frozen=True, init=False, repr=False)
class Conv(Affine):
    """A convolution: `Conv((3, 3), W_std=1.4)`, weights of variance W_std^2/(window size times channels).

    window    (height, width) of the filters
    strides   (down, across)
    padding   "SAME" (zeros outside; ceil(size/stride) pixels come out), "VALID" (none outside) or "CIRCULAR" (around)
    the rest  as in `Affine`; fan_in counts window size times channels
    """

    window: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str = "SAME"

    def __init__(
        self, window, strides=(1, 1), padding="SAME", W_std=1.0, b_std=0.0, parameterization="ntk", fan_in=None
    ):
        for name, value in dict(
            window=_pair(window, "window"), strides=_pair(strides, "strides"), padding=padding
        ).items():
            object.__setattr__(self, name, value)
        if padding not in PADDINGS:
            raise ValueError(f"padding={padding!r} came; one of {', '.join(map(repr, PADDINGS))} was expected")
        super().__init__(W_std, b_std, parameterization, fan_in)

    def follow(self, place: Place) -> Place:
        return Place(self._shape(place.images()), gaussian=True, fresh=True)

    def _shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that come out."""
        if self.padding == "VALID":
            return _windows(shape, self.window, self.strides)
        if any(window > max(2 * size, 64) for window, size in zip(self.window, shape, strict=True)):
            raise ValueError(f"the window {self.window} is larger than twice the images {shape}: take a smaller one")
        return -(-shape[0] // self.strides[0]), -(-shape[1] // self.strides[1])

    def _pads(self, axis: int, size: int) -> tuple[int, int]:
        """Pixels to add before and after."""
        if self.padding == "VALID":
            return 0, 0
        window, stride = self.window[axis], self.strides[axis]
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        return total // 2, total - total // 2

    def _padded(self, x: Array, axes: tuple[int, ...], axis: int) -> Array:
        pads = [(0, 0)] * x.ndim
        for a in axes:
            pads[a] = self._pads(axis, x.shape[a])
        return jnp.pad(x, pads, mode="wrap" if self.padding == "CIRCULAR" else "constant")

    def act(self, state: State, q11: Array, q22: Array) -> State:
        def averaged(x: Array) -> Array:
            for axis in (0, 1):
                axes = (-2 + axis,) if state.pixels == 2 else (-4 + axis, -2 + axis)
                x = slide(self._padded(x, axes, axis), axes, self.window[axis], self.strides[axis])
            return x / (self.window[0] * self.window[1])

        return self.affine(state.map(averaged))

    def init(self, key, shape, width):
        return (*self._shape(shape[:2]), width), self._draw(key, (*self.window, shape[2], width))

    def apply(self, weights, x):
        w, b = self._scaled(weights)
        for axis in (0, 1):
            x = self._padded(x, (1 + axis,), axis)
        x = jax.lax.conv_general_dilated(x, w, self.strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x + b[None, None, None]

    def __repr__(self) -> str:
        return f"Conv({self.window}, strides={self.strides}, padding={self.padding!r}, {self._numbers()})"


def slide(x: Array, axes: tuple[int, ...], window: int, stride: int) -> Array:
    """The sum over windows that move along all the axes together."""
    parts = []
    for offset in range(window):
        part = x
        for axis in axes:
            count = (x.shape[axis] - window) // stride + 1
            part = jax.lax.slice_in_dim(part, offset, offset + (count - 1) * stride + 1, stride, axis % x.ndim)
        parts.append(part)
    return sum(parts[1:], parts[0])


def _pair(value, name: str) -> tuple[int, int]:
    try:
        pair = tuple(int(v) if v == int(v) and not isinstance(v, bool) else 0 for v in value)
    except (TypeError, ValueError, OverflowError):
        pair = ()
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name}={value!r} came; two positive integers were expected, (height, width), as (3, 3)")
    return pair


def _windows(shape: tuple[int, int], window: tuple[int, int], strides: tuple[int, int]) -> tuple[int, int]:
    """How many windows fit into the images; ValueError where none does."""
    if window[0] > shape[0] or window[1] > shape[1]:
        raise ValueError(f"the window {window} is larger than the images {shape}: take a smaller one, or pool less")
    return (shape[0] - window[0]) // strides[0] + 1, (shape[1] - window[1]) // strides[1] + 1


class _Pool(Layer):
    """What pooling layers share: all pairs of pixels at the input."""

    def needs_pairs(self, after: bool) -> bool:
        return True


@pytree(leaves=(), static=("window", "strides"))
@dataclass(frozen=True, init=False)
class AvgPool(_Pool):
    """The mean over windows, strides as the window's sizes unless given. Pixels that fill no window are left out."""

    window: tuple[int, int]
    strides: tuple[int, int]

    def __init__(self, window, strides=None):
        object.__setattr__(self, "window", _pair(window, "window"))
        object.__setattr__(self, "strides", self.window if strides is None else _pair(strides, "strides"))

    def follow(self, place: Place) -> Place:
        return Place(_windows(place.images(), self.window, self.strides), place.gaussian, place.fresh)

    def _pooled(self, x: Array, axes: tuple[int, ...]) -> Array:
        for i, axis in enumerate(axes):
            x = slide(x, (axis,), self.window[i % 2], self.strides[i % 2]) / self.window[i % 2]
        return x

    def act(self, state: State, q11: Array, q22: Array) -> State:
        return state.map(lambda x: self._pooled(x, (-4, -3, -2, -1)))

    def init(self, key, shape, width):
        return (*self.follow(Place(shape[:2])).shape, shape[2]), ()

    def apply(self, weights, x):
        return self._pooled(x, (1, 2))


@pytree(leaves=())
@dataclass(frozen=True)
class GlobalAvgPool(_Pool):
    """The mean over all pixels: vectors of channels."""

    def follow(self, place: Place) -> Place:
        place.images()
        return Place((), place.gaussian, place.fresh)

    def act(self, state: State, q11: Array, q22: Array) -> State:
        return state.map(lambda x: x.mean(axis=(-4, -3, -2, -1)), pixels=0)

    def init(self, key, shape, width):
        return shape[2:], ()

    def apply(self, weights, x):
        return x.mean(axis=(1, 2))


@pytree(leaves=())
@dataclass(frozen=True)
class Flatten(Layer):
    """Images to vectors of all pixels and channels: the mean of the pairs of equal pixels. Vectors stay as they are."""

    def follow(self, place: Place) -> Place:
        return Place((), place.gaussian, place.fresh)

    def needs_pairs(self, after: bool) -> bool:
        return False

    def act(self, state: State, q11: Array, q22: Array) -> State:
        return state.same().map(lambda x: x.mean(axis=(-2, -1)), pixels=0) if state.pixels else state

    def init(self, key, shape, width):
        return (int(np.prod(shape)),), ()

    def apply(self, weights, x):
        return x.reshape(len(x), -1)


MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def myrtle(depth: int, activation: Activation | Callable | str, W_std=1.0, b_std=0.0) -> Network:
    """Myrtle-5, -7 or -10 (Shankar et al. 2020) for images of 32 x 32 pixels, the paper's networks for CIFAR-10.

    Three blocks of 3 x 3 convolutions and activations, each followed by a 2 x 2 pooling, two poolings more, Flatten and
    Dense. W_std = sqrt(2) keeps the variances of the ReLU.
    """
    if depth not in MYRTLE:
        raise ValueError(f"depth={depth!r} came; one of {', '.join(map(str, MYRTLE))} was expected")
    active = activation if isinstance(activation, Layer) else Activation(activation)
    layers: list[Layer] = []
    for count in MYRTLE[depth]:
        layers += [Conv((3, 3), W_std=W_std, b_std=b_std), active] * count + [AvgPool((2, 2))]
    return serial(*layers, AvgPool((2, 2)), AvgPool((2, 2)), Flatten(), Dense(W_std, b_std))
