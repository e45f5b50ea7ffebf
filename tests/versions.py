"""The tests that call other libraries, for their lowest and highest versions: `make test-lowest`, `make test-highest`.

    python -m tests.versions          the versions that pyproject.toml promises, each at its lowest: constraints for pip
    pytest -p tests.versions          a few minutes' choice of the tests, the versions above them

The versions stand in pyproject.toml alone. Extras of which every part is a tool of the developers are none of it, and
neither is torch, which has an environment of its own.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = ("cluster", "plots", "site", "sklearn")
BUILDS = ("jaxlib", "llvmlite", "pydantic_core")  # what the libraries bring along, of interest where a test fails

# file -> how many parameters of each of its tests: two where they are the precisions
EVERY = 10**6
CHOSEN = {
    "test_calculus": EVERY,
    "test_catalog": EVERY,
    "test_cli": 1,
    "test_cluster": 1,
    "test_codegen": 2,
    "test_conv": 2,
    "test_expansions": 1,
    "test_gram": EVERY,
    "test_inference": 1,
    "test_networks": 2,
    "test_parsing": EVERY,
    "test_plots": 1,
    "test_ridge": 1,
    "test_runtime": 1,
    "test_site": 1,
    "test_sketch": 1,
    "test_tables": 1,
    "test_verify": EVERY,
}
# Tests of certain versions: one is written with jax.enable_x64, which came later; each pydantic words the schema anew.
OF_ONE_VERSION = {
    "test_64_bits_are_not_feigned",
    "test_every_file_names_the_schema_and_the_schema_is_current",
}
# The longest, which call nothing that shorter ones do not.
LONG = {
    "test_a_centred_sketch_of_few_columns_says_what_it_leaves_out",
    "test_a_lost_process_of_jax_distributed",
    "test_a_polynomial_of_the_highest_degree",
    "test_another_configuration_is_refused",
    "test_both_kernels_of_two_sides",
    "test_catalog_verify_in_processes",
    "test_columns_seeds_and_sparse_rows",
    "test_digits_small",
    "test_eight_devices",
    "test_equal_and_black_images",
    "test_error_falls_as_one_over_the_root",
    "test_estimates_for_clusters",
    "test_finite_networks",
    "test_kernels_of_one_name_are_not_one_kernel",
    "test_killed_and_restarted",
    "test_loops_over_pixels",
    "test_normalized_rows_have_the_exact_diagonal",
    "test_positive_semidefinite",
    "test_price",
    "test_processes_of_jax_distributed",
    "test_quadrature",
    "test_reproducible_to_the_byte",
    "test_rows_outside_the_range",
    "test_runs_with_jax_alone",
    "test_shapes_precision_and_limits",
    "test_workers_give_the_same_bits",
    "test_workers_in_32_bits_are_refused",
    "test_zero_rows",
}


def requirements() -> dict[str, str]:
    """Name -> lowest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in project["optional-dependencies"][extra])]
    found = [re.fullmatch(r"([\w.-]+)>=([\w.]+)", text) for text in texts if not text.startswith("dualcalc[")]
    assert all(found), f"a requirement that is no NAME>=VERSION: {texts}"
    return {match[1]: match[2] for match in found if match}


def pytest_configure(config: pytest.Config) -> None:
    """pyproject.toml makes errors of DeprecationWarning; here of what announces itself otherwise, too."""
    for kind in ("PendingDeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", f"error::{kind}:dualcalc")


def pytest_report_header() -> str:
    versions = {name: metadata.version(name) for name in (*requirements(), *BUILDS)}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    name = collection_path.name
    return True if name.startswith("test_") and collection_path.stem not in CHOSEN else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    functions = [item for item in items if isinstance(item, pytest.Function)]
    there = {name for item in functions for name in (item.originalname, item.path.stem)}
    if gone := (OF_ONE_VERSION | LONG | CHOSEN.keys()) - there:
        raise pytest.UsageError(f"tests/versions.py names what is no longer there: {', '.join(sorted(gone))}")
    seen: Counter[tuple[str, str]] = Counter()
    kept, left = [], []
    for item in functions:
        name, file = item.originalname, item.path.stem
        barred = name in OF_ONE_VERSION | LONG or item.get_closest_marker("slow")
        seen[file, name] += not barred
        (left if barred or seen[file, name] > CHOSEN[file] else kept).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in requirements().items()))
