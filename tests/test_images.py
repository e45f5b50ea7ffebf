"""Images: a folder in CIFAR-10's format, pickles that would run code, whitening, and the whole pipeline."""

import pickle
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from dualcalc import images

RNG = np.random.default_rng(2)
PIXELS = RNG.integers(0, 256, (6, 3072), np.uint8)
LABELS = [3, 1, 4, 1, 5, 9]
BATCH = {b"batch_label": b"test", b"labels": LABELS, b"data": PIXELS, b"filenames": [b"a.png"] * 6}


def written(path, content=BATCH, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def by_python_2(pixels, labels) -> bytes:
    """As the files of cs.toronto.edu are: texts are SHORT_BINSTRING, which Python 3 never writes."""
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    number = lambda n: b"J" + struct.pack("<i", n)  # noqa: E731
    ints = b"(" + b"".join(map(number, labels)) + b"l"
    shape = number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    kind = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    raw = b"T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    array += b"(" + number(1) + shape + kind + b"\x89" + raw + b"tb"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + ints + b"u."


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_batch_reads_as_pickle_does(tmp_path, protocol):
    pixels, labels = images.read_batch(written(tmp_path / "batch", protocol=protocol))
    assert (pixels == PIXELS.reshape(6, 3, 32, 32).transpose(0, 2, 3, 1)).all() and labels.tolist() == LABELS


def test_a_batch_written_by_python_2(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(by_python_2(PIXELS, LABELS))
    assert (pickle.loads(path.read_bytes(), encoding="bytes")[b"data"] == PIXELS).all()  # the test's own bytes
    pixels, labels = images.read_batch(path)
    assert (pixels[:, :, :, 1] == PIXELS[:, 1024:2048].reshape(6, 32, 32)).all() and labels.tolist() == LABELS


def test_a_folder(tmp_path):
    for number in (2, 1):
        written(tmp_path / f"data_batch_{number}", {**BATCH, b"labels": [number] * 6})
    written(tmp_path / "test_batch")
    whole = images.cifar10(tmp_path)
    assert whole.train.shape == (12, 32, 32, 3) and whole.train.dtype == np.float32
    assert whole.train_labels.tolist() == [1] * 6 + [2] * 6 and whole.test_labels.tolist() == LABELS


class Hostile:
    """Its pickle calls a function with arguments when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attack(path):
    import os
    import shutil

    return {
        "system": Hostile(os.system, f"touch {path}"),
        "open": Hostile(open, str(path), "w"),
        "eval": Hostile(eval, f"open({str(path)!r}, 'w')"),
        "rmtree": Hostile(shutil.rmtree, str(path.parent)),
        "load": Hostile(np.load, str(path)),
        "memmap": Hostile(np.memmap, str(path), "uint8", "w+", 0, (4,)),
        "getattr": Hostile(getattr, "text", "upper"),
    }


@pytest.mark.parametrize("name", attack(images.Path("there")))
def test_a_hostile_pickle_runs_nothing(tmp_path, name):
    target = tmp_path / "target"
    path = written(tmp_path / "batch", {**BATCH, b"extra": attack(target)[name]})
    with pytest.raises(ValueError, match="Nothing of it was run"):
        images.read_batch(path)
    assert not target.exists() and path.exists()


def test_the_guard_sees(tmp_path):
    target = tmp_path / "target"
    pickle.loads(pickle.dumps(attack(target)["open"]))  # the plain reader does run it
    assert target.exists()


@pytest.mark.parametrize(
    "content",
    [
        {**BATCH, b"data": np.array([print], object)},
        {**BATCH, b"data": PIXELS.astype(np.int64)},
        {**BATCH, b"data": np.zeros(3, "u1,u1")},
        {**BATCH, b"data": np.ma.array(PIXELS)},
    ],
)
def test_arrays_of_anything_but_bytes_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match="a dictionary of bytes, lists and arrays of bytes"):
        images.read_batch(written(tmp_path / "batch", content))


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], r"no images \(n, 3072\) of bytes under 'data'"),
        ({**BATCH, b"data": PIXELS[:, :100]}, r"no images \(n, 3072\)"),
        ({**BATCH, b"labels": LABELS[:5]}, "6 labels from 0 to 9"),
        ({**BATCH, b"labels": [10] * 6}, "6 labels from 0 to 9"),
        ({**BATCH, b"labels": [True] * 6}, "6 labels from 0 to 9"),
    ],
)
def test_other_contents(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        images.read_batch(written(tmp_path / "batch", content))


def test_damaged_files(tmp_path):
    whole = written(tmp_path / "batch").read_bytes()
    for size in [*range(0, 200, 7), *range(200, len(whole), 1999)]:
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="a batch of CIFAR-10 was expected"):
            images.read_batch(tmp_path / "cut")
    with pytest.raises(ValueError, match="point to the folder cifar-10-batches-py"):
        images.cifar10(tmp_path)


def test_whitening():
    rows = RNG.standard_normal((400, 4, 4, 2)) * [1.0, 3.0] + [5.0, 0.0]
    white = images.whitening(rows.astype(np.float32), reg=0.1)
    flat = (rows - rows.mean(axis=(0, 1, 2))) / rows.std(axis=(0, 1, 2))
    flat = flat.reshape(400, 32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    covariance = np.cov(flat.T, bias=True)
    values, vectors = np.linalg.eigh(covariance + 0.1 * np.trace(covariance) / 32 * np.eye(32))
    expected = (flat - flat.mean(axis=0)) @ (vectors / np.sqrt(values)) @ vectors.T
    found = white(rows.astype(np.float32))
    assert found.shape == rows.shape and found.dtype == np.float32
    assert np.abs(found.reshape(400, 32) - expected).max() < 1e-4
    spread = [np.linalg.eigvalsh(np.cov(images.whitening(rows, reg)(rows).reshape(400, 32).T))[1:] for reg in (1e-6, 1)]
    assert spread[0].min() > 0.99 and spread[0].max() < 1.01 < spread[0].max() / spread[1].min()


def test_whitening_of_constant_images():
    blank = np.zeros((3, 2, 2, 1), np.float32)
    assert (images.whitening(blank)(blank) == 0).all()


@pytest.mark.parametrize("bad", [np.ones((3, 4)), np.ones((0, 2, 2, 1)), np.full((1, 2, 2, 1), np.nan)])
def test_whitening_of_no_images(bad):
    with pytest.raises(ValueError, match=r"\(n, height, width, channels\), finite, were expected"):
        images.whitening(bad)
    with pytest.raises(ValueError, match="reg=0 came; a positive number"):
        images.whitening(np.ones((2, 2, 2, 1)), reg=0)


def test_photographs():
    found = images.photos()
    assert found.train.shape == (400, 32, 32, 3) and found.test.shape == (120, 32, 32, 3)
    assert set(found.train_labels) == {0, 1}
    again = images.photos(seed=1)
    assert not (again.test == found.test).all() and sorted(again.test.max(axis=(1, 2, 3)))
    from sklearn.datasets import load_sample_images

    first = load_sample_images().images[0]
    assert any((crop == first[32:64, 64:96]).all() for crop in np.concatenate([found.train, found.test]))


def test_pixels_themselves_classify_digits():
    """The pipeline without Myrtle-5: features are pixels."""
    prepared = images.prepared(images.digits())
    assert prepared.train.shape == (1297, 32, 32, 1)
    small = prepared._replace(train=prepared.train[:, ::4, ::4], test=prepared.test[:, ::4, ::4])
    result = images.classify(small, lambda x: jnp.asarray(x.reshape(len(x), -1)))
    assert result.accuracy > 0.9 and result.training_accuracy > 0.9
    assert result[:3] == images.classify(small, lambda x: x.reshape(len(x), -1))[:3]


def run(*arguments):
    return CliRunner().invoke(images.main, list(map(str, arguments)))


@pytest.mark.slow
def test_the_command_on_a_folder(tmp_path):
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        written(tmp_path / name)
    result = run(tmp_path, "--components", 8, "--anchors", 8, "--activation", "relu", "--w-std", 2**0.5)
    assert result.exit_code == 0, result.output
    assert "12 images for training, 6 for testing" in result.output and "accuracy" in result.output


def test_the_command_refuses(tmp_path):
    for arguments, message in (((tmp_path,), "point to the folder"), (("digits", "--activation", "relux"), "relux")):
        result = run(*arguments)
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize("data, least", [("digits", 90.0), ("photos", 75.0)])
def test_the_command_end_to_end(data, least):
    result = run(data)
    assert result.exit_code == 0, result.output
    assert float(result.output.split("accuracy ")[1].split()[0]) > least
