"""`make demo`: one activation from its text to a trained kernel, in a minute.

Derives GELU, prints how its kernels come about, writes the generated JAX module, computes the NNGP and the NTK of a
network on scikit-learn's 1797 handwritten digits, and classifies them by kernel ridge regression.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import dualcalc as dc

from .cli.formulas import derivation_tree, drawing

ACTIVATION = "t*(1 + erf(t/sqrt(2)))/2"
TRAINING_ROWS, SEED = 1000, 0
RIDGES = 10.0 ** np.arange(-8.0, 0.5)  # relative to the mean of the kernel's diagonal


@contextmanager
def timed(steps: list[tuple[str, float]], what: str, console: Console) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(what):
        yield
    steps.append((what, time.perf_counter() - start))


def leave_one_out(eigenvalues: np.ndarray, vectors: np.ndarray, targets: np.ndarray, ridge: float) -> float:
    """Share of training rows that ridge regression on all others classifies right.

    With G = (K + ridge I)^-1 the prediction for row i without row i is y_i - (G y)_i / G_ii.
    """
    damped = vectors / (eigenvalues + ridge)
    residual = (damped @ (vectors.T @ targets)) / np.sum(damped * vectors, axis=1, keepdims=True)
    return float(np.mean(np.argmax(targets - residual, axis=1) == np.argmax(targets, axis=1)))


def classify(kernel: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Test accuracy of kernel ridge regression on one-hot targets, and its ridge, chosen on the training rows."""
    targets = np.eye(10)[labels[train]] - 0.1
    gram = kernel[np.ix_(train, train)]
    eigenvalues, vectors = np.linalg.eigh(gram)
    ridges = RIDGES * np.mean(np.diag(gram))
    ridge = max(ridges, key=lambda r: leave_one_out(eigenvalues, vectors, targets, r))
    weights = vectors @ ((vectors.T @ targets) / (eigenvalues + ridge)[:, None])
    predicted = np.argmax(kernel[np.ix_(test, train)] @ weights, axis=1)
    return float(np.mean(predicted == labels[test])), float(ridge)


def main() -> None:
    from sklearn.datasets import load_digits

    jax.config.update("jax_enable_x64", True)
    console = Console(highlight=False)
    steps: list[tuple[str, float]] = []

    with timed(steps, "derive k and kdot", console):
        dual = dc.derive(ACTIVATION)
        formulas = {"k = E[s(u) s(v)]": dual.k, "kdot = E[s'(u) s'(v)]": dual.kdot}
    console.print(Panel(Text(f"s(t) = {ACTIVATION}", "bold"), title="dualcalc: an activation in", border_style="cyan"))
    console.print(derivation_tree(dual.derivation.root))
    for name, formula in formulas.items():
        console.print(Panel(Text(drawing(formula, console.width - 4)), title=Text(name), border_style="green"))

    file = Path("build", "gelu_dual.py")
    with timed(steps, "write the JAX module", console):
        file.parent.mkdir(exist_ok=True)
        file.write_text(dc.emit(dual, target="jax"))
    console.print(f"JAX code that stands alone: {file} ({len(file.read_text().splitlines())} lines)\n")

    digits = load_digits()
    X, labels = digits.data / 16, digits.target
    order = np.random.default_rng(SEED).permutation(len(X))
    train, test = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
    gelu = dc.Activation(dual)
    net = dc.serial(dc.Dense(1.5, 0.1), gelu, dc.Dense(1.5, 0.1), gelu, dc.Dense())
    with timed(steps, f"NNGP and NTK of {len(X)} digits, compiling included", console):
        kernels = {name: np.asarray(value) for name, value in net(X, get=("nngp", "ntk"))._asdict().items()}
    results = Table("kernel", "test accuracy", "ridge", title=f"{len(train)} digits to learn, {len(test)} to test")
    for name, kernel in kernels.items():
        with timed(steps, f"ridge regression, {name.upper()}", console):
            accuracy, ridge = classify(kernel, labels, train, test)
        results.add_row(name.upper(), f"{accuracy:.2%}", f"{ridge:.1e}")
    console.print(results)
    times = Table("step", "seconds", box=None)
    for what, seconds in steps:
        times.add_row(what, f"{seconds:.2f}")
    console.print(times)


if __name__ == "__main__":
    main()
