"""Features and ridge regression on real data: `python benchmarks/ridge.py digits stream images` (RIDGE.md has figures).

digits   accuracy of ridge on 4096 features beside that of the exact kernel: depth-3 NTK, random splits with 1000
         training rows, the ridge parameter chosen on them by generalized cross-validation for both
dip      test accuracy by dimension with a ridge parameter near 0 and with the chosen one
stream   10^6 rows of 256 features through a sketch of 2048 columns, then ridge: memory, seconds, the same bits twice.
         The sketch ends at degree 2; every degree more costs time and no memory
images   the pipeline of `dualcalc.images` on scikit-learn's digits and photographs
"""

import json
import math
import subprocess
import sys
import time

import numpy as np

import dualcalc as dc
from dualcalc.features import feature_error, feature_map
from dualcalc.ridge import RidgeStream

SEEDS, TRAINING, COLUMNS = 5, 1000, 4096
METHODS = ("sketch", "centred", "nystrom")


def network(activation: str, depth: int = 3):
    W_std = math.sqrt(2) if activation == "relu" else 1.5
    return dc.serial(*[dc.Dense(W_std, 0.1), dc.Activation(activation)] * depth, dc.Dense(W_std))


def split(seed: int):
    """Digits with pixels from 0 to 1, float64: rows and labels for training, then for testing."""
    from sklearn.datasets import load_digits

    X, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    X, labels = X[order] / 16, labels[order]
    return X[:TRAINING], labels[:TRAINING], X[TRAINING:], labels[TRAINING:]


def accuracy(Z, labels, Z_test, test_labels, row: int | None = None) -> float:
    path = RidgeStream().add(Z, np.eye(10)[labels]).solve()
    return 100 * float((path.predict(Z_test, row).argmax(axis=1) == test_labels).mean())


def exact_features(net, X, X_test):
    """Rows whose products are the exact kernel's values, without any feature map: K = U diag(v) U' gives U sqrt(v) for
    training and K_test U / sqrt(v) for testing, so that ridge on them is kernel ridge regression."""
    values, vectors = np.linalg.eigh(np.asarray(net(X)))
    kept = values > len(X) * np.finfo(float).eps * values[-1]
    root = vectors[:, kept] / np.sqrt(values[kept])
    return np.asarray(net(X)) @ root, np.asarray(net(X_test, X)) @ root


def digits() -> None:
    print(f"Medians of {SEEDS} splits; the gap's median is of differences on one split.\n")
    print("| network | features | accuracy, % | exact kernel, % | gap, % | relative error |\n|---|---|--:|--:|--:|--:|")
    for activation in ("relu", "gelu"):
        net = network(activation)
        splits = [split(seed) for seed in range(SEEDS)]
        exact = [accuracy(*_with(s, exact_features(net, s[0], s[2]))) for s in splits]
        for method in METHODS:
            found, errors = [], []
            for seed, s in enumerate(splits):
                features = feature_map(net, s[0], COLUMNS, method, random_state=seed)
                found.append(accuracy(*_with(s, (np.asarray(features(s[0])), np.asarray(features(s[2]))))))
                errors.append(feature_error(net, features, s[2]).frobenius)
            gap = np.median(np.subtract(exact, found))
            figures = f"{np.median(found):.2f} | {np.median(exact):.2f} | {gap:.2f} | {np.median(errors):.1e}"
            print(f"| {activation} | {method}, {features.n_components} | {figures} |", flush=True)


def _with(s, features):
    return features[0], s[1], features[1], s[3]


def dip() -> None:
    print("| columns | ridge near 0, % | chosen ridge, % |\n|--:|--:|--:|")
    net, splits = network("relu"), [split(seed) for seed in range(SEEDS)]
    for columns in (250, 500, 900, 1000, 1100, 2000, 4096):
        found = []
        for seed, s in enumerate(splits):
            features = feature_map(net, s[0], columns, "sketch", random_state=seed)
            sides = _with(s, (np.asarray(features(s[0])), np.asarray(features(s[2]))))
            found.append([accuracy(*sides, row) for row in (0, None)])
        least, chosen = np.median(found, axis=0)
        print(f"| {columns} | {least:.2f} | {chosen:.2f} |", flush=True)


STREAM = """
import json, sys, time, hashlib, resource
import numpy as np
n, d, columns, degree = int(sys.argv[1]), 256, int(sys.argv[2]), int(sys.argv[3])
X, y = np.empty((n, d), np.float32), np.empty(n, np.float32)
rng = np.random.default_rng(0)
w = rng.standard_normal(d).astype(np.float32) / 16
for start in range(0, n, 10_000):
    block = rng.standard_normal((min(10_000, n - start), d), dtype=np.float32)
    X[start : start + 10_000] = block
    u = block @ w
    y[start : start + 10_000] = u + np.abs(u) + 0.1 * rng.standard_normal(len(block), dtype=np.float32)
import dualcalc as dc
from dualcalc.estimators import NTKFeatures, StreamingRidge
net = dc.serial(dc.Dense(1.0, 0.1), dc.Activation("gelu"), dc.Dense(1.0))
start = time.perf_counter()
model = StreamingRidge(NTKFeatures(net, n_components=columns, options={"degree": degree})).fit(X, y)
seconds = time.perf_counter() - start
path = model.path_
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - X.nbytes - y.nbytes
error = float(np.mean((model.predict(X[:5000]) - y[:5000]) ** 2) / np.var(y[:5000]))
digest = hashlib.sha256(path.coefficients.tobytes() + path.scores.tobytes()).hexdigest()[:16]
print(json.dumps({"seconds": seconds, "GiB": peak / 2**30, "unexplained": error, "bits": digest}))
"""


def stream(rows: int = 10**6, columns: int = 2048, degree: int = 2, times: int = 2) -> None:
    heads = ("rows", "columns", "degree", "s", "GiB above the input", "unexplained variance", "bits of the fits")
    print(f"| {' | '.join(heads)} |\n|--:|--:|--:|--:|--:|--:|---|")
    for _ in range(times):
        command = [sys.executable, "-c", STREAM, str(rows), str(columns), str(degree)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        r = json.loads(done.stdout.splitlines()[-1])
        figures = f"{r['seconds']:.0f} | {r['GiB']:.2f} | {r['unexplained']:.3f} | {r['bits']}"
        print(f"| {rows} | {columns} | {degree} | {figures} |", flush=True)


def images() -> None:
    for data in ("digits", "photos"):
        for options in ((), ("--activation", "relu", "--w-std", str(math.sqrt(2)))):
            command = [sys.executable, "-m", "dualcalc.images", data, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{' '.join(command[2:])}\n{done.stdout}", flush=True)


def main() -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    known = {"digits": digits, "dip": dip, "stream": stream, "images": images}
    for name in sys.argv[1:] or known:
        start = time.perf_counter()
        known[name]()
        print(f"\n{name}: {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
