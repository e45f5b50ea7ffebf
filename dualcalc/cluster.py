"""Kernel matrices and feature moments beyond one process: tiles in a Zarr store, written by workers, and resumed.

A store is a Zarr group: one array per kernel, whose chunks are the tiles of `gram.py`, and the inputs. Workers write
chunks and return receipts, the checksums of what they wrote; `receipts*.jsonl` beside the arrays keeps them. A run
that finds a store of the same configuration checks every receipt against the bytes on the disk and computes what is
missing or damaged, so that a run that was killed any number of times ends with the same bits. Who works is the
caller's choice: this process, the workers of a Dask client, the jobs of an array (`part=(i, n)`), or the processes of
`jax.distributed`; all that they share is the folder. Needs the extra `dualcalc[cluster]`; the command line and scripts
call it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import zarr

from . import gram
from .layers import Activation
from .networks import Network, _names
from .ridge import Moments

__all__ = ["Run", "Store", "local", "moments", "write"]

CONFIG, RECEIPTS = "config.json", "receipts"
KEYS = {"hash", "get", "n", "m", "symmetric", "tile", "tiles", "dtype", "inputs", "versions", "code"}  # of a config
VERSIONS = ("dualcalc", "jax", "jaxlib", "numpy")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
"""Of a worker, set before it starts: one thread, as there is a worker per core."""
PULSE = 2.0  # seconds between signs of life of the processes of `jax.distributed`
PATIENCE = 30.0  # seconds without one, after which a process is lost


# Stores -------------------------------------------------------------------------------------------------------------


class Receipt(NamedTuple):
    """A tile that was written: the checksums of its chunks, kernel by kernel, each with that of the transposed one."""

    i: int
    j: int
    checksums: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """A folder with kernel matrices, finished or not. `Store.open(path)` reads what it is.

    config   what determines the bits: network, kernels, inputs, tiles, precision, versions
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """ValueError where there is no store of ours."""
        folder = Path(path)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if not isinstance(config, dict) or not KEYS <= set(config):
                raise ValueError(f"{CONFIG} is of another kind")
            return cls(folder, config)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{folder}: no store of kernels ({error}); `kernel ... -o` or `cluster.write` makes one"
            ) from None

    def array(self, name: str, mode: str = "r") -> zarr.Array:
        """A kernel ("nngp", "ntk"), or the inputs ("X", "Y")."""
        try:
            found = zarr.open_group(self.path, mode="r+" if mode == "r+" else "r")[name]
            if not isinstance(found, zarr.Array):
                raise ValueError("it is a group")
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path}: the array {name} cannot be read ({error}); remove the store") from None
        if name in self.config["get"]:
            here = found.shape, found.chunks, found.dtype.name
            right = (self.config["n"], self.config["m"]), tuple(self.config["tile"]), self.config["dtype"]
            if here != right:
                raise ValueError(f"{self.path}: the array {name} is {here}, expected {right}; remove the store")
        return found

    def places(self, i: int, j: int) -> list[tuple[int, int]]:
        """The chunks of a tile."""
        return [(i, j), (j, i)] if self.config["symmetric"] and i != j else [(i, j)]

    def receipts(self) -> dict[tuple[int, int], Receipt]:
        """What was written, by tile. The last line of a run that was killed may be torn, and does not count."""
        found: dict[tuple[int, int], Receipt] = {}
        for path in sorted(self.path.glob(f"{RECEIPTS}*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError, RecursionError):
                    row = json.loads(line)
                    receipt = Receipt(row["i"], row["j"], tuple(row["checksums"]))
                    if row["config"] == self.config["hash"] and self._fits(receipt):
                        found[receipt.i, receipt.j] = receipt
        return found

    def _fits(self, receipt: Receipt) -> bool:
        """Whether it is of a tile of this store."""
        c, (i, j, checksums) = self.config, receipt
        ours = type(i) is type(j) is int and 0 <= i < -(-c["n"] // c["tile"][0]) and 0 <= j < -(-c["m"] // c["tile"][1])
        upper = not c["symmetric"] or i <= j
        return ours and upper and len(checksums) == len(c["get"]) * len(self.places(i, j))

    def kernel(self, name: str | None = None, verify: bool = True) -> zarr.Array:
        """A finished kernel (the only one, if there is one) on the disk; ValueError where tiles are missing or damaged.

        verify   compares every checksum with the bytes
        """
        names = self.config["get"]
        if name is None and len(names) > 1:
            raise ValueError(f"the store has {' and '.join(names)}; say which")
        if name is not None and name not in names:
            raise ValueError(f"{name!r} came; the store has {' and '.join(names)}")
        missing = self.config["tiles"] - len(self.receipts())
        if missing:
            raise ValueError(
                f"{self.path}: {missing} of {self.config['tiles']} tiles are missing; write it again: the rest stays"
            )
        if verify and (damaged := _sound(self, list(self.receipts().values())).count(False)):
            raise ValueError(
                f"{self.path}: {damaged} of {self.config['tiles']} tiles are damaged; write it again: the rest stays"
            )
        return self.array(name or names[0])

    def read(self, name: str | None = None, verify: bool = True) -> np.ndarray:
        """The same in memory."""
        return np.asarray(self.kernel(name, verify)[:])


def _checksum(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def _places(tile: gram.Tile) -> Iterator[tuple[int, slice, slice, np.ndarray]]:
    """(number of the kernel, rows, columns, values) of every chunk of a tile, in the order of a receipt."""
    for number, (values, mirrored) in enumerate(zip(tile.values, tile.mirrored, strict=True)):
        yield number, tile.rows, tile.columns, values
        if mirrored is not None:
            yield number, tile.columns, tile.rows, mirrored


def _sound(store: Store, receipts: Sequence[Receipt]) -> list[bool]:
    """Whether the bytes on the disk are those of each receipt."""
    arrays = [store.array(name) for name in store.config["get"]]
    size = store.config["tile"]

    def chunk(array: zarr.Array, i: int, j: int) -> str:
        rows, columns = slice(i * size[0], (i + 1) * size[0]), slice(j * size[1], (j + 1) * size[1])
        try:
            return _checksum(np.asarray(array[rows, columns]))
        except (OSError, ValueError, RuntimeError):  # of another length, or gone
            return ""

    found = []
    for receipt in receipts:
        places = store.places(receipt.i, receipt.j)
        found.append(tuple(chunk(array, *place) for array in arrays for place in places) == receipt.checksums)
    return found


def _created(path: Path, config: dict[str, Any], inputs: dict[str, np.ndarray]) -> Store:
    """The store at `path`: a new one, complete or not at all, or what is there, if it is of this configuration."""
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder; create it first")
    if not path.exists():
        draft = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            group = zarr.open_group(draft, mode="w-", attributes={"dualcalc": config["hash"]})
            for name, values in inputs.items():
                group.create_array(name, data=values, chunks=(min(len(values), 4096), *values.shape[1:]))
            for name in config["get"]:
                shape, chunks = (config["n"], config["m"]), tuple(config["tile"])
                options = {"dtype": config["dtype"], "compressors": None, "fill_value": np.nan}
                group.create_array(name, shape=shape, chunks=chunks, **options)
            with warnings.catch_warnings():  # so that what reads the group does not look at the files beside its arrays
                warnings.simplefilter("ignore")
                zarr.consolidate_metadata(draft)
            (draft / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
            try:
                draft.rename(path)
            except OSError:
                if not path.is_dir():  # else another job of the array was faster
                    raise
        except OSError as error:
            raise ValueError(f"{path}: {error}; make room, or choose another folder") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    store = Store.open(path)
    if store.config != config:
        keys = [key for key in config if store.config.get(key) != config[key]]
        keys = keys[:-1] or keys  # the hash says nothing, where it is not alone
        said = "; ".join(f"{key} was {store.config.get(key)!r}, is {config[key]!r}" for key in keys)
        raise ValueError(f"{path} holds another kernel: {said[:600]}. Choose another name, or remove it")
    return store


def _clean(store: Store) -> None:
    """Without what killed workers left half-written."""
    for path in store.path.rglob("*.partial"):
        path.unlink(missing_ok=True)
    for path in store.path.glob("alive-*"):
        if time.time() - path.stat().st_mtime > PATIENCE:
            path.unlink(missing_ok=True)


def _wide() -> bool:
    """Whether this process computes in 64 bits."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


# Workers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a worker needs beside the folder; it goes to it in the client's own messages, and into no file."""

    path: str
    hash: str
    net: Network
    tol: float | None
    x64: bool


_prepared: dict[str, gram.Work] = {}  # of this process, the last job's


def _work(job: Job) -> tuple[Store, gram.Work]:
    if job.x64 and not _wide():
        raise ValueError("a worker computes in 32 bits; set JAX_ENABLE_X64=1 where it starts, or use `cluster.local`")
    store = Store.open(job.path)
    if store.config["hash"] != job.hash:
        raise ValueError(f"{job.path}: another store than that of the caller; workers need the same folder")
    here = {name: version(name) for name in VERSIONS}
    if here != store.config["versions"]:
        raise ValueError(f"a worker has {here}, the store {store.config['versions']}; install the same")
    if job.hash not in _prepared:
        _prepared.clear()
        X = np.asarray(store.array("X")[:])
        Y = None if store.config["symmetric"] else np.asarray(store.array("Y")[:])
        for name, values in {"X": X, "Y": Y}.items():
            if values is not None and _checksum(values) != store.config["inputs"][name]:
                raise ValueError(f"{job.path}: the inputs {name} in the store are damaged; remove the store")
        if (code := _identity(job.net)) != store.config["code"]:
            raise ValueError(f"a worker has other activations, {code}, than the store; does it see the same catalog?")
        size = max(store.config["tile"])
        _prepared[job.hash] = job.net.work(X, Y, tuple(store.config["get"]), tol=job.tol, tile=size)
    return store, _prepared[job.hash]


def _compute(job: Job, indices: Sequence[tuple[int, int]]) -> list[Receipt]:
    """Write these tiles. The store is complete where their receipts are known."""
    return list(_computed(job, indices))


def _computed(job: Job, indices: Sequence[tuple[int, int]]) -> Iterator[Receipt]:
    store, work = _work(job)
    arrays = [store.array(name, "r+") for name in store.config["get"]]
    for tile in work.tiles(indices):
        checksums = []
        for number, rows, columns, values in _places(tile):
            arrays[number][rows, columns] = values
            checksums.append(_checksum(values))
        yield Receipt(tile.i, tile.j, tuple(checksums))


@contextmanager
def local(workers: int | None = None, *, x64: bool | None = None, memory: str | float = "auto") -> Iterator[Any]:
    """A Dask client of worker processes on this machine, one thread each, gone at the end.

    workers   one per core, if not given
    x64       whether they compute in 64 bits; as this process does, if not given
    memory    of each: Dask's `memory_limit`

    Processes are spawned, so a script must hold its work under `if __name__ == "__main__":`.
    """
    import dask
    from distributed import Client, LocalCluster

    bits = _wide() if x64 is None else x64
    flags = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), ENVIRONMENT["XLA_FLAGS"]]))
    env = {**ENVIRONMENT, "XLA_FLAGS": flags, "JAX_ENABLE_X64": str(int(bits))}
    settings = {
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.nanny.pre-spawn-environ": env,
        "distributed.scheduler.allowed-failures": 10,
    }
    options = {
        "n_workers": workers or gram.cores(),
        "threads_per_worker": 1,
        "processes": True,
        "dashboard_address": ":0",
    }
    kept = {name: os.environ.get(name) for name in (*env, *LEFT)}
    try:
        with (
            dask.config.set(settings),
            LocalCluster(**options, memory_limit=memory, env=env, silence_logs=50) as cluster,
            Client(cluster) as client,
        ):
            _restore(kept)
            yield client
    finally:
        _restore(kept)


LEFT = ("PYTHONHASHSEED", "__DASK_PARENT_PID")
"""What Dask leaves in the environment of the process that starts workers, beside what they are given."""


def _restore(kept: dict[str, str | None]) -> None:
    for name, value in kept.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


# Kernels ------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What a `write` did.

    tiles      of the store
    computed   by this run; `damaged` of them since their bytes were not those of their receipts
    kept       found, and right to the bit
    missing    what is left for other parts of a job array; 0 when the kernels are complete
    """

    store: Store
    tiles: int
    computed: int
    damaged: int
    kept: int
    missing: int
    seconds: float


def write(
    net: Network,
    X: Any,
    path: str | os.PathLike[str],
    Y: Any = None,
    get: str | tuple[str, ...] = "ntk",
    *,
    client: Any = None,
    part: tuple[int, int] | None = None,
    tol: float | None = None,
    tile: int | None = None,
    memory: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Run:
    """The kernels of a network, as `net(X, Y, get)` gives them, into the Zarr store `path`; resumed if it is there.

    client     of Dask, whose workers see the same folder (`local` makes one); without it this process works
    part       (i, n): only the i-th of n parts, i from 0, for the jobs of an array, in any order and at any time. Under
               `jax.distributed` it is this process's, and the call returns when all processes are through
    tol        of depth fusion, as of a call
    tile       rows and columns of a chunk; see `gram.compute`
    progress   True for a bar on stderr, or a function of (tiles done, tiles to do)

    The same store from any workers, and after any interruption, has the same bits where machines and versions are the
    same. Raises ValueError for a store of another configuration, and what the network raises; where a disk is full or
    workers are lost, the message says how many tiles are done, and a second call goes on from there.
    """
    start = time.perf_counter()
    names = _names(get)
    work = net.work(X, Y, names, tol=tol, tile=tile, memory=memory)
    work = replace(work, plan=_squared(work.plan))
    many = jax.process_count() > 1
    part = part or ((jax.process_index(), jax.process_count()) if many else (0, 1))
    whole = isinstance(part, tuple) and len(part) == 2 and all(isinstance(x, int) for x in part)
    if not whole or not 0 <= part[0] < part[1]:
        raise ValueError(f"part={part!r} came; (i, n) with 0 <= i < n was expected")
    store = _created(Path(path), *_configuration(net, work, names, tol))
    job = Job(str(store.path.resolve()), store.config["hash"], net, tol, _wide())
    mine = [at for k, at in enumerate(work.plan.indices()) if k % part[1] == part[0]]
    known = store.receipts()
    found = [known[at] for at in mine if at in known]
    with _pulse(store, part) if many else nullcontext():
        sound = {r[:2] for r, right in zip(found, _checked(store, found, client), strict=True) if right}
        todo = [at for at in mine if at not in sound]
        _prepared.clear()
        if client is None:
            _prepared[job.hash] = work
        results = _results(job, todo, client)
        done = _receive(store, part, _beside(results, store, part[1]) if many else results, todo, progress)
        _clean(store)
        if many:
            _await_others(store, part[1])
    damaged = len({r[:2] for r in found} & set(todo))
    missing = work.plan.tiles - len(store.receipts())
    return Run(store, work.plan.tiles, done, damaged, len(sound), missing, time.perf_counter() - start)


def _squared(plan: gram.Plan) -> gram.Plan:
    """With tiles as the workers make them from one number."""
    size = max(plan.tile)
    return replace(plan, tile=(min(size, plan.n), min(size, plan.m)))


def _configuration(net: Network, work: gram.Work, names: tuple[str, ...], tol: float | None) -> tuple[dict, dict]:
    """What determines the bits, with a hash of it, and the inputs."""
    inputs = {"X": np.asarray(jax.tree.leaves(work.rows)[0])}
    if not work.plan.symmetric:
        inputs["Y"] = np.asarray(jax.tree.leaves(work.columns)[0])
    plan = work.plan
    config: dict[str, Any] = {
        "network": repr(net),
        "code": _identity(net),
        "numbers": [float(leaf).hex() for leaf in jax.tree.leaves(net)],
        "get": list(names),
        "tol": tol,
        "n": plan.n,
        "m": plan.m,
        "symmetric": plan.symmetric,
        "tile": list(plan.tile),
        "tiles": plan.tiles,
        "dtype": plan.dtype.name,
        "inputs": {name: _checksum(values) for name, values in inputs.items()},
        "versions": {name: version(name) for name in VERSIONS},
    }
    return config | {"hash": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}, inputs


def _identity(net: Network) -> list[str]:
    """Of what each activation computes, whatever its name: the checksum of its generated code."""
    found = []
    for layer in jax.tree.leaves(net, is_leaf=lambda x: isinstance(x, Activation)):
        if isinstance(layer, Activation):
            if not layer.fns.source:
                raise ValueError(f"{layer!r}: a kernel that is a Python function has no identity; give it as a formula")
            found.append(hashlib.sha256(layer.fns.source.encode()).hexdigest()[:16])
    return found


def _checked(store: Store, receipts: list[Receipt], client: Any) -> list[bool]:
    if client is None or not receipts:
        return _sound(store, receipts)
    batches = [receipts[i : i + 16] for i in range(0, len(receipts), 16)]
    futures = client.map(lambda batch: _sound(store, batch), batches, pure=False)
    return [right for batch in client.gather(futures) for right in batch]


def _results(job: Job, todo: list[tuple[int, int]], client: Any) -> Iterator[Receipt]:
    """The receipts of these tiles as they come; of Dask's workers each has one tile at work and one waiting."""
    if client is None:
        yield from _computed(job, todo)
        return
    from distributed import as_completed

    waiting = iter(todo)
    lead = 2 * max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)

    def submit() -> list[Any]:
        return [client.submit(_compute, job, [at], pure=False) for at in [next(waiting, None)] if at is not None]

    running = as_completed([future for _ in range(lead) for future in submit()])
    try:
        for future in running:
            yield from future.result()
            for more in submit():
                running.add(more)
    finally:
        client.cancel(list(running.futures))


def _receive(store: Store, part, receipts: Iterator[Receipt], todo, progress) -> int:
    """Keep the receipts, each safe on the disk before the next is asked for; how many came."""
    name = f"{RECEIPTS}.jsonl" if part == (0, 1) else f"{RECEIPTS}-{part[0]}-of-{part[1]}.jsonl"
    done = 0
    try:
        with open(store.path / name, "a", encoding="utf-8") as file, gram.reporter(progress, len(todo)) as report:
            file.write("\n")  # after a torn line
            for receipt in receipts:
                row = {"config": store.config["hash"], **receipt._asdict()}
                file.write(f"{json.dumps(row)}\n")
                file.flush()
                os.fsync(file.fileno())
                done += 1
                report(done)
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        lost = type(error).__name__ in ("KilledWorker", "CommClosedError", "CancelledError", "FutureCancelledError")
        if not full and not lost:
            raise
        _clean(store)
        what = "the disk is full" if full else f"workers were lost ({error})"
        remedy = "make room" if full else "start them again, perhaps with more memory"
        total = store.config["tiles"]
        said = (
            f"{store.path}: {what}; {len(store.receipts())} of {total} tiles are done. {remedy[0].upper()}{remedy[1:]}"
        )
        raise ValueError(f"{said}, and call again: it goes on from there") from error
    return done


# Processes of jax.distributed ---------------------------------------------------------------------------------------


@contextmanager
def _pulse(store: Store, part: tuple[int, int]) -> Iterator[None]:
    """A sign of life beside the store, renewed while the block runs; that of a killed process stays, and ages."""
    path, stop = store.path / f"alive-{part[0]}", threading.Event()

    def beat() -> None:
        while not stop.wait(PULSE):
            path.touch()

    path.touch()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


def _beside(receipts: Iterator[Receipt], store: Store, count: int) -> Iterator[Receipt]:
    """These, as long as no other process is lost."""
    began = time.time()
    for receipt in receipts:
        yield receipt
        _look_for_others(store, count, began, absent=math.inf)


def _await_others(store: Store, count: int) -> None:
    """Until all tiles are there; ValueError when a process that may owe some gives no sign of life."""
    began = time.time()
    while store.config["tiles"] > len(store.receipts()):
        _look_for_others(store, count, began, absent=began)
        time.sleep(PULSE / 4)


def _look_for_others(store: Store, count: int, began: float, absent: float) -> None:
    """ValueError where a process gave no sign of life for long; what is older than `began` is of an earlier run.

    absent   when one was seen that has no sign: it failed, or is not there yet
    """
    for i in range(count):
        try:
            seen = max((store.path / f"alive-{i}").stat().st_mtime, began)
        except FileNotFoundError:
            seen = absent
        missing = store.config["tiles"] - len(store.receipts())
        if time.time() - seen > PATIENCE and missing:
            raise ValueError(
                f"process {i} of {count} gives no sign of life; {missing} of {store.config['tiles']} tiles are "
                f"missing in {store.path}. Run all processes again: they go on from there"
            )


# Features -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    make: Callable[[], Callable[[np.ndarray], np.ndarray]]
    source: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    batch: int
    x64: bool
    key: str  # of the call

    def __call__(self, start: int, stop: int) -> Moments:
        if self.x64 and not _wide():
            raise ValueError("a worker computes in 32 bits; set JAX_ENABLE_X64=1 where it starts, or use `local`")
        features = _map(self.key, self.make)
        total: Moments | None = None
        for first in range(start, stop, self.batch):
            X, Y = self.source(first, min(first + self.batch, stop))
            Z, Y = np.asarray(features(X), float), np.asarray(Y, float).reshape(len(X), -1)
            total = total or Moments.zero(Z.shape[1], Y.shape[1])
            total.add(Z, Y)
        assert total is not None
        return total


_maps: dict[str, Callable] = {}  # of this process, the last call's


def _map(key: str, make: Callable[[], Callable]) -> Callable:
    """The feature map, made from its seed once per process: it is small to say and large to send."""
    if key not in _maps:
        _maps.clear()
        _maps[key] = make()
    return _maps[key]


def moments(
    make: Callable[[], Callable[[np.ndarray], np.ndarray]],
    source: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    rows: int,
    *,
    client: Any = None,
    batch: int = 4096,
    block: int = 2**18,
) -> Moments:
    """Z'Z, Z'y and the other sums of `ridge.Moments` over any number of rows; neither rows nor features are stored.

    `moments(...).fit(ridge)` is the ridge regression from them.

    make     makes the feature map, from its seed: called once in every worker
    source   of (start, stop): these rows (b, d) and their targets (b,) or (b, t). They are asked for by any worker, and
             must be the same each time: read from a file, or drawn from a generator seeded by `start`
    client   of Dask; without it this process works
    batch    rows at a time; `block`, rows of one task, a multiple of it. Tasks are added in a fixed tree, so that the
             sums are the same to the bit for any number of workers
    """
    if rows < 1 or batch < 1 or block % batch:
        raise ValueError(f"rows={rows}, batch={batch}, block={block} came; positive, and block a multiple of batch")
    work = _Block(make, source, batch, _wide(), secrets.token_hex())
    spans = [(first, min(first + block, rows)) for first in range(0, rows, block)]
    if client is None:
        return _tree([work(*span) for span in spans], Moments.__add__).whole()
    # Of neighbours, so that two sums can go as soon as both are there; a worker holds a few.
    parts = [client.submit(work, *span, pure=False) for span in spans]
    total = _tree(parts, lambda a, b: client.submit(Moments.__add__, a, b, pure=False, priority=1))
    del parts
    return total.result().whole()


def _tree(parts: list[Any], add: Callable[[Any, Any], Any]) -> Any:
    """The sum of neighbours, of neighbours of those, and so on."""
    while len(parts) > 1:
        pairs = [add(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
        parts[:] = pairs
    return parts[0]
