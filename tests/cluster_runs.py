"""What the tests of `cluster.py` run as programs of their own, to be killed: `python -m tests.cluster_runs NAME`."""

import os
import sys
import time

import numpy as np

import dualcalc as dc
from dualcalc import cluster


def network():
    """Made when it is needed: jax.distributed must be set up before any array."""
    return dc.serial(dc.Dense(1.5, 0.1), dc.Activation("relu"), dc.Dense(1.5, 0.1), dc.Activation("gelu"), dc.Dense())


def data(n: int, d: int = 32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


def kernel(path: str, n: str, tile: str, workers: str, pause: str = "0") -> None:
    """The kernel of n rows by worker processes (0: by this one); prints tiles as they come, and what it did."""

    def say(done: int, total: int) -> None:
        print(f"tile {done} of {total}", flush=True)
        time.sleep(float(pause))

    def run(client=None) -> None:
        made = cluster.write(network(), data(int(n)), path, tile=int(tile), client=client, progress=say)
        print(f"computed {made.computed} damaged {made.damaged} kept {made.kept} missing {made.missing}", flush=True)

    if int(workers) == 0:
        run()
        return
    with cluster.local(int(workers)) as client:
        print("workers", *client.run(os.getpid).values(), flush=True)
        run(client)


def distributed(path: str, n: str, tile: str, port: str, index: str, pause: str = "0") -> None:
    """The same by two processes of jax.distributed."""
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    cluster.PATIENCE = 4.0
    try:
        kernel(path, n, tile, "0", pause)
    except ValueError as error:
        print(error, flush=True)
        os._exit(1)  # at once: jax.distributed waits for lost processes for minutes


if __name__ == "__main__":
    {"kernel": kernel, "distributed": distributed}[sys.argv[1]](*sys.argv[2:])
