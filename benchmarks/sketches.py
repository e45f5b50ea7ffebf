"""Sketched features beside the exact kernel: `python benchmarks/sketches.py [error time theorem4 sparse] > table.md`.

Prints Markdown tables: unscaled relative Frobenius and spectral errors of the normalized-Gaussian NTK against the
authors' figures (MATH.md section 9), time per row against one matrix product in the same process, the epsilon of the
paper's Theorem 4 against columns over the statistical dimension, and the time of sparse rows. Medians of 5 seeds.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from sklearn.datasets import load_digits

import dualcalc as dc
from dualcalc.sketch import sketch

SEEDS = 5
AUTHORS = {
    "digits": {(2, 1024): 0.184, (2, 4096): 0.075, (4, 1024): 0.300, (4, 4096): 0.138},
    "random": {(2, 1024): 0.182, (2, 4096): 0.095, (4, 1024): 0.228, (4, 4096): 0.121},
}
METHODS = {"digits": ("horner", "centred", "maclaurin"), "random": ("horner", "maclaurin")}


def network(depth):
    act = dc.Activation(dc.from_kernel(kappa="exp(t - 1)"))
    return dc.serial(*[dc.Dense(), act] * depth, dc.Dense())


def unit(X):
    return (X * np.sqrt(X.shape[1]) / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def data(name):
    """500 rows that are scored, and other rows that maps are made from."""
    if name == "digits":
        X = unit(load_digits().data[np.random.default_rng(0).permutation(1797)])
        return X[:500], X[500:1500]
    X = unit(np.random.default_rng(1).normal(size=(1000, 256)))
    return X[:500], X[500:]


def whitener(K, share):
    w, U = np.linalg.eigh(K + share * np.trace(K) * np.eye(len(K)))
    return U / np.sqrt(w)


def error():
    print(
        "| data | depth | columns | method | Frobenius | over the authors' | spectral |\n|---|---|---|---|---|---|---|"
    )
    for name, figures in AUTHORS.items():
        X, others = data(name)
        for (depth, columns), reference in figures.items():
            net = network(depth)
            K = np.asarray(net(X), float)
            R = whitener(K, 1e-3)
            for method in METHODS[name]:
                found = []
                for seed in range(SEEDS):
                    F = np.asarray(sketch(net, others, columns, method=method, random_state=seed)(X), float)
                    E = F @ F.T - K
                    found.append([np.linalg.norm(E) / np.linalg.norm(K), np.abs(np.linalg.eigvalsh(R.T @ E @ R)).max()])
                frobenius, spectral = np.median(found, axis=0)
                row = f"{frobenius:.4f} | {frobenius / reference:.2f} | {spectral:.2f}"
                print(f"| {name} | {depth} | {columns} | {method} | {row} |", flush=True)


def seconds(f, *arguments):
    jax.block_until_ready(f(*arguments))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def timing():
    X = jnp.asarray(unit(np.random.default_rng(1).normal(size=(2048, 256))))
    W = jnp.ones((256, 4096), jnp.float32)
    product = jax.jit(jnp.matmul)
    print("| method | microseconds a row | over one x @ W |\n|---|---|---|")
    for method in ("horner", "maclaurin"):
        psi = sketch(network(2), X, 4096, method=method)
        pairs = [(seconds(psi, X), seconds(product, X, W)) for _ in range(3)]
        took, ratio = min(a for a, _ in pairs), np.median([a / b for a, b in pairs])
        print(f"| {method} | {took / len(X) * 1e6:.0f} | {ratio:.1f} |", flush=True)
    print(f"| x @ W | {seconds(product, X, W) / len(X) * 1e6:.0f} | 1 |")


def theorem4():
    print("| data | lambda / trace K | s_lambda | epsilon at 1024 to 8192 columns | slope |\n|---|---|---|---|---|")
    for name in ("digits", "random"):
        X = data(name)[0][:300]
        net, sizes = network(2), (1024, 2048, 4096, 8192)
        K = np.asarray(net(X), float)
        made = [[sketch(net, X, n, random_state=s) for s in range(SEEDS)] for n in sizes]
        maps = [[np.asarray(psi(X), float) for psi in row] for row in made]
        sketched = np.array([row[0].sketched for row in made])  # without the columns that are exact
        for share in (1e-2, 1e-3, 1e-4):
            R = whitener(K, share)
            dimension = np.trace(R.T @ K @ R)
            found = [np.median([np.abs(np.linalg.eigvalsh(R.T @ (F @ F.T - K) @ R)).max() for F in fs]) for fs in maps]
            slope = np.polyfit(np.log(sketched / dimension), np.log(found), 1)[0]
            values = ", ".join(f"{x:.3f}" for x in found)
            print(f"| {name} | {share:g} | {dimension:.0f} | {values} | {slope:.2f} |", flush=True)


def sparse():
    print("| density | seconds for 4000 x 4000 rows, 512 columns |\n|---|---|")
    for density in (0.05, 0.1, 0.2):
        X = scipy.sparse.random_array((4000, 4000), density=density, format="csr", rng=0, dtype=np.float32)
        psi = sketch(network(2), X, 512)
        print(f"| {density} | {seconds(psi, X):.2f} |", flush=True)


TABLES = {"error": error, "time": timing, "theorem4": theorem4, "sparse": sparse}

if __name__ == "__main__":
    for table in sys.argv[1:] or TABLES:
        print(f"\n{table}\n")
        TABLES[table]()
