"""The tile engine: against the untiled matrix, to the bit where promised, and files that are complete or absent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dualcalc import gram

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((37, 5)), RNG.standard_normal((21, 5))
Kernels = namedtuple("Kernels", "nngp ntk")


def both(rows, columns):
    """Two kernels that are not symmetric in the rounding of their arguments."""
    q = jnp.matmul(rows["x"], columns["x"].T, precision="highest") / rows["x"].shape[1]
    c = q / (rows["s"][:, None] + columns["s"][None, :])
    return Kernels(jnp.exp(c) * q, jnp.sin(c) + 2.0 * q)


def product(rows, columns):
    return jnp.matmul(rows, columns.T, precision="highest")


def points(x):
    return {"x": x, "s": 1.0 + (x * x).sum(1)}


def close(tiled, whole):
    return np.abs(tiled - whole).max() <= 4 * np.finfo(whole.dtype).eps * np.abs(whole).max()


def run(code, check=True, **environment):
    """A process of its own; what it prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tile", [1, 8, 36, 37, 100, None])  # 37 points: ragged tiles, one point over, one tile
def test_symmetric(tile, dtype):
    rows = points(X.astype(dtype))
    tiled, whole = gram.compute(both, rows, tile=tile), both(*jax.tree.map(jnp.asarray, (rows, rows)))
    assert isinstance(tiled, Kernels)
    for t, w in zip(tiled, whole, strict=True):
        assert isinstance(t, np.ndarray) and t.dtype == dtype and t.shape == (37, 37)
        assert (t == t.T).all() and close(t, np.asarray(w))


@pytest.mark.parametrize("tile", [8, None])
def test_rectangular(tile):
    rows, columns = points(X), points(Y)
    tiled, whole = gram.compute(both, rows, columns, tile=tile), both(*jax.tree.map(jnp.asarray, (rows, columns)))
    for t, w in zip(tiled, whole, strict=True):
        assert t.shape == (37, 21) and close(t, np.asarray(w))


def test_only_the_upper_triangle_is_read():
    """A function that is not symmetric at all shows which side is computed."""
    upper = np.triu(np.ones((37, 37)) + np.arange(37)[:, None])
    got = gram.compute(lambda i, j: 1.0 + i[:, None] + jnp.zeros_like(j)[None, :], np.arange(37.0), tile=8)
    assert (got == np.triu(upper) + np.triu(upper, 1).T).all()


def test_diagonal():
    diagonal = np.arange(37.0), -np.arange(37.0)
    plain, given = gram.compute(both, points(X), tile=8), gram.compute(both, points(X), tile=8, diagonal=diagonal)
    for p, g, d in zip(plain, given, diagonal, strict=True):
        assert (g.diagonal() == d).all()
        np.fill_diagonal(p, d)
        assert (g == p).all()


def test_one_matrix_stays_one_and_dtype_is_kept():
    matrix = gram.compute(product, jnp.asarray(X), tile=8, dtype=np.float32)
    assert isinstance(matrix, np.ndarray) and matrix.dtype == np.float32
    (alone,) = gram.compute(lambda rows, columns: (product(rows, columns),), X, tile=8)
    assert (alone.astype(np.float32) == matrix).all()


def test_arguments_of_a_partial_compile_nothing_new():
    traced = []

    def scaled(weight, rows, columns):
        traced.append(1)
        return weight * product(rows, columns)

    one = gram.compute(Partial(scaled, 1.0), X.astype(np.float32), tile=8)
    count = len(traced)
    two = gram.compute(Partial(scaled, 2.0), X.astype(np.float32), tile=8)
    assert two.dtype == np.float32 and (two == 2 * one).all()
    assert len(traced) == count + 1  # of its shape alone


def test_same_tile_same_bits(tmp_path):
    rows = RNG.standard_normal((300, 50)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    first = gram.compute(product, rows, tile=64)
    second = gram.compute(product, mapped, tile=64, out=tmp_path / "k.npy")
    assert isinstance(second, np.memmap) and not second.flags.writeable and (first == second).all()
    assert (np.load(tmp_path / "k.npy") == first).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.npy", "rows.npy"]


def test_eight_devices():
    code = """
        import jax, json, numpy as np
        from dualcalc import gram
        rows = np.random.default_rng(0).standard_normal((203, 784)).astype(np.float32)
        def pairs(x, y):
            q = jax.numpy.matmul(x, y.T, precision="highest") / 784
            # a loop whose carry begins as a constant, and a second kernel
            return q, jax.lax.fori_loop(0, 3, lambda _, c: 0.5 * c * q + 1, jax.numpy.ones(q.shape, q.dtype))
        error, same = 0.0, True
        for columns in (None, rows[:50]):
            one = gram.compute(pairs, rows, columns, tile=60, devices=jax.devices()[:1])
            all = gram.compute(pairs, rows, columns, tile=60)
            for a, b in zip(one, all):
                error = max(error, float(np.abs(a - b).max() / np.abs(a).max() / np.finfo("f4").eps))
                same &= columns is not None or bool((b == b.T).all())
        print(json.dumps([len(jax.devices()), error, same]))
    """
    count, error, same = run(code, XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    assert count == 8 and error <= 4 and same


def test_progress(capsys):
    seen = []
    gram.compute(product, X, tile=8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 15) for done in range(1, 16)]
    gram.compute(product, X, tile=8, progress=True)
    captured = capsys.readouterr()
    assert "100%" in captured.err and not captured.out


# -------------------------------------------------------------------------------------------------------------- files


def test_several_files_and_overwriting(tmp_path):
    out = tmp_path / "nngp.npy", str(tmp_path / "ntk.npy")
    memory, disk = gram.compute(both, points(X), tile=8), gram.compute(both, points(X), tile=8, out=out)
    assert all((np.load(path) == k).all() for path, k in zip(out, memory, strict=True)) and isinstance(disk, Kernels)
    with pytest.raises(ValueError, match=r"nngp\.npy exists; .*overwrite=True"):
        gram.compute(both, points(X), out=out)
    again = gram.compute(both, points(2 * X), tile=8, out=out, overwrite=True)
    assert (np.load(out[0]) == again.nngp).all() and not (again.nngp == memory.nngp).all()
    assert len(list(tmp_path.iterdir())) == 2


def failing(done, total):
    raise KeyboardInterrupt


def test_what_fails_leaves_nothing(tmp_path):
    def wrong(rows, columns):
        if len(rows) > 2:  # not when its shapes are asked for, but when it is compiled
            raise RuntimeError("inside pairs")
        return product(rows, columns)

    with pytest.raises(RuntimeError, match="inside pairs"):
        gram.compute(wrong, X, tile=8, out=tmp_path / "k.npy")
    with pytest.raises(KeyboardInterrupt):
        gram.compute(product, X, tile=8, out=tmp_path / "k.npy", progress=failing)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_overwrite_keeps_the_old_file(tmp_path):
    old = np.array(gram.compute(product, X, out=tmp_path / "k.npy"))
    with pytest.raises(KeyboardInterrupt):
        gram.compute(product, 2 * X, tile=8, out=tmp_path / "k.npy", overwrite=True, progress=failing)
    assert [p.name for p in tmp_path.iterdir()] == ["k.npy"] and (np.load(tmp_path / "k.npy") == old).all()


def test_killed_half_way(tmp_path):
    code = f"""
        import time, numpy as np
        from dualcalc import gram
        def slow(done, total):
            print(done, flush=True)
            time.sleep(60 * (done == 5))
        gram.compute(lambda x, y: x @ y.T, np.ones((64, 3)), tile=8, out={str(tmp_path / "k.npy")!r}, progress=slow)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert [int(process.stdout.readline()) for _ in range(5)] == [1, 2, 3, 4, 5]
        process.send_signal(signal.SIGKILL)
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(f".k.npy.partial-{process.pid}-")
    gram.compute(product, X, out=tmp_path / "k.npy")
    assert sorted(tmp_path.iterdir()) == [partial, tmp_path / "k.npy"]  # it may be another run's, still at it


def test_disk_too_small(tmp_path, monkeypatch):
    (tmp_path / ".k.npy.partial-1-abc").touch()
    needed, usage = 37 * 37 * 8, namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, needed - 1))
    arguments = {"bytes_per_point": 40, "dtype": np.float64, "out": tmp_path / "k.npy"}
    assert "but the disk has" in str(gram.plan(37, **arguments)).splitlines()[-1]
    with pytest.raises(ValueError, match=r"would take 11 kB, but the disk has 11 kB free .*\.k\.npy\.partial-1-abc"):
        gram.compute(product, X, out=tmp_path / "k.npy")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, needed))
    assert not gram.plan(37, **arguments).refusal
    with pytest.raises(ValueError, match="would take 21.9 kB"):  # two files, each of which would fit
        gram.compute(both, points(X), out=(tmp_path / "k.npy", tmp_path / "l.npy"))


def test_a_disk_that_fills_up_is_found_before_the_first_tile(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    seen = []
    with pytest.raises(ValueError, match="No space left on device; choose another folder"):
        gram.compute(product, X, out=tmp_path / "k.npy", progress=lambda *step: seen.append(step))
    assert not seen and not list(tmp_path.iterdir())


def test_anonymous_memory_is_bounded(tmp_path):
    """A file of 144 MB, of which only tiles are ever in memory."""
    code = f"""
        import json, numpy as np
        from dualcalc import gram
        def anonymous(*_):
            with open("/proc/self/status") as status:
                line = next(line for line in status if line.startswith("RssAnon"))
            seen.append(int(line.split()[1]) * 1024)
        seen, rows = [], np.random.default_rng(0).standard_normal((6000, 64)).astype(np.float32)
        pairs = lambda x, y: x @ y.T
        gram.compute(pairs, rows[:1000])
        anonymous()
        gram.compute(pairs, rows, out={str(tmp_path / "k.npy")!r}, progress=anonymous)
        print(json.dumps(max(seen) - seen[0]))
    """
    assert run(code) <= 40e6


# -------------------------------------------------------------------------------------------------------------- plans


def test_plan_in_figures(tmp_path):
    plan = gram.plan(
        1000, bytes_per_point=400, kernels=2, bytes_per_pair=40, flops_per_pair=230, tile=300,
        pairs_per_second=1e6, out=(tmp_path / "a.npy", tmp_path / "b.npy"),
    )  # fmt: skip
    assert plan.tile == (300, 300) and plan.tiles == 10 == len(list(plan.indices()))
    assert plan.output_bytes == 8_000_000 and plan.pairs == 900_000
    assert plan.flops == 230 * 900_000 and plan.seconds == 0.9
    assert plan.working_bytes == 3 * 300 * 300 * (40 + 8) + 2 * gram.SPAN * 300 * 400
    for text in ("1000 x 1000", "symmetric", "10 of 300 x 300", "8 MB", str(tmp_path / "a.npy"), "flops", "0.9 s"):
        assert text in str(plan)
    assert "REFUSED" not in str(plan)


@pytest.mark.parametrize("n, m", [(1, None), (9, None), (20, None), (20, 9), (9, 20), (1, 1)])
def test_every_tile_once(n, m):
    plan = gram.plan(n, m, bytes_per_point=4, tile=1)
    tiles = list(plan.indices())
    expected = {(i, j) for i in range(n) for j in range(m or n) if m or j >= i}
    assert len(tiles) == len(expected) == plan.tiles and set(tiles) == expected


@pytest.mark.parametrize("n, m", [(1, None), (513, None), (5000, 100), (4096, 7777)])
@pytest.mark.parametrize("memory", [10_000, 3_000_000, None])
def test_tiles_fill_the_memory_and_little_more(n, m, memory):
    plan = gram.plan(n, m, bytes_per_point=100, memory=memory)
    assert plan.working_bytes <= (memory or 2**29)
    for count, tile, tiles in zip((n, m or n), plan.tile, plan.grid, strict=True):
        assert tile <= gram.LARGEST["cpu"] and tile * tiles < count + 8 * tiles
    heavy = gram.plan(n, m, bytes_per_point=100, memory=memory and 100 * memory, bytes_per_pair=100_000)
    assert heavy.working_bytes <= (memory or 2**29) * 100 and max(heavy.tile) <= 150


def test_calibrated():
    plan = gram.plan(37, 21, bytes_per_point=40, dtype=np.float64, tile=8)
    assert plan.seconds is None
    measured = gram.calibrate(plan, both, points(X), points(Y))
    assert 0 < measured.seconds < 60 and "time" in str(measured)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "message, arguments",
    [
        (r"rows has leaves of shapes \[\(0, 5\)\]; at least one point", {"rows": X[:0]}),
        (r"columns has leaves of shapes \[\(0, 5\)\]; at least one point", {"columns": X[:0]}),
        (r"rows has leaves of shapes \[\]; arrays", {"rows": ()}),
        (r"rows has leaves of shapes \[\(\)\]; arrays", {"rows": 1.0}),
        (r"rows has leaves of shapes \[\(37, 5\), \(36,\)\]; arrays of one leading size", {"rows": (X, X[1:, 0])}),
        ("tile = 0 came; a positive integer", {"tile": 0}),
        ("tile = 2.0 came", {"tile": 2.0}),
        ("tile = True came", {"tile": True}),
        ("memory = -1 came", {"memory": -1}),
        ("memory = 100 bytes is too small for one pair: 40 bytes per point", {"memory": 100}),
        (r"devices=\(\) came", {"devices": []}),
        ("jax.devices\\(\\)", {"devices": "cpu"}),
        ("the path of a .npy file", {"out": 5}),
        (r"diagonal has shapes \[\(36,\)\]; \(37,\) for each of 1 kernel", {"diagonal": X[1:, 0]}),
        (r"diagonal has shapes \[\(37,\), \(37,\)\]", {"diagonal": (X[:, 0], X[:, 0])}),
        ("diagonal came beside columns", {"diagonal": X[:, 0], "columns": Y}),
        (r"matrices of shapes \[\(3, 2\)\] of 2 rows and 3 columns", {"pairs": lambda x, y: y @ x.T}),
        (r"matrices of shapes \[\]", {"pairs": lambda x, y: None}),
        ("out: the folder nowhere/at does not exist; create it", {"out": "nowhere/at/all.npy"}),
        ("the name of a .npy file was expected", {"out": "k.txt"}),
        ("one path for each of 1 kernel", {"out": ("a.npy", "b.npy")}),
    ],
)
def test_errors(message, arguments):
    with pytest.raises(ValueError, match=message):
        gram.compute(**{"pairs": product, "rows": X} | arguments)


def test_two_kernels_into_one_file():
    with pytest.raises(ValueError, match="2 kernel.*all different"):
        gram.compute(both, points(X), out=("a.npy", "./a.npy"))


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root every folder is
    with pytest.raises(ValueError, match="is not writable; choose another"):
        gram.compute(product, X, out=tmp_path / "k.npy")


def test_64_bits_are_not_feigned():
    with jax.enable_x64(False), pytest.raises(ValueError, match="float64 came, but JAX computes in 32 bits"):
        gram.compute(product, X.astype(np.float32), dtype=np.float64)
