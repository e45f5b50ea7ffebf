"""dualcalc: a symbolic dual-kernel compiler for infinitely wide neural networks.

Names are loaded when first used (PEP 562), so that `import dualcalc` is instant and changes nothing in JAX.
"""

import importlib
from typing import Any

_HOMES = {
    "derive": "dual",
    "from_kernel": "dual",
    "Dual": "dual",
    "NoClosedForm": "atoms",
    "symbols": "parsing",
    "ParseError": "parsing",
    "hermite": "expansions",
    "taylor": "expansions",
    "taylor_r": "expansions",
    "error_bounds": "bounds",
    "network_bounds": "bounds",
    "degree_for": "bounds",
    "compile": "codegen",
    "emit": "codegen",
    "serial": "networks",
    "Dense": "layers",
    "Activation": "layers",
    "LayerNorm": "layers",
    "Residual": "networks",
    "FanOut": "networks",
    "FanInSum": "networks",
    "Identity": "layers",
    "Dropout": "layers",
    "Scale": "layers",
    "parallel": "networks",
    "repeat": "networks",
    "Conv": "conv",
    "AvgPool": "conv",
    "GlobalAvgPool": "conv",
    "Flatten": "conv",
    "myrtle": "conv",
    "monte_carlo": "finite",
    "posterior": "inference",
    "kernel_ridge": "inference",
    "gradient_flow": "inference",
    "log_marginal_likelihood": "inference",
    "NTKFeatures": "estimators",
    "NNGPFeatures": "estimators",
}

# A star import must not need scikit-learn, which is an extra.
__all__ = sorted(name for name, home in _HOMES.items() if home != "estimators")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("dualcalc")
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'dualcalc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*sorted(_HOMES), "__version__"]
