"""Networks as the command line writes them, such as `dense(1.5,0.1) gelu {t*Phi(t)} dense`, and their data files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple, NoReturn

from .console import NUMBER, Failure, reserved

TOKEN = re.compile(
    rf"\s*(?:(?P<number>{NUMBER})(?![\w.])|(?P<name>[A-Za-z]\w{{0,39}})|\{{(?P<formula>[^{{}}]*)\}}|(?P<mark>[(),=\[\]]))",
    re.ASCII,
)


class LayerText(NamedTuple):
    """One layer as it was written, its numbers with their names; `residual` with the layers in it."""

    name: str
    named: dict[str, Any] = {}
    inner: tuple[Any, ...] = ()
    formula: bool = False


LAYERS = {
    "dense": ("Dense", ("W_std", "b_std"), ()),
    "conv": ("Conv", ("window",), ("strides", "padding", "W_std", "b_std")),
    "avgpool": ("AvgPool", ("window",), ("strides",)),
    "globalavgpool": ("GlobalAvgPool", (), ()),
    "flatten": ("Flatten", (), ()),
    "layernorm": ("LayerNorm", (), ()),
    "dropout": ("Dropout", ("rate",), ()),
    "scale": ("Scale", ("factor",), ()),
}
"""Per word the layer, its numbers in their order, and what else it takes by name."""

SIZES = {"window", "strides"}


class _Network:
    """Reads `layer layer ...`; layer = name or {formula}, and optionally (number, ..., name=number or [numbers]);
    residual(layer layer ...)."""

    def __init__(self, text: str):
        self.text, self.tokens, self.at = text, [], 0
        place = 0
        while place < len(text.rstrip()):
            match = TOKEN.match(text, place)
            if not match or match.lastgroup is None:
                self.fail(
                    len(text) - len(text[place:].lstrip()), "expected a name, {formula}, number or one of ( ) , ="
                )
            group = match.lastgroup
            self.tokens.append((group, match[group], match.start(group) - (group == "formula"), match.end()))
            place = match.end()
        self.tokens.append(("end", "", len(text), len(text)))

    def fail(self, column: int, reason: str) -> NoReturn:
        start = max(0, column - 60)
        raise ValueError(f"{self.text[start : start + 120]}\n{' ' * (column - start)}^\n{reason}")

    def take(self, kind: str, value: str | None = None) -> str | None:
        """The next token's text, if it is of this kind, else None."""
        found, text, _, _ = self.tokens[self.at]
        if found != kind or value not in (None, text):
            return None
        self.at += 1
        return text

    def need(self, kind: str, expected: str, value: str | None = None) -> str:
        text = self.take(kind, value)
        if text is None:
            self.fail(self.tokens[self.at][2], f"expected {expected}")
        return text

    def layers(self, inside: bool = False) -> list[LayerText]:
        found: list[LayerText] = []
        while self.tokens[self.at][0] != "end" and not (inside and self.tokens[self.at][1] == ")"):
            before = self.tokens[self.at - 1][3] if found else -1
            if before == self.tokens[self.at][2]:
                self.fail(before, "expected a blank between layers")
            found.append(self.layer())
        if not found:
            self.fail(self.tokens[self.at][2] if inside else 0, "expected layers, such as: dense(1.5,0.1) gelu dense")
        return found

    def layer(self) -> LayerText:
        start = self.tokens[self.at][2]
        formula = self.take("formula")
        name = formula if formula is not None else self.need("name", "a layer: dense, a catalog id, or {formula}")
        word = name.lower() if formula is None else ""
        if name != word and word in (*LAYERS, "residual"):
            self.fail(start, f"got the layer {name}; did you mean {word!r}?")
        if word == "residual":
            self.need("mark", "( and layers after residual, as in residual(relu dense)", "(")
            inner = self.layers(inside=True)
            self.need("mark", ")", ")")
            return LayerText(name, {}, tuple(inner))
        _, order, others = LAYERS.get(word, ("", (), ()))
        numbers: list[Any] = []
        named: dict[str, Any] = {}
        glued = self.tokens[self.at][2] == self.tokens[self.at - 1][3]
        if glued and self.take("mark", "("):
            if word in LAYERS and not order:
                self.fail(start, f"{word} takes no arguments: write it without parentheses")
            while True:
                key = self.take("name")
                if key is not None:
                    self.need("mark", f"= and a number after the name {key}, as W_std=1.5, or a finite number", "=")
                    if key in named or key in reserved() or key == "spec":
                        self.fail(self.tokens[self.at - 2][2], f"got {key} twice, or a name that no layer has")
                    named[key] = self.take("name") if (word, key) == ("conv", "padding") else self.value()
                else:
                    numbers.append(self.value())
                if self.take("mark", ")"):
                    break
                self.need("mark", ", or )", ",")
        if word in LAYERS:
            if len(numbers) > len(order) or set(named) - {*order[len(numbers) :], *others}:
                self.fail(start, f"expected {word}{_arguments(order, others)}, in this order or by name")
            named = dict(zip(order, numbers, strict=False)) | named
            if word != "dense" and not {*order} <= {*named}:
                self.fail(start, f"expected {word}{_arguments(order, others)}: {order[0]} is missing")
        elif numbers:
            self.fail(start, f"the parameters of an activation have names, as in abrelu(A=0.3,B=1.1); got {numbers[0]}")
        return LayerText(name, named, formula=formula is not None)

    def number(self) -> float:
        column = self.tokens[self.at][2]
        number = float(self.need("number", "a number"))
        if not math.isfinite(number):
            self.fail(column, "expected a finite number")
        return number

    def value(self) -> Any:
        if not self.take("mark", "["):
            return self.number()
        numbers = [self.number()]
        while self.take("mark", ","):
            numbers.append(self.number())
        self.need("mark", ", or ]", "]")
        return numbers


def read_network(text: str) -> list[LayerText]:
    """The layers that a text such as `dense(1.5,0.1) gelu {t*Phi(t)} dense` names; ValueError with a caret."""
    return _Network(text).layers()


def _arguments(order: tuple[str, ...], others: tuple[str, ...]) -> str:
    return f"({', '.join([*order, *(f'{name}=' for name in others)])})"


def build_network(layers: Iterable[LayerText], **approximation: Any) -> Any:
    from dualcalc import conv, networks
    from dualcalc import layers as vectors

    def built(layer: LayerText) -> Any:
        if layer.inner:
            return networks.Residual(*map(built, layer.inner))
        if layer.formula or layer.name not in LAYERS:
            return vectors.Activation(layer.name, **approximation, **layer.named)
        kind = LAYERS[layer.name][0]
        named = {
            key: (value, value) if key in SIZES and not isinstance(value, list) else value
            for key, value in layer.named.items()
        }
        return getattr(conv if hasattr(conv, kind) else vectors, kind)(**named)

    return networks.serial(*map(built, layers))


def read_array(path: Path, mapped: bool = False) -> Any:
    """What a .npy file holds, `mapped` for what may be larger than the memory."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError, TokenError) as error:  # the last of a header that breaks off
        raise Failure(f"{path}: no array that can be read safely ({error}); write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise Failure(f"{path}: got an archive; expected one array, as numpy.save writes it")
    return array


def read_inputs(path: Path) -> Any:
    """The rows (n, d) or images (n, height, width, channels) in a .npy file: real; integers become float64."""
    import numpy as np

    data = read_array(path)
    if data.ndim not in (2, 4) or 0 in data.shape or data.dtype.kind not in "biuf":
        raise Failure(
            f"{path}: got shape {data.shape}, type {data.dtype}; expected real numbers in a .npy file: one matrix "
            "(rows, features), or images (images, height, width, channels)"
        )
    wide = np.float32 if data.dtype in (np.float16, np.float32) else np.float64
    return data.astype(wide, copy=False)
