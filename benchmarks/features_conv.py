"""Features of Myrtle-5 layer by layer, and Nystrom of a fully connected network on digits.

    python benchmarks/features_conv.py myrtle [normalized_gaussian relu] [--train 0|1] [--pixels raw|standard]
                                              [--seeds 5] [--method nystrom|sketch] [--anchors 64]
    python benchmarks/features_conv.py digits

Myrtle: anchors from 512 random 32 x 32 crops of one bundled photograph of scikit-learn (0 is china.jpg, 1 flower.jpg),
scored on 16 crops of the other one. Errors are relative Frobenius errors of the NTK against the exact kernel (float32),
unscaled. CPU milliseconds are `time.process_time` over all threads, per image, the median of 7 calls with 256 images.
"""

import argparse
import time

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

import dualcalc as dc
from dualcalc.layerwise import layerwise
from dualcalc.nystrom import nystrom

ACTIVATIONS = {
    "normalized_gaussian": (lambda: dc.Activation(dc.from_kernel(kappa="exp(t - 1)")), 1.0),
    "relu": (lambda: dc.Activation("relu"), 2**0.5),
}
CROP, TRAIN, TEST, TIMED = 32, 512, 16, 256


def crops(photograph: np.ndarray, count: int, generator) -> np.ndarray:
    corners = [generator.integers(size - CROP, size=count) for size in photograph.shape[:2]]
    return np.stack([photograph[y : y + CROP, x : x + CROP] for y, x in zip(*corners, strict=True)])


def data(train: int, pixels: str) -> tuple[np.ndarray, np.ndarray]:
    """Crops to fit on and crops of the other photograph; "standard": channels standardised by the former."""
    photographs = [image.astype(np.float32) / 255 for image in load_sample_images().images]
    generator = np.random.default_rng(0)
    fitted, scored = (crops(photographs[i], n, generator) for i, n in ((train, TRAIN), (1 - train, TEST)))
    if pixels == "standard":
        mean, std = fitted.mean((0, 1, 2)), fitted.std((0, 1, 2))
        fitted, scored = (fitted - mean) / std, (scored - mean) / std
    return fitted, scored


def error(features: np.ndarray, kernel: np.ndarray) -> tuple[float, float]:
    """Unscaled, and with the best scale."""
    gram = features.astype(float) @ features.T.astype(float)
    scale = (gram * kernel).sum() / (gram * gram).sum()
    size = np.linalg.norm(kernel)
    return float(np.linalg.norm(gram - kernel) / size), float(np.linalg.norm(scale * gram - kernel) / size)


def myrtle(name: str, arguments) -> None:
    make, W_std = ACTIVATIONS[name]
    net = dc.myrtle(5, make(), W_std=W_std)
    fitted, scored = data(arguments.train, arguments.pixels)
    start = time.process_time()
    kernel = np.asarray(net(scored), float)
    pairs = TEST * (TEST + 1) // 2
    print(f"{name}: exact, {(time.process_time() - start) / pairs:.2f} CPU s a pair, compilation included", flush=True)
    for seed in range(arguments.seeds):
        start = time.perf_counter()
        features = layerwise(
            net, fitted, 4096, anchors=arguments.anchors, method=arguments.method, random_state=seed
        )  # fmt: skip
        seconds = time.perf_counter() - start
        unscaled, scaled = error(features(scored), kernel)
        features(fitted[:TIMED])
        times = []
        for _ in range(7):
            start = time.process_time()
            features(fitted[:TIMED])
            times.append((time.process_time() - start) / TIMED * 1e3)
        print(
            f"  seed {seed}: {features.n_components} columns, error {unscaled:.4f} (best scale {scaled:.4f}), "
            f"{np.median(times):.2f} CPU ms an image (least {min(times):.2f}), fitted in {seconds:.0f} s",
            flush=True,
        )


def digits() -> None:
    X = load_digits().data
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    layers = [dc.Activation(dc.from_kernel(kappa="exp(t - 1)")), dc.Dense()]
    net = dc.serial(dc.Dense(8.0), *layers * 2)
    order = np.random.default_rng(0).permutation(len(X))
    fitted, scored = X[order[:1000]], X[order[1000:]]
    kernel = np.asarray(net(scored), float)
    print("columns  selection  error on other rows (median of 5 seeds)  us a row")
    for count in (16, 64, 256, 1000):
        for selection in ("pivoted", "uniform"):
            errors, times = [], []
            for seed in range(5):
                features = nystrom(net, fitted, count, selection=selection, random_state=seed)
                errors.append(error(features(scored), kernel)[0])
                start = time.process_time()
                features(scored)
                times.append((time.process_time() - start) / len(scored) * 1e6)
            print(f"{count:7}  {selection:9}  {np.median(errors):.5f}  {np.median(times):.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["myrtle", "digits"])
    parser.add_argument("activations", nargs="*", default=list(ACTIVATIONS))
    parser.add_argument("--train", type=int, choices=[0, 1], default=0)
    parser.add_argument("--pixels", choices=["raw", "standard"], default="standard")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--method", choices=["nystrom", "sketch"], default="nystrom")
    parser.add_argument("--anchors", type=int, default=64)
    chosen = parser.parse_args()
    if chosen.what == "digits":
        digits()
    else:
        for activation in chosen.activations:
            myrtle(activation, chosen)
