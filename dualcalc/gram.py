"""Gram matrices by tiles: every row point with every column point, through any function of two blocks of points.

20,000 x 20,000 pairs do not fit into memory beside their intermediate results, so they are computed in tiles; a
finished tile goes where it belongs, in memory or in a `.npy` file, while the next ones are computed. Here are the
choice of tiles (`plan`), the symmetric case (half of the tiles, the same bits on both sides of the diagonal), several
devices, and files that exist only when complete. What a pair is, this file does not know: `networks.py` brings it.
"""

import math
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from numpy.lib.format import open_memmap

AHEAD = 2
"""Tiles that wait or run on the devices while a finished one is copied."""

SPAN = 8
"""Tiles are taken in squares of SPAN x SPAN: their blocks of points stay on the device, and the short row segments
that a column of tiles writes to a file grow together in the page cache before they go to disk."""

LARGEST = {"cpu": 512}
"""Rows and columns of the largest tile by platform; 4096 on others, not measured. On two cores, n = 4096, d = 784,
float32, a product and 20 flops: 0.37 s by 128, 0.27 by 256, 0.25 by 512 and 1024, 0.31 by 2048; X @ X.T alone 0.42."""


# --------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Plan:
    """What `compute` will do. `str(plan)` says it in words.

    n, m            rows and columns of the matrix; symmetric where the columns are the rows
    kernels, dtype  how many matrices, and of what
    devices         over which the rows of each tile are divided
    tile            (rows, columns) of a tile; the last ones are filled up to it
    working_bytes   per device: tiles in flight and blocks of points
    flops_per_pair, pairs_per_second   as given or measured; None where unknown
    paths           output files; empty for arrays in memory
    refusal         why the output does not fit on the disk, and what to do; empty where it fits
    """

    n: int
    m: int
    symmetric: bool
    kernels: int
    dtype: np.dtype
    devices: tuple[jax.Device, ...]
    tile: tuple[int, int]
    working_bytes: int
    flops_per_pair: float | None
    pairs_per_second: float | None
    paths: tuple[Path, ...]
    refusal: str

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along the rows and along the columns."""
        return -(-self.n // self.tile[0]), -(-self.m // self.tile[1])

    @property
    def tiles(self) -> int:
        """How many tiles are computed."""
        down, across = self.grid
        return down * (down + 1) // 2 if self.symmetric else down * across

    @property
    def pairs(self) -> int:
        """How many pairs are computed, filling included."""
        return self.tiles * self.tile[0] * self.tile[1]

    @property
    def output_bytes(self) -> int:
        """Of all kernels together."""
        return self.kernels * self.n * self.m * self.dtype.itemsize

    @property
    def flops(self) -> float | None:
        return None if self.flops_per_pair is None else self.pairs * self.flops_per_pair

    @property
    def seconds(self) -> float | None:
        """Without compilation and the disk."""
        return None if self.pairs_per_second is None else self.pairs / self.pairs_per_second

    def indices(self) -> Iterator[tuple[int, int]]:
        """The tiles (i, j) in the order in which they are computed: squares of SPAN x SPAN, row by row."""
        down, across = self.grid
        for top in range(0, down, SPAN):
            for left in range(top if self.symmetric else 0, across, SPAN):
                for i in range(top, min(top + SPAN, down)):
                    for j in range(max(left, i) if self.symmetric else left, min(left + SPAN, across)):
                        yield i, j

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "rectangular"
        platforms = ", ".join(sorted({device.platform for device in self.devices}))
        where = ", ".join(map(str, self.paths)) or "memory"
        lines = [
            f"{self.n} x {self.m} pairs, {kind}, {self.kernels} kernel(s) of {self.dtype}",
            f"tiles     {self.tiles} of {self.tile[0]} x {self.tile[1]} on {len(self.devices)} device(s): {platforms}",
            f"output    {readable(self.output_bytes)} in {where}",
            f"working   {readable(self.working_bytes)} per device",
        ]
        lines += [] if self.flops is None else [f"work      {self.flops:.3g} flops"]
        lines += (
            [] if self.seconds is None else [f"time      about {self.seconds:.3g} s, besides starting and compiling"]
        )
        lines += [f"REFUSED   {self.refusal}"] if self.refusal else []
        return "\n".join(lines)


def plan(
    n: int,
    m: int | None = None,
    *,
    bytes_per_point: int,
    kernels: int = 1,
    dtype: Any = np.float32,
    bytes_per_pair: int | None = None,
    flops_per_pair: float | None = None,
    pairs_per_second: float | None = None,
    out: Any = None,
    overwrite: bool = False,
    tile: int | None = None,
    memory: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Plan:
    """The plan of a Gram matrix (n, m), symmetric (n, n) without m, before any computation.

    bytes_per_point   of all leaves together: 4 d for float32 rows of d features
    bytes_per_pair    what the function of pairs holds at a time for one pair, its results included; 10 numbers of
                      `dtype` if not given
    flops_per_pair, pairs_per_second   for the figures `flops` and `seconds`; `calibrate` measures the latter
    out, overwrite, tile, memory, devices   as in `compute`
    Raises ValueError where `compute` would, but for a disk that is too small: see `Plan.refusal`.
    """
    devices = tuple(jax.local_devices() if devices is None else devices)
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        raise ValueError(f"devices={devices!r} came; jax.devices() or some of them were expected, or None for all here")
    dtype = np.dtype(dtype)
    counts = {"n": n, "m": m, "tile": tile, "memory": memory, "bytes_per_pair": bytes_per_pair}
    for name, value in {**counts, "bytes_per_point": bytes_per_point, "kernels": kernels}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name} = {value!r} came; a positive integer was expected")
    m, symmetric = (n, True) if m is None else (m, False)
    per_pair = (bytes_per_pair or 10 * dtype.itemsize) + kernels * dtype.itemsize * symmetric  # and the transposes
    tile_cost, block_cost = (AHEAD + 1) * per_pair / len(devices), 2 * SPAN * bytes_per_point
    if tile is None:
        memory = memory or (devices[0].memory_stats() or {}).get("bytes_limit", 2**31) // 4
        # the positive root of tile_cost t^2 + block_cost t = memory
        most = 2 * memory / (block_cost + math.sqrt(block_cost**2 + 4 * tile_cost * memory))
        if most < 1:
            raise ValueError(
                f"memory = {readable(memory)} is too small for one pair: {bytes_per_point} bytes per point and "
                f"{per_pair} per pair need {readable(math.ceil(tile_cost + block_cost))}. Give more memory, or a "
                "function of pairs that holds less"
            )
        most = min(int(most), int(LARGEST.get(devices[0].platform, 4096) * math.sqrt(len(devices))))
        sizes = _even(n, most), _even(m, most)
    else:
        sizes = min(tile, n), min(tile, m)
    paths = _paths(out, kernels, overwrite)
    return Plan(
        n, m, symmetric, kernels, dtype, devices, sizes,
        math.ceil(tile_cost * sizes[0] * sizes[1] + block_cost * max(sizes)),
        flops_per_pair, pairs_per_second, paths, _refusal(paths, n * m * dtype.itemsize),
    )  # fmt: skip


def calibrate(plan: Plan, pairs: Callable, rows: Any, columns: Any = None, marks: bool = False) -> Plan:
    """The plan with `pairs_per_second` measured on its first tile, computed twice (the first time compiles), and
    `flops_per_pair` as XLA counts them, where it does.

    marks   whether `pairs` returns marks for `mend`, which is not measured
    """
    first = jax.tree.map(lambda leaf: leaf[: plan.tile[0]], rows)
    second = jax.tree.map(lambda leaf: leaf[: plan.tile[1]], rows if columns is None else columns)
    mend = (lambda i, j: [np.zeros(len(i), plan.dtype)] * plan.kernels) if marks else None
    for _ in range(2):
        start = time.perf_counter()
        compute(pairs, first, second, dtype=plan.dtype, tile=max(plan.tile), devices=plan.devices, mend=mend)
        seconds = time.perf_counter() - start
    size = plan.tile[0] * plan.tile[1]
    counted = jax.jit(pairs).lower(first, second).cost_analysis() or {}
    return replace(plan, pairs_per_second=size / seconds, flops_per_pair=counted.get("flops", 0) / size or None)


def cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _even(count: int, most: int) -> int:
    """The size of equal tiles that cover `count` points, a multiple of 8 where `most` allows, so that little is filled
    up."""
    step = 8 if most >= 8 else 1
    size = -(-count // -(-count // (most // step * step)))
    return min(-(-size // step) * step, count)


def readable(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


# ------------------------------------------------------------------------------------------------------------ compute


def compute(
    pairs: Callable,
    rows: Any,
    columns: Any = None,
    *,
    diagonal: Any = None,
    dtype: Any = None,
    out: Any = None,
    overwrite: bool = False,
    tile: int | None = None,
    memory: int | None = None,
    bytes_per_pair: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
    devices: Sequence[jax.Device] | None = None,
    mend: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]] | None = None,
) -> Any:
    """`pairs` of every row with every column: NumPy arrays (n, m), in the structure in which `pairs` returns them.

    pairs      of two blocks of points, as pytrees like `rows` (b, ...) and `columns` (c, ...): one matrix (b, c) or a
               pytree of them (one per kernel), each entry from its own two points alone. JAX must be able to trace it.
               It is compiled once per function object and shapes of tiles. What changes from call to call belongs
               into `jax.tree_util.Partial(function, *arrays)`, whose arrays are arguments of the compiled code
    rows, columns   pytrees of arrays (NumPy, memory-mapped or JAX) of leading size n, and m. Without columns the pairs
               of the rows: only tiles on and above the diagonal are computed, the rest is their transpose to the bit
    diagonal   replaces the entries (i, i): one array (n,) per kernel; only without columns
    dtype      of the matrices; as `pairs` returns them if not given
    out        path of a `.npy` file, or one per kernel: read-only memory maps of them are returned. They are written
               under the hidden name `.NAME.partial-*` beside them and renamed when complete. A run that is killed
               leaves that hidden file; any other failure removes it
    overwrite  replace files that exist
    tile       rows and columns of a tile; the same tile on the same devices gives the same bits. Another one can give
               others where XLA adds up products of another shape in another order (float32, 784 features: 2 eps, 16 on
               the diagonal). If not given, the largest, up to a size that was measured, for `memory` and
               `bytes_per_pair`, as equal as can be
    memory     bytes on each device for tiles and blocks of points; a quarter of it, and 512 MiB for CPUs, if not given
    bytes_per_pair   see `plan`
    progress   True for a bar on stderr, or a function of (tiles done, tiles in all), called after every tile
    devices    all of this process if not given. The rows of each tile are divided over them
    mend       for entries that take another way: `pairs` then returns, last of a tuple, one matrix more, which is true
               at them. `mend(i, j)`, for indices of rows and columns, gives one array of values per kernel
    Raises ValueError for inputs that are empty or of unequal lengths, results of a wrong shape, files that exist or
    cannot be written, and a disk or memory that is too small: all before the first tile.
    """
    work = prepare(
        pairs, rows, columns, diagonal=diagonal, dtype=dtype, out=out, overwrite=overwrite, tile=tile, memory=memory,
        bytes_per_pair=bytes_per_pair, devices=devices, mend=mend,
    )  # fmt: skip
    return run(work, progress)


def run(work: "Work", progress: bool | Callable[[int, int], None] = False) -> Any:
    """All tiles of a prepared work, where they belong: what `compute` returns."""
    if work.plan.refusal:
        raise ValueError(work.plan.refusal)
    with _output(work.plan, work.dtypes) as matrices, reporter(progress, work.plan.tiles) as report:
        for done, tile in enumerate(work.tiles(), 1):
            for matrix, values, mirrored in zip(matrices, tile.values, tile.mirrored, strict=True):
                if mirrored is not None:
                    matrix[tile.columns, tile.rows] = mirrored
                matrix[tile.rows, tile.columns] = values
            report(done)
    results = [np.load(path, mmap_mode="r") for path in work.plan.paths] or matrices
    return jax.tree.unflatten(work.structure, results)


class Tile(NamedTuple):
    """A finished tile (i, j): where it belongs, a matrix per kernel, and what belongs at the transposed place; that is
    None on the diagonal, and where the matrix is not symmetric."""

    i: int
    j: int
    rows: slice
    columns: slice
    values: list[np.ndarray]
    mirrored: list[np.ndarray | None]


@dataclass(frozen=True)
class Work:
    """A Gram matrix that is planned and checked, of which any tiles can be computed; `prepare` makes it.

    The rest are the arguments of `compute`, as it uses them.
    """

    plan: Plan
    bound: Partial
    rows: Any
    columns: Any
    dtypes: tuple[np.dtype, ...]
    structure: Any
    diagonals: list[np.ndarray]
    mend: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]] | None

    def tiles(self, only: Iterable[tuple[int, int]] | None = None) -> Iterator[Tile]:
        """The tiles of these indices, or all; a tile has the same bits whichever others are computed."""
        raw = _tiles(self.plan, self.bound, self.rows, self.columns, self.dtypes, only)
        return (_finished(self.plan, tile, self.diagonals, self.mend) for tile in raw)


def prepare(
    pairs: Callable,
    rows: Any,
    columns: Any = None,
    *,
    diagonal: Any = None,
    dtype: Any = None,
    mend: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]] | None = None,
    **options: Any,
) -> Work:
    """The work of a `compute` with these arguments, before its first tile. Raises ValueError as that does."""
    rows, n, bytes_per_point = _points(rows, "rows")
    m = None
    if columns is not None:
        columns, m, column_bytes = _points(columns, "columns")
        bytes_per_point = max(bytes_per_point, column_bytes)
    else:
        columns = rows
    bound = pairs if isinstance(pairs, Partial) else Partial(pairs)
    structure, dtypes = _results(bound, rows, columns, dtype, mend is not None)
    todo = plan(n, m, bytes_per_point=bytes_per_point, kernels=len(dtypes), dtype=np.result_type(*dtypes), **options)
    return Work(todo, bound, rows, columns, tuple(dtypes), structure, _diagonals(diagonal, todo), mend)


def _tiles(todo: Plan, bound: Partial, rows, columns, dtypes, only) -> Iterator[tuple]:
    """(i, j, tiles of all kernels, their transposes), filling included; the next AHEAD are under way meanwhile."""
    program, divided, everywhere = _program(bound.func, dtypes, todo.devices)
    bound = jax.device_put(bound, everywhere)
    height, width = todo.tile
    padded = -(-height // len(todo.devices)) * len(todo.devices)

    @lru_cache(maxsize=SPAN)
    def row_block(i: int):
        return jax.device_put(_block(rows, i * height, height, padded), divided)

    @lru_cache(maxsize=SPAN)
    def column_block(j: int):
        return jax.device_put(_block(columns, j * width, width, width), everywhere)

    waiting: deque[tuple] = deque()
    for i, j in todo.indices() if only is None else only:
        tiles = program(bound, row_block(i), column_block(j))
        mirrored = _transposed(tiles) if todo.symmetric else None
        for array in jax.tree.leaves((tiles, mirrored)):
            array.copy_to_host_async()
        waiting.append((i, j, tiles, mirrored))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _finished(todo: Plan, raw: tuple, diagonals, mend) -> Tile:
    """Without the filling, mended, symmetric to the bit."""
    i, j, tiles, transposes = raw
    top, left = i * todo.tile[0], j * todo.tile[1]
    height, width = min(todo.tile[0], todo.n - top), min(todo.tile[1], todo.m - left)
    made = Tile(i, j, slice(top, top + height), slice(left, left + width), [], [])
    marked: tuple[np.ndarray, ...] = (np.empty(0, int),) * 2
    mended = None
    if mend is not None:
        flags = np.asarray(tiles[-1])[:height, :width]
        if flags.any():
            marked = np.nonzero(np.triu(flags, 1) if todo.symmetric and i == j else flags)
    if len(marked[0]):
        mended = mend(top + marked[0], left + marked[1])
    for number in range(todo.kernels):
        values = np.asarray(tiles[number])[:height, :width]
        other = np.asarray(transposes[number])[:width, :height] if todo.symmetric else values.T
        if mended is not None:
            values, other = values.copy(), other.copy()
            values[marked] = mended[number]
            other[marked[::-1]] = mended[number]
        if todo.symmetric and i == j:
            values = np.where(np.tri(height, k=-1, dtype=bool), other, values)
            if diagonals:
                np.fill_diagonal(values, diagonals[number][made.rows])
        made.values.append(values)
        made.mirrored.append(other if todo.symmetric and i != j else None)
    return made


# The last functions' compiled code: shard_map makes a new function at every call, which jax.jit would compile anew.
@lru_cache(maxsize=16)
def _program(function: Callable, dtypes: tuple[np.dtype, ...], devices: tuple[jax.Device, ...]):
    """The jitted tile of `Partial(function, ...)`, where to put row blocks, and where to put all the rest.

    Rows are divided, rather than whole tiles handed round, because that compiles once and not once per device;
    shard_map, as each device has all it needs for its rows and shall not be told to exchange anything."""
    mesh = Mesh(np.array(devices), ("rows",))

    def tile(bound: Partial, rows, columns):
        kernels = jax.tree.leaves(bound(rows, columns))
        typed = tuple(k.astype(dtype) for k, dtype in zip(kernels, dtypes, strict=False))
        return typed + tuple(kernels[len(dtypes) :])

    # check_vma refuses loops whose carry begins as a constant; it guards against a wrong out_specs, as this one is not.
    divided, everywhere = P("rows"), P()
    sharded = jax.shard_map(
        tile, mesh=mesh, in_specs=(everywhere, divided, everywhere), out_specs=divided, check_vma=False
    )
    return jax.jit(sharded), NamedSharding(mesh, divided), NamedSharding(mesh, everywhere)


# On the device, where it is several times faster than NumPy's; not in the program of the tile, which could compute a
# transposed entry a second time and round it differently.
@jax.jit
def _transposed(tiles: tuple) -> tuple:
    return tuple(tile.T for tile in tiles)


@contextmanager
def reporter(progress: bool | Callable, total: int):
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("Gram matrix", total=total)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield lambda done: None


# ------------------------------------------------------------------------------------------------------------- inputs


def _points(tree: Any, name: str) -> tuple[Any, int, int]:
    """The pytree with NumPy leaves, its number of points, and the bytes of one."""
    tree = jax.tree.map(np.asarray, tree)
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.shape for leaf in leaves]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"{name} has leaves of shapes {shapes}; arrays of one leading size, the points, were expected")
    (n,) = sizes.pop()
    if n == 0:
        raise ValueError(f"{name} has leaves of shapes {shapes}; at least one point was expected")
    return tree, n, sum(leaf.nbytes for leaf in leaves) // n


def _block(tree: Any, start: int, count: int, size: int) -> Any:
    """`count` points from `start` on, or those that are left, filled up to `size` with the last one."""

    def cut(leaf: np.ndarray) -> np.ndarray:
        block = leaf[start : start + count]
        return block if len(block) == size else np.concatenate([block, np.repeat(block[-1:], size - len(block), 0)])

    return jax.tree.map(cut, tree)


def _results(bound: Partial, rows, columns, dtype, marks: bool) -> tuple[Any, list[np.dtype]]:
    """The structure of what the function of pairs returns, and the dtypes of the matrices, without the marks."""

    def abstract(tree, size):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), tree)

    kernels, structure = jax.tree.flatten(jax.eval_shape(bound, abstract(rows, 2), abstract(columns, 3)))
    shapes = [kernel.shape for kernel in kernels]
    if not shapes or any(shape != (2, 3) for shape in shapes):
        raise ValueError(
            f"pairs made matrices of shapes {shapes} of 2 rows and 3 columns; one or more of (2, 3) were expected"
        )
    if marks:
        *kernels, _ = kernels
        structure = jax.tree.structure(tuple(kernels))
    if dtype is None:
        return structure, [np.dtype(kernel.dtype) for kernel in kernels]
    if jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise ValueError(f"dtype={np.dtype(dtype)} came, but JAX computes in 32 bits; set jax_enable_x64")
    return structure, [np.dtype(dtype)] * len(kernels)


def _diagonals(diagonal: Any, todo: Plan) -> list[np.ndarray]:
    diagonals = [np.asarray(leaf) for leaf in jax.tree.leaves(diagonal)]
    if diagonals and not todo.symmetric:
        raise ValueError("diagonal came beside columns; it belongs to the symmetric case. Leave one of them out")
    shapes = [leaf.shape for leaf in diagonals]
    if diagonals and shapes != [(todo.n,)] * todo.kernels:
        raise ValueError(f"diagonal has shapes {shapes}; ({todo.n},) for each of {todo.kernels} kernel(s) was expected")
    return diagonals


# ------------------------------------------------------------------------------------------------------------- output


def _paths(out: Any, kernels: int, overwrite: bool) -> tuple[Path, ...]:
    """The output files, one per kernel, checked."""
    try:
        paths = tuple(Path(path) for path in jax.tree.leaves(out))
    except TypeError:
        raise ValueError(f"out={out!r} came; the path of a .npy file was expected, or one per kernel") from None
    if paths and (len(paths) != kernels or len({path.absolute() for path in paths}) != kernels):
        raise ValueError(f"out={out!r} came; one path for each of {kernels} kernel(s) was expected, all different")
    for path in paths:
        if path.suffix != ".npy":
            raise ValueError(f"out: {path} came; the name of a .npy file was expected")
        if not path.parent.is_dir():
            raise ValueError(f"out: the folder {path.parent} does not exist; create it first")
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"out: the folder {path.parent} is not writable; choose another, or change its rights")
        if path.is_dir() or path.exists() and not overwrite:
            raise ValueError(f"out: {path} exists; choose another name, remove it, or pass overwrite=True")
    return paths


def _refusal(paths: tuple[Path, ...], size: int) -> str:
    """Why files of `size` bytes do not fit, or nothing."""
    disks: dict[int, list[Path]] = {}
    for path in paths:
        disks.setdefault(path.parent.stat().st_dev, []).append(path)
    for group in disks.values():
        free, needed = shutil.disk_usage(group[0].parent).free, len(group) * size
        if needed > free:
            old = [str(p) for path in group for p in path.parent.glob(f".{path.name}.partial-*")]
            hint = f" (left by runs that were killed or still at it: {', '.join(old)})" if old else ""
            return (
                f"{', '.join(map(str, group))} would take {readable(needed)}, but the disk has {readable(free)} "
                f"free{hint}. Make room, choose another folder, or take float32 or fewer points"
            )
    return ""


def _aligned(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Memory for a matrix that JAX on a CPU takes without a copy, which it does at multiples of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


@contextmanager
def _output(todo: Plan, dtypes: Sequence[np.dtype]):
    """The matrices to fill. Files are under hidden names until the block ends well, and gone if it does not."""
    shape = todo.n, todo.m
    if not todo.paths:
        yield [_aligned(shape, dtype) for dtype in dtypes]
        return
    partial = [path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}") for path in todo.paths]
    try:
        try:
            matrices = [open_memmap(p, "w+", dtype, shape) for p, dtype in zip(partial, dtypes, strict=True)]
            for path in partial:
                _reserve(path)
        except OSError as error:
            raise ValueError(f"out: {error}; choose another folder, or make room") from error
        yield matrices
        for matrix in matrices:
            matrix.flush()
        for path, final in zip(partial, todo.paths, strict=True):
            os.replace(path, final)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _reserve(path: Path) -> None:
    """Take the room on the disk now: a memory map that finds the disk full kills the process (SIGBUS). In one piece, if
    the file system can, so that transposed writes do not scatter the file."""
    reserve = getattr(os, "posix_fallocate", None)  # macOS has none
    if reserve:
        with open(path, "r+b") as file:
            reserve(file.fileno(), 0, path.stat().st_size)
