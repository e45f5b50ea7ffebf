"""Image classification from the features of convolutional networks: section 5 of the paper, as a command.

    python -m dualcalc.images FOLDER      CIFAR-10, the folder of its "python version" (data_batch_1 ... test_batch)
    python -m dualcalc.images digits      scikit-learn's digits, 32 x 32 pixels
    python -m dualcalc.images photos      32 x 32 crops of scikit-learn's two photographs: which one is it?

Channels are standardized, every image has zero mean and unit norm, then comes regularized ZCA; Myrtle-5 features go
batch by batch into `ridge.RidgeStream`, with one-hot targets. Two things are not as in the paper: its ridge parameters
(`logspace(-10, 2, 20)`) are taken in units of the features' mean squared length, and the best is chosen on the training
images, where the paper reports the best on the test images. With pooling, as the paper's authors' code has it.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from .conv import myrtle
from .layerwise import layerwise
from .ridge import RidgeStream

BATCH = 250
"""Images whose features are in memory at a time."""


class Images(NamedTuple):
    """Images (n, height, width, channels), float32, with labels (n,), for training and for testing."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


# ------------------------------------------------------------------------------------------------- CIFAR-10, safely


class _Bytes:
    """Stands for NumPy's dtype: only that of bytes."""

    def __init__(self, name, *_):
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of dtype {name!r}")

    def __setstate__(self, state):
        pass


class _Array:
    """Stands for NumPy's array: what it is rebuilt from, checked."""

    values: np.ndarray

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Bytes) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array of no bytes")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind, *_) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an array of another class")
    return _Array()


def _encode(text, encoding="latin1") -> bytes:
    return text.encode("latin1")


_STANDINS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Bytes,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}
"""All that a pickled batch of images can call, and none of it is NumPy's own or runs anything. Beside them there are
the plain values: dictionaries, lists, tuples, texts, bytes and numbers."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _STANDINS:
            raise pickle.UnpicklingError(f"the name {f'{module}.{name}'!r}")
        return _STANDINS[module, name]


def read_batch(path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) of bytes and labels (n,) from one file of CIFAR-10's python version.

    A pickle can run any code when it is read; this reader builds arrays of bytes and plain values, and nothing else.
    Raises ValueError for a file with anything else in it, or of another format.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a hostile file can raise anything
        raise ValueError(
            f"{path}: it holds {error}; a batch of CIFAR-10 was expected, a dictionary of bytes, lists and arrays of "
            "bytes. Nothing of it was run. Fetch the folder anew"
        ) from None
    entries: dict[Any, Any] = content if isinstance(content, dict) else {}
    data, labels = (entries.get(name.encode(), entries.get(name)) for name in ("data", "labels"))
    pixels = data.values if isinstance(data, _Array) else np.empty(0)
    if pixels.ndim != 2 or pixels.shape[1] != 3072 or not len(pixels):
        raise ValueError(f"{path}: no images (n, 3072) of bytes under 'data'; expected a batch of CIFAR-10")
    valid = [label for label in (labels if isinstance(labels, list) else []) if type(label) is int and 0 <= label < 10]
    if len(valid) != len(pixels) or valid != labels:
        raise ValueError(f"{path}: {len(pixels)} labels from 0 to 9 were expected under 'labels'")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(valid)


def cifar10(folder) -> Images:
    """The images in a folder of CIFAR-10's python version, values from 0 to 255."""
    folder = Path(folder)
    training = sorted(folder.glob("data_batch_*"))
    if not training or not (folder / "test_batch").is_file():
        raise ValueError(
            f"{folder}: no files data_batch_1 ... and test_batch in it; point to the folder cifar-10-batches-py"
        )
    batches = [read_batch(path) for path in training]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    test, test_labels = read_batch(folder / "test_batch")
    return Images(images.astype(np.float32), labels, test.astype(np.float32), test_labels)


# ------------------------------------------------------------------------------------- what scikit-learn comes with


def digits(test: int = 500, seed: int = 0) -> Images:
    """scikit-learn's 1797 digits of 8 x 8 pixels, every pixel four times as wide and high; a random split."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).repeat(4, axis=1).repeat(4, axis=2)
    return _split(images, labels, test, seed)


def photos(test: int = 120, seed: int = 0) -> Images:
    """520 crops of 32 x 32 pixels, none of which overlap, of the photographs `china` and `flower`; a random split."""
    from sklearn.datasets import load_sample_images

    crops, labels = [], []
    for label, photograph in enumerate(load_sample_images().images):
        height, width = (size // 32 for size in photograph.shape[:2])
        whole = photograph[: 32 * height, : 32 * width].reshape(height, 32, width, 32, 3)
        crops.append(whole.swapaxes(1, 2).reshape(-1, 32, 32, 3))
        labels.append(np.full(height * width, label))
    return _split(np.concatenate(crops), np.concatenate(labels), test, seed)


def _split(images: np.ndarray, labels: np.ndarray, test: int, seed: int) -> Images:
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order].astype(np.float32), labels[order]
    return Images(images[:-test], labels[:-test], images[-test:], labels[-test:])


# --------------------------------------------------------------------------------------------------------- pipeline


@dataclass(frozen=True)
class Whitening:
    """Standardized channels, images of zero mean and unit norm, then ZCA; the result of `whitening`.

    mean, std   (channels,) of the training images
    centre      (d,) the mean of the normalized training images, d = height x width x channels
    matrix      (d, d): (C + reg tr(C)/d I)^(-1/2), C their covariance
    """

    mean: np.ndarray
    std: np.ndarray
    centre: np.ndarray
    matrix: np.ndarray

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (n, height, width, channels), float32."""
        rows = _normalized(images, self.mean, self.std)
        return ((rows - self.centre) @ self.matrix).astype(np.float32).reshape(images.shape)


def whitening(images: np.ndarray, reg: float = 0.1) -> Whitening:
    """Fitted on training images (n, height, width, channels); reg > 0 is relative to the mean variance of a pixel."""
    if images.ndim != 4 or 0 in images.shape or not np.isfinite(images).all():
        raise ValueError(f"images of shape {images.shape} came; (n, height, width, channels), finite, were expected")
    if not reg > 0:
        raise ValueError(f"reg={reg!r} came; a positive number was expected, such as 0.1")
    mean, std = (np.asarray(f(images, axis=(0, 1, 2), dtype=float), np.float32) for f in (np.mean, np.std))
    std[std == 0] = 1
    rows = _normalized(images, mean, std)
    centre = rows.mean(axis=0, dtype=np.float64)
    covariance = np.asarray(rows.T @ rows / len(rows), np.float64) - np.outer(centre, centre)
    values, vectors = np.linalg.eigh(covariance)
    scale = np.maximum(values, 0.0) + (reg * values.mean() or 1.0)
    matrix = (vectors / np.sqrt(scale)) @ vectors.T
    return Whitening(mean, std, centre.astype(np.float32), matrix.astype(np.float32))


def _normalized(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Rows (n, d), float32, of zero mean and unit norm; a constant image becomes zero."""
    rows = ((images - mean) / std).astype(np.float32).reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def prepared(images: Images, reg: float = 0.1) -> Images:
    """The images whitened, as fitted on the training ones."""
    white = whitening(images.train, reg)
    return images._replace(train=white(images.train), test=white(images.test))


class Result(NamedTuple):
    """Accuracy on the test images and on the training ones, the chosen ridge parameter, and seconds: for the features
    of the training images with their moments, and for the path of ridge parameters."""

    accuracy: float
    training_accuracy: float
    ridge: float
    feature_seconds: float
    fit_seconds: float


def classify(images: Images, features: Callable[[np.ndarray], Any], folds: int = 1, seed: int = 0) -> Result:
    """Ridge regression of one-hot targets on features (n, d) of images, batch by batch; folds, seed: `RidgeStream`."""
    start = time.perf_counter()
    classes = np.unique(images.train_labels)
    stream = RidgeStream(folds=folds, seed=seed)
    for rows, labels in _batches(images.train, images.train_labels):
        stream.add(features(rows), labels[:, None] == classes)
    middle = time.perf_counter()
    path = stream.solve()
    end = time.perf_counter()

    def accuracy(rows: np.ndarray, labels: np.ndarray) -> float:
        found = [path.predict(features(batch)).argmax(axis=1) for batch, _ in _batches(rows, labels)]
        return float((classes[np.concatenate(found)] == labels).mean())

    test, training = accuracy(images.test, images.test_labels), accuracy(images.train, images.train_labels)
    return Result(test, training, path.ridge, middle - start, end - middle)


def _batches(rows: np.ndarray, labels: np.ndarray):
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH], labels[start : start + BATCH]


SOURCES: dict[str, Callable[[], Images]] = {"digits": digits, "photos": photos}


@click.command()
@click.argument("data")
@click.option("--activation", default="normalized_gaussian", show_default=True, help="A catalog id or a formula in t.")
@click.option("--w-std", "W_std", type=float, default=1.0, show_default=True, help="sqrt(2) = 1.41421356 for relu.")
@click.option("--components", type=click.IntRange(1), default=2048, show_default=True, help="Features of an image.")
@click.option("--anchors", type=click.IntRange(1), default=64, show_default=True, help="Anchor patches per layer.")
@click.option("--fit", "fit", type=click.IntRange(1), default=256, show_default=True, help="Images for the anchors.")
@click.option("--folds", type=click.IntRange(1), default=1, show_default=True, help="1: generalized cross-validation.")
@click.option("--limit", type=click.IntRange(10), help="So many training images.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(data, activation, W_std, components, anchors, fit, folds, limit, seed) -> None:
    """Myrtle-5 features and ridge regression on DATA: digits, photos, or the folder of CIFAR-10's python version."""
    try:
        images = SOURCES[data]() if data in SOURCES else cifar10(data)
        if limit:
            images = images._replace(train=images.train[:limit], train_labels=images.train_labels[:limit])
        images = prepared(images)
        start = time.perf_counter()
        chosen = np.random.default_rng(seed).permutation(len(images.train))[:fit]
        net = myrtle(5, activation, W_std=W_std)
        features = layerwise(net, images.train[chosen], components, anchors=anchors, random_state=seed)
        seconds = time.perf_counter() - start
        result = classify(images, features, folds, seed)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"{len(images.train)} images for training, {len(images.test)} for testing, {features.n_components} features\n"
        f"accuracy {100 * result.accuracy:.2f} %, on training images {100 * result.training_accuracy:.2f} %, "
        f"ridge {result.ridge:.3g}\n"
        f"{seconds:.1f} s for the map, {result.feature_seconds:.1f} s for features, {result.fit_seconds:.1f} s to fit"
    )


if __name__ == "__main__":
    main()
