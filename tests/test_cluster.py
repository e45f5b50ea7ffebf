"""Stores of tiles: the same bits from any workers and after any interruption, damage found, clear refusals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import dualcalc as dc
from dualcalc import cluster
from dualcalc.cli import main
from dualcalc.ridge import Moments

from .cluster_runs import data, network

NET = network()
ROOT = Path(__file__).parents[1]
N, TILE, TILES = 330, 64, 21  # 6 x 6 tiles, the last ones narrower


@pytest.fixture(scope="module")
def client():
    with cluster.local(2) as made:
        yield made


@pytest.fixture(scope="module")
def truth():
    return np.asarray(NET(data(N), tile=TILE))


def start(*arguments, **environment):
    command = [sys.executable, "-m", "tests.cluster_runs", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def until(process, pattern):
    """Read its lines until one fits; that match."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"{pattern} never came:\n{''.join(seen)}")


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def flip(path):
    """Another byte near the start of a file; the end of the last chunks is filling."""
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


# What is written --------------------------------------------------------------------------------------------------


def test_the_kernel_of_a_call(tmp_path, truth):
    run = cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE)
    assert run[1:6] == (TILES, TILES, 0, 0, 0)
    assert np.array_equal(run.store.read(), truth) and np.array_equal(zarr.open_group(run.store.path)["ntk"][:], truth)
    assert zarr.open_group(run.store.path)["ntk"].chunks == (TILE, TILE)
    again = cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE)
    assert again[1:6] == (TILES, 0, 0, TILES, 0)


def test_workers_give_the_same_bits(tmp_path, client, truth):
    run = cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE, client=client)
    assert run.computed == TILES and np.array_equal(run.store.read(), truth)
    again = cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE, client=client)
    assert (again.computed, again.kept) == (0, TILES)


@pytest.mark.slow
def test_both_kernels_of_two_sides(tmp_path, client):
    X, Y = data(100).astype(float), data(70)[::-1].astype(float)
    run = cluster.write(NET, X, tmp_path / "k.zarr", Y, ("nngp", "ntk"), tile=32, client=client)
    truth = NET(X, Y, ("nngp", "ntk"), tile=32)
    assert np.array_equal(run.store.read("nngp"), truth.nngp) and np.array_equal(run.store.read("ntk"), truth.ntk)
    assert run.store.read("ntk").dtype == np.float64
    with pytest.raises(ValueError, match="nngp and ntk; say which"):
        run.store.read()


def test_images(tmp_path):
    X = np.random.default_rng(0).standard_normal((9, 4, 4, 3))
    net = dc.serial(dc.Conv((3, 3)), dc.Activation("relu"), dc.Flatten(), dc.Dense())
    run = cluster.write(net, X, tmp_path / "k.zarr", tile=4)
    assert np.array_equal(run.store.read(), net(X, tile=4))


def test_parts_of_a_job_array(tmp_path, truth):
    """In any order; the first jobs leave tiles, the last one none."""
    left = [cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE, part=(i, 4)).missing for i in (2, 0, 3)]
    assert left[0] > left[1] > left[2] > 0
    with pytest.raises(ValueError, match="tiles are missing"):
        cluster.Store.open(tmp_path / "k.zarr").read()
    last = cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE, part=(1, 4))
    assert last.missing == 0 and np.array_equal(last.store.read(), truth)
    assert cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE).kept == TILES


# What goes wrong --------------------------------------------------------------------------------------------------


def test_flipped_bytes_are_found_and_written_anew(tmp_path, client, truth):
    path = tmp_path / "k.zarr"
    cluster.write(NET, data(N), path, tile=TILE)
    chunks = path / "ntk" / "c"
    flip(chunks / "0" / "1")
    flip(chunks / "5" / "5")
    (chunks / "3" / "2").write_bytes(b"short")
    (chunks / "4" / "0").unlink()
    for given in (client, None):
        run = cluster.write(NET, data(N), path, tile=TILE, client=given)
        assert (run.damaged, run.computed, run.kept) == ((4, 4, TILES - 4) if given else (0, 0, TILES))
    assert np.array_equal(run.store.read(), truth)


def test_torn_receipts_do_not_count(tmp_path, truth):
    path = tmp_path / "k.zarr"
    cluster.write(NET, data(N), path, tile=TILE)
    receipts = path / "receipts.jsonl"
    receipts.write_text(receipts.read_text()[:-20] + '\n[]\n{"config": 1}\nnonsense\n')
    run = cluster.write(NET, data(N), path, tile=TILE)
    assert (run.damaged, run.computed) == (0, 1) and np.array_equal(run.store.read(), truth)


def test_receipts_of_no_tile_do_not_count(tmp_path, truth):
    path = tmp_path / "k.zarr"
    store = cluster.write(NET, data(N), path, tile=TILE).store
    row = {"config": store.config["hash"], "i": 0, "j": 0, "checksums": ["x"]}
    bad = [{"i": 99}, {"i": -1}, {"i": 0.0}, {"i": "0"}, {"i": True}, {"i": 3}, {"checksums": []}, {"checksums": 1}]
    with open(path / "receipts.jsonl", "ab") as file:
        file.write("".join(f"{json.dumps(row | other)}\n" for other in bad).encode() + b"\xff\n" + b"[" * 10**5 + b"\n")
    again = cluster.write(NET, data(N), path, tile=TILE)
    assert (again.computed, again.kept, again.missing) == (0, TILES, 0) and np.array_equal(again.store.read(), truth)


def test_reading_finds_what_is_missing_or_damaged(tmp_path):
    store = cluster.write(NET, data(N), tmp_path / "k.zarr", tile=TILE).store
    flip(store.path / "ntk" / "c" / "0" / "1")
    (store.path / "ntk" / "c" / "3" / "2").unlink()
    with pytest.raises(ValueError, match="2 of 21 tiles are damaged; write it again"):
        store.read()
    assert np.isnan(store.read(verify=False)).sum() == TILE * TILE


def test_kernels_of_one_name_are_not_one_kernel(tmp_path, client):
    """By their code: given kernels look alike in words, and an entry of a catalog may change."""
    one, other = (dc.serial(dc.Dense(), dc.Activation(dc.from_kernel(k))) for k in ("q12", "3*q12 + q12**2"))
    cluster.write(one, data(50), tmp_path / "one.zarr", get="nngp", tile=32, client=client)
    with pytest.raises(ValueError, match="holds another kernel: (?s:.*)code was"):
        cluster.write(other, data(50), tmp_path / "one.zarr", get="nngp", tile=32)
    made = cluster.write(other, data(50), tmp_path / "other.zarr", get="nngp", tile=32, client=client)
    assert np.array_equal(made.store.read(), other(data(50), get="nngp", tile=32))
    with pytest.raises(ValueError, match="has no identity; give it as a formula"):
        cluster.write(
            dc.serial(dc.Dense(), dc.Activation(dc.from_kernel(lambda c, a, b: c))), data(9), tmp_path / "f.zarr"
        )


def test_damaged_inputs_are_refused(tmp_path, client):
    path, other = tmp_path / "k.zarr", data(N) + 1  # which no worker has
    store = cluster.write(NET, other, path, tile=TILE).store
    (path / "X" / "c" / "0" / "0").unlink()
    (path / "receipts.jsonl").unlink()
    with pytest.raises(ValueError, match="the inputs X in the store are damaged"):
        cluster.write(NET, other, path, tile=TILE, client=client)
    changed = json.loads((path / "zarr.json").read_text())
    changed["consolidated_metadata"]["metadata"]["ntk"]["shape"] = [20, 20]
    (path / "zarr.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="the array ntk is .*20, 20.* expected"):
        store.array("ntk")


def test_another_configuration_is_refused(tmp_path):
    path = tmp_path / "k.zarr"
    cluster.write(NET, data(80), path, tile=32)
    other = dc.serial(dc.Dense(1.25, 0.1), *NET.layers[1:])
    for message, arguments in {
        "network was .*W_std=1.5.*, is .*W_std=1.25": (other, data(80)),
        "inputs was": (NET, data(80) + 1),
        "n was 80, is 81": (NET, data(81)),
        "dtype was 'float32', is 'float64'": (NET, data(80).astype(float)),
    }.items():
        with pytest.raises(ValueError, match=f"holds another kernel: (?s:.*){message}"):
            cluster.write(*arguments, path, tile=32)
    config = json.loads((path / "config.json").read_text())
    config["versions"]["jax"] = "0.4.0"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="versions was .*'jax': '0.4.0'"):
        cluster.write(NET, data(80), path, tile=32)


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[1]"])
def test_what_is_no_store_is_refused(tmp_path, content):
    path = tmp_path / "k.zarr"
    path.mkdir()
    if content is not None:
        (path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="no store of kernels"):
        cluster.write(NET, data(20), path)


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0), 1, (0.5, 2)])
def test_a_part_that_is_none(tmp_path, part):
    with pytest.raises(ValueError, match="0 <= i < n"):
        cluster.write(NET, data(20), tmp_path / "k.zarr", part=part)
    assert not list(tmp_path.iterdir())


def test_workers_in_32_bits_are_refused(tmp_path):
    """And the environment of this process is as it was."""
    before = dict(os.environ)
    with (
        cluster.local(1, x64=False) as narrow,
        pytest.raises(ValueError, match="a worker computes in 32 bits; set JAX_ENABLE_X64=1"),
    ):
        assert dict(os.environ) == before
        cluster.write(NET, data(40).astype(float), tmp_path / "k.zarr", client=narrow)
    assert dict(os.environ) == before


def test_threads_of_a_worker(client):
    def seen():
        return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "JAX_ENABLE_X64")}

    assert set(map(tuple, (v.values() for v in client.run(seen).values()))) == {("1", "1", "1")}


def interrupted(path, n, tile, workers, kills, pause):
    """A run whose worker is killed, and that is then killed itself and restarted, `kills` times; what the last says."""
    process = start("kernel", path, n, tile, workers, pause)
    if workers:
        pids = until(process, r"workers (.*)")[1].split()
        until(process, r"tile 3 of")
        os.kill(int(pids[0]), signal.SIGKILL)
        until(process, r"tile 6 of")
    for kill in range(kills):
        if kill or not workers:
            until(process, rf"tile {2 + kill} of")
        process.kill()
        process.wait()
        process = start("kernel", path, n, tile, workers, pause if kill < kills - 1 else 0)
    found = until(process, r"computed (\d+) damaged (\d+) kept (\d+) missing (\d+)")
    assert process.wait(60) == 0
    return tuple(map(int, found.groups()))


@pytest.mark.slow
def test_killed_and_restarted(tmp_path, truth):
    path = tmp_path / "k.zarr"
    computed, damaged, kept, missing = interrupted(path, N, TILE, 0, 3, 0.05)
    assert (damaged, missing) == (0, 0) and computed + kept == TILES and kept >= 2 + 3
    assert np.array_equal(cluster.Store.open(path).read(), truth)
    undisturbed = cluster.write(NET, data(N), tmp_path / "other.zarr", tile=TILE).store.path
    assert files(path) == files(undisturbed)


def test_a_disk_that_fills(tmp_path, truth):
    """A file system of 700 kB; the matrix takes 436 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(350_000))
        with pytest.raises(ValueError, match=r"the disk is full; \d+ of 21 tiles are done. Make room"):
            cluster.write(NET, data(N), disk / "k.zarr", tile=TILE)
        assert not list(disk.rglob("*.partial"))
        ballast.unlink()
        run = cluster.write(NET, data(N), disk / "k.zarr", tile=TILE)
        assert 0 < run.kept < TILES and run.damaged == 0 and np.array_equal(run.store.read(), truth)
    finally:
        subprocess.run(["umount", disk], check=True)


def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_processes_of_jax_distributed(tmp_path, truth):
    """Acceptance F2, first half."""
    path, at = tmp_path / "k.zarr", port()
    both = [start("distributed", path, N, TILE, at, i) for i in range(2)]
    for process in both:
        assert until(process, r"missing (\d+)")[1] == "0"
        assert process.wait(60) == 0
    assert np.array_equal(cluster.Store.open(path).read(), truth) and not list(path.glob("alive-*"))


@pytest.mark.slow
def test_a_lost_process_of_jax_distributed(tmp_path, truth):
    """Acceptance F2, second half: the one that is left says so, and the next run goes on."""
    path, at = tmp_path / "k.zarr", port()
    first, second = (start("distributed", path, N, TILE, at, i, 0.2) for i in range(2))
    until(second, r"tile 2 of")
    second.kill()
    until(first, r"process 1 of 2 gives no sign of life; \d+ of 21 tiles are missing .* Run all processes again")
    assert first.wait(60) == 1
    run = cluster.write(NET, data(N), path, tile=TILE)
    assert run.kept >= 4 and np.array_equal(run.store.read(), truth)


# The command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    def kernel(*more, code=0):
        command = ["kernel", "dense relu dense", "--data", tmp_path / "X.npy", *more]
        result = CliRunner().invoke(main, [str(word) for word in command])
        assert result.exit_code == code, result.output
        return result.output

    np.save(tmp_path / "X.npy", data(600))
    out = tmp_path / "k.zarr"
    assert "wrote part of" in kernel("-o", out, "--tiles", "2/2") and "1 missing" not in kernel("-o", out)
    assert json.loads(kernel("-o", out, "--json"))["kept"] == 3
    net = dc.serial(dc.Dense(), dc.Activation("relu"), dc.Dense())
    assert np.array_equal(cluster.Store.open(out).read(), net(data(600)))
    assert "expected I/N" in kernel("-o", out, "--tiles", "3/2", code=2)
    assert "need a store of tiles" in kernel("-o", tmp_path / "k.npy", "--tiles", "1/2", code=2)
    assert "give one of" in kernel("-o", out, "--tiles", "1/2", "--workers", 2, code=2)
    assert "no scheduler answers" in kernel("-o", out, "--scheduler", "nonsense://x", code=2)


# Features ---------------------------------------------------------------------------------------------------------


def drawn(start, stop):
    """Rows and targets that any worker draws alike."""
    generator = np.random.default_rng([7, start])
    X = generator.standard_normal((stop - start, 8))
    return X, X[:, 0]


def features():
    W = np.random.default_rng(3).standard_normal((8, 16))
    return lambda X: np.cos(X @ W)


def test_moments_are_the_same_for_any_workers(client):
    rows = 5000
    parts = [drawn(i, min(i + 512, rows)) for i in range(0, rows, 512)]
    truth = Moments.zero(16, 1)
    for X, y in parts:
        truth.add(features()(X), y[:, None])
    alone = cluster.moments(features, drawn, rows, batch=512, block=1024)
    several = cluster.moments(features, drawn, rows, batch=512, block=1024, client=client)
    for name, value in vars(alone).items():
        np.testing.assert_allclose(value, getattr(truth.whole(), name), rtol=1e-12)
        assert np.array_equal(value, getattr(several, name))
    Z, y = (np.concatenate(x) for x in zip(*((features()(X), y) for X, y in parts), strict=True))
    np.testing.assert_allclose(alone.zz, Z.T @ Z, rtol=1e-10, atol=1e-10)
    w, b = alone.fit(0.1)
    centred = Z - Z.mean(axis=0)
    expected = np.linalg.solve(centred.T @ centred + 0.1 * np.eye(16), centred.T @ (y - y.mean()))
    np.testing.assert_allclose(w[:, 0], expected, rtol=1e-8)
    np.testing.assert_allclose(b, y.mean() - Z.mean(axis=0) @ expected, rtol=1e-8)
    with pytest.raises(ValueError, match="ridge=-1 came"):
        alone.fit(-1)
    with pytest.raises(ValueError, match="block a multiple of batch"):
        cluster.moments(features, drawn, rows, batch=500, block=1024)


# At size ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_twenty_thousand(tmp_path):
    """Acceptance F1: n = 20,000, a worker and the whole run killed, three restarts."""
    n, tile = 20_000, 2000
    undisturbed = tmp_path / "undisturbed.zarr"
    began = time.perf_counter()
    whole = interrupted(undisturbed, n, tile, 2, 0, 0)
    seconds = time.perf_counter() - began
    disturbed = tmp_path / "disturbed.zarr"
    last = interrupted(disturbed, n, tile, 2, 3, 0)
    print(f"undisturbed {seconds:.0f} s; after three restarts the last run computed {last[0]}, kept {last[2]}")
    assert whole[0] == last[0] + last[2] == 55
    assert files(disturbed) == files(undisturbed)
    one, other = (zarr.open_group(path)["ntk"] for path in (undisturbed, disturbed))
    for first in range(0, n, tile):
        assert np.array_equal(one[first : first + tile], other[first : first + tile])


def test_x64_is_that_of_this_process():
    assert jax.config.jax_enable_x64
