"""Whole networks beside neural-tangents: `make bench-networks [ARGS="fc deep tanh myrtle near"]`.

neural-tangents 0.6.5 runs in an environment of its own with the JAX that it needs, this library in ours, in alternating
runs: each round starts a process of either, which compiles, then takes the best of a few calls. The table has the
median over rounds. float32; errors are against the float64 recursion of this library on a part of the rows, over the
largest entry. `near` is the other table: 200 layers on pairs of rows with 1 - c = 1e-6 and 1e-3 beside 80 digits.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3

PEER = """
import functools, json, sys, time
import jax, jax.numpy as jnp, numpy as np
import neural_tangents as nt
from neural_tangents import stax
case = json.loads(sys.argv[1]); X = np.load(sys.argv[2]); Y = np.load(sys.argv[3]) if sys.argv[3] else None
W, b, kind = case["W_std"], case.get("b_std") or None, case["activation"]
act = {
    "relu": stax.Relu,
    "gelu": stax.Gelu,
    "erf": stax.Erf,
    "tanh": lambda: stax.ElementwiseNumerical(jnp.tanh, deg=25),
    "normalized_gaussian": lambda: stax.Elementwise(
        nngp_fn=lambda c, a, b: jnp.sqrt(a * b) * jnp.exp(c / jnp.sqrt(a * b) - 1),
        d_nngp_fn=lambda c, a, b: jnp.exp(c / jnp.sqrt(a * b) - 1),
    ),
}[kind]
if case["net"] == "fc":
    layers = [stax.Dense(1, W, b), act()] * case["depth"] + [stax.Dense(1, W, b)] * case.get("last", 1)
else:
    conv = lambda: stax.Conv(1, (3, 3), padding="SAME", W_std=W)
    layers = [conv(), act()] * 2 + [stax.AvgPool((2, 2), (2, 2))] + ([conv(), act(), stax.AvgPool((2, 2), (2, 2))]) * 2
    layers += [stax.AvgPool((2, 2), (2, 2))] * 2 + [stax.Flatten(), stax.Dense(1, W)]
_, _, kernel = stax.serial(*layers)
run = functools.partial(kernel, get="ntk")
run = run if case.get("eager") else jax.jit(run)
Z = jnp.asarray(X), (None if Y is None else jnp.asarray(Y))
best, sizes = None, case.get("batches", [0])
for size in sizes:
    f = run if not size else nt.batch(kernel, batch_size=size, device_count=0)
    call = (lambda: f(*Z)) if not size else (lambda: f(*Z, "ntk"))
    jax.block_until_ready(call()); seconds = []
    for _ in range(case["calls"]):
        start = time.perf_counter()
        k = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    if best is None or min(seconds) < best[0]: best = (min(seconds), size)
rows = case["rows"]
np.save(sys.argv[4], np.asarray(k)[:rows, :rows])
import resource
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(json.dumps({"seconds": best[0], "batch": best[1], "memory": memory}))
"""

OURS = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
if sys.argv[5]: jax.config.update("jax_enable_x64", True)
import dualcalc as dc
case = json.loads(sys.argv[1]); X = np.load(sys.argv[2]); Y = np.load(sys.argv[3]) if sys.argv[3] else None
rows = case["rows"]
if sys.argv[5]: X = X[:rows].astype(np.float64); Y = None if Y is None else Y[:rows].astype(np.float64)
act = dc.Activation(case["activation"], **case.get("options", {}))
if case["net"] == "fc":
    dense = dc.Dense(case["W_std"], case.get("b_std", 0.0))
    net = dc.serial(*[dense, act] * case["depth"], *[dense] * case.get("last", 1))
else:
    net = dc.myrtle(5, act, W_std=case["W_std"])
options = {"tol": 0} if sys.argv[5] else {}
call = lambda: net(X, Y, **options)
k = jax.block_until_ready(call()); seconds = []
for _ in range(0 if sys.argv[5] else case["calls"]):
    start = time.perf_counter()
    k = jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
product = []
if X.ndim == 2 and not sys.argv[5]:
    f, Z = jax.jit(lambda X: X @ X.T), jnp.asarray(X)
    for _ in range(case["calls"] + 1):
        start = time.perf_counter()
        jax.block_until_ready(f(Z))
        product.append(time.perf_counter() - start)
np.save(sys.argv[4], np.asarray(k)[:rows, :rows])
import resource
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(json.dumps({"seconds": min(seconds, default=0), "product": min(product[1:], default=0), "memory": memory}))
"""


def run(python: Path | str, code: str, case: dict, *arguments: str) -> dict:
    command = [python, "-c", code, json.dumps(case), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def cases(chosen: list[str]):
    fc = {"net": "fc", "n": 4096, "d": 784, "rows": 256, "calls": 3}
    root2 = 2**0.5
    if "fc" in chosen:
        yield {**fc, "name": "ReLU, depth 3", "activation": "relu", "W_std": root2, "depth": 3, "norms": "free"}
        for act in ("gelu", "erf"):
            for norms in ("fixed", "free"):
                name = f"{act}, depth 3, {'normalised rows' if norms == 'fixed' else 'norms 0.5 to 2'}"
                yield {**fc, "name": name, "activation": act, "W_std": 1.5, "b_std": 0.1, "depth": 3, "norms": norms}
    if "deep" in chosen:
        yield {**fc, "name": "ReLU, depth 20", "activation": "relu", "W_std": root2, "depth": 20, "norms": "free"}
        for act in ("gelu", "erf"):
            name = f"{act}, depth 20, normalised rows"
            yield {
                **fc,
                "name": name,
                "activation": act,
                "W_std": 1.5,
                "depth": 20,
                "norms": "fixed",
                "rounds": 1,
            }  # the peer compiles for minutes
    if "tanh" in chosen:
        yield {"net": "fc", "n": 1000, "d": 60, "rows": 1000, "calls": 2, "name": "tanh, depth 3", "activation": "tanh",
               "W_std": 1.2, "depth": 3, "norms": "free"}  # fmt: skip
    if "myrtle" in chosen:
        for act, W in (("relu", root2), ("normalized_gaussian", 1.0)):
            yield {"net": "myrtle", "n": 4, "name": f"Myrtle-5, {act}", "activation": act, "W_std": W, "rows": 4,
                   "calls": 3, "batches": [1, 2, 4]}  # fmt: skip


def near(peer_python: Path, folder: Path) -> None:
    """Relative errors of Theta at depth 200, W_std^2 = 1/k(1, 1, 1), for pairs of rows whose difference is exact."""
    import mpmath as mp
    import sympy as sp

    import dualcalc as dc

    q11, q12, q22 = dc.symbols
    print("| activation | 1 - c | error | its error |\n|---|--:|--:|--:|")
    gaps = np.array([1e-6, 1e-3])
    half = np.sqrt(gaps).astype(np.float32)
    rows = np.stack([np.sqrt(2 - half.astype(float) ** 2), half], axis=1).astype(np.float32)
    x, y = str(folder / "x.npy"), str(folder / "y.npy")
    np.save(x, rows)
    np.save(y, rows * np.float32([1, -1]))
    for act in ("relu", "gelu", "erf"):
        dual, theta = dc.derive(act), []
        k, kdot = (sp.lambdify((q12, q11, q22), e, "mpmath") for e in (dual.k, dual.kdot))
        with mp.workdps(80):
            W_std = float(mp.sqrt(1 / k(*[mp.mpf(1)] * 3)))
            for a, b in rows.astype(float):
                q, cov = ((mp.mpf(a) ** 2 + sign * mp.mpf(b) ** 2) / 2 for sign in (1, -1))
                t = mp.mpf(0)
                for _ in range(200):
                    q, cov, t = (mp.mpf(W_std) ** 2 * z for z in (q, cov, cov + t))
                    q, cov, t = k(q, q, q), k(cov, q, q), t * kdot(cov, q, q)
                theta.append(float(mp.re(t)))
        case = {"net": "fc", "activation": act, "W_std": W_std, "depth": 200, "last": 0, "calls": 1, "rows": 2}
        case["eager"] = True  # jitted, the peer's 400 unrolled layers compile for more than eight minutes
        errors = []
        for python, code, extra in ((sys.executable, OURS, [""]), (peer_python, PEER, [])):
            run(python, code, case, x, y, str(folder / "k.npy"), *extra)
            errors.append(np.abs(np.load(folder / "k.npy").diagonal() / theta - 1))
        for gap, mine, its in zip(gaps, *errors, strict=True):
            print(f"| {act} | {gap:.0e} | {mine:.1e} | {its:.1e} |", flush=True)


def data(case: dict, folder: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    if case["net"] == "myrtle":
        for name in "xy":
            np.save(folder / f"{name}.npy", rng.standard_normal((case["n"], 32, 32, 3)).astype(np.float32))
        return str(folder / "x.npy"), str(folder / "y.npy")
    n, d = case["n"], case["d"]
    X = rng.standard_normal((n, d))
    norms = np.ones(n) if case["norms"] == "fixed" else rng.uniform(0.5, 2.0, n)
    X *= (np.sqrt(d) * norms / np.linalg.norm(X, axis=1))[:, None]
    np.save(folder / "x.npy", X.astype(np.float32))
    return str(folder / "x.npy"), ""


def main() -> None:
    peer_python = ROOT / ".venv-peer" / "bin" / "python"
    if not peer_python.exists():
        raise SystemExit("the peer's environment is missing: make bench-networks makes it")
    chosen = sys.argv[1:] or ["fc", "deep", "tanh", "myrtle", "near"]
    if "near" in chosen:
        with tempfile.TemporaryDirectory() as name:
            near(peer_python, Path(name))
        if not (chosen := [c for c in chosen if c != "near"]):
            return
        print()
    columns = "s", "X @ X.T, s", "over X @ X.T", "peer, s", "times faster", "error", "its error", "MB", "its MB"
    print(f"| network | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases(chosen):
            x, y = data(case, folder)
            files = {who: str(folder / f"{who}.npy") for who in ("ours", "peer", "truth")}
            run(sys.executable, OURS, case, x, y, files["truth"], "64")
            ours, peers = [], []
            for _ in range(case.get("rounds", ROUNDS)):
                ours.append(run(sys.executable, OURS, case, x, y, files["ours"], ""))
                peers.append(run(peer_python, PEER, case, x, y, files["peer"]))
            truth = np.load(files["truth"])
            errors = [np.abs(np.load(files[who]) - truth).max() / np.abs(truth).max() for who in ("ours", "peer")]
            mine, theirs = (statistics.median(r["seconds"] for r in runs) for runs in (ours, peers))
            product = statistics.median(r["product"] for r in ours)
            over = f"{product:.3f} | {mine / product:.2f}" if product else "– | –"
            memory = [max(r["memory"] for r in runs) for runs in (ours, peers)]
            print(
                f"| {case['name']} | {mine:.3f} | {over} | {theirs:.3f} | {theirs / mine:.1f} | {errors[0]:.1e} | "
                f"{errors[1]:.1e} | {memory[0]:.0f} | {memory[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
