"""One NNGP + NTK layer of tanh and SiLU beside neural-tangents' numerical quadrature: `make bench-peer`.

neural-tangents 0.6.5 runs in an environment of its own with the JAX that it needs, this library in ours, in turns: each
round starts a process of either, which compiles, then takes the median of a few runs. n rows with norms uniform in
[0.5, 2], float64. Errors are over sqrt(k11 k22) (kdot: its own scale), against our tables at 1e-10. For scale, the
closed-form erf layer runs beside ours.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
N, D, ROUNDS = 1000, 60, 3
ACTIVATIONS = ("tanh", "silu")

PEER = """
import json, statistics, sys, time
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np
from neural_tangents import stax
X = jnp.asarray(np.load(sys.argv[1]))
out = {}
for name, f in (("tanh", jnp.tanh), ("silu", jax.nn.silu)):
    _, _, kernel = stax.serial(stax.Dense(1), stax.ElementwiseNumerical(f, deg=25))
    run = jax.jit(lambda x: (lambda k: (k.nngp, k.ntk))(kernel(x, None, get=("nngp", "ntk"))))
    jax.block_until_ready(run(X))
    seconds = []
    for _ in range(2):
        start = time.perf_counter(); k = jax.block_until_ready(run(X)); seconds.append(time.perf_counter() - start)
    np.savez(f"{sys.argv[2]}/peer_{name}.npz", nngp=np.asarray(k[0]), ntk=np.asarray(k[1]))
    out[name] = statistics.median(seconds)
print(json.dumps(out))
"""

OURS = """
import json, statistics, sys, time
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np
import dualcalc as dc
X = jnp.asarray(np.load(sys.argv[1]))
out, nets = {}, {}
for name in ("tanh", "silu"):
    for tol in (1e-6, 1e-10):
        nets[f"{name} {tol:g}"] = dc.serial(dc.Dense(), dc.Activation(name, tol=tol))
nets["erf"] = dc.serial(dc.Dense(), dc.Activation("erf"))
for name, net in nets.items():
    k = jax.block_until_ready(net(X, get=("nngp", "ntk")))
    if name != "erf":
        np.savez(f"{sys.argv[2]}/ours_{name}.npz", nngp=np.asarray(k.nngp), ntk=np.asarray(k.ntk))
seconds = {name: [] for name in nets}
for _ in range(9):
    for name, net in nets.items():
        start = time.perf_counter()
        jax.block_until_ready(net(X, get=("nngp", "ntk")))
        seconds[name].append(time.perf_counter() - start)
print(json.dumps({name: statistics.median(s) for name, s in seconds.items()}))
"""


def run(python: Path | str, code: str, data: Path) -> dict[str, float]:
    done = subprocess.run([python, "-c", code, data / "x.npy", data], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    peer_python = ROOT / ".venv-peer" / "bin" / "python"
    if not peer_python.exists():
        raise SystemExit("the peer's environment is missing: make bench-peer makes it")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D))
    X *= (np.sqrt(D) * rng.uniform(0.5, 2.0, N) / np.linalg.norm(X, axis=1))[:, None]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        np.save(data / "x.npy", X)
        peers, ours = [], []
        for _ in range(ROUNDS):
            ours.append(run(sys.executable, OURS, data))
            peers.append(run(peer_python, PEER, data))
        ms = {name: 1e3 * statistics.median(x[name] for x in ours) for name in ours[0]}
        theirs = {name: 1e3 * statistics.median(x[name] for x in peers) for name in peers[0]}
        print("| layer | ms | neural-tangents deg 25, ms | times faster | times erf | error | its error |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for name in ACTIVATIONS:
            truth = np.load(data / f"ours_{name} 1e-10.npz")
            for tol in ("1e-06", "1e-10"):
                key = f"{name} {tol}"
                errors = []
                for file in (f"ours_{key}.npz", f"peer_{name}.npz"):
                    found, worst = np.load(data / file), 0.0
                    for kernel in ("nngp", "ntk"):
                        scale = np.sqrt(np.outer(*[np.diag(truth[kernel])] * 2))
                        worst = max(worst, float(np.max(np.abs(found[kernel] - truth[kernel]) / scale)))
                    errors.append(worst)
                print(
                    f"| {name}, tol {tol} | {ms[key]:.1f} | {theirs[name]:.0f} | {theirs[name] / ms[key]:.0f} | "
                    f"{ms[key] / ms['erf']:.2f} | {errors[0]:.1e} | {errors[1]:.1e} |"
                )
        print(f"erf, closed form: {ms['erf']:.1f} ms")


if __name__ == "__main__":
    main()
