"""Rounding error of generated code over the hard grid of covariances: from norms 1e-3 to 30 and c up to +-1.

The truth at the exact floats is the closed form in ball arithmetic (`dualcalc.balls`), which `test_calculus.py` ties to
the independent oracle. `python -m tests.accuracy [ids]` prints the worst points of each entry.
"""

import sys
from itertools import product

import numpy as np

from dualcalc import balls, catalog, codegen, dual

NORMS = (1e-3, 0.1, 1.0, 3.0, 30.0)
COSINES = (0.0, *(s * c for c in (0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-12, 1.0) for s in (1, -1)))


def points(dtype):
    """(a, b, c, q12, q11, q22) with the covariances as floats of the given precision."""
    out = []
    for a, b, c in product(NORMS, NORMS, COSINES):
        q11, q22 = dtype(a * a), dtype(b * b)
        q12 = dtype(c * np.sqrt(float(q11)) * np.sqrt(float(q22)))
        out.append((a, b, c, q12, q11, q22))
    return out


def truths(d, m, rows):
    """Values and scales sqrt(k11 k22) of K_mm at the rows, as Python floats (inf where they leave float64)."""
    terms, values = d.member(m, m), codegen.default_values(d)
    diagonal: dict[float, object] = {}
    out, scales = [], []
    with balls.precision(200):
        for *_, q12, q11, q22 in rows:
            for q in (q11, q22):
                if float(q) not in diagonal:
                    diagonal[float(q)] = balls.value(terms, balls.environment(q, q, q, values))
            out.append(balls.value(terms, balls.environment(q12, q11, q22, values)))
            scales.append((diagonal[float(q11)] * diagonal[float(q22)]).sqrt())
    return out, scales


def limit(d, row) -> float:
    """The error allowed at a point, in eps; None where nothing is promised."""
    a, b, _, q12, q11, q22 = row
    shifted = any(x.gate and x.gate.kind in ("step", "erf") and x.gate.at != 0 for x in d.blocks)
    if shifted:
        return 64.0 if max(a, b) <= 3 else None
    values = codegen.default_values(d)
    rate = max([abs(complex(x.beta.subs(values))) for x in d.blocks if x.gate is None] or [0.0])
    exponent = rate**2 * (float(q11) + float(q22) + 2 * abs(float(q12))) / 2
    degree = max(len(x.poly) - 1 for x in d.blocks)
    return (64.0 if degree >= 6 else 8.0) + exponent / 2


def errors(d, module, m, dtype):
    """Error over scale in eps at every grid point, with the point: the value as computed, the truth, the exponent."""
    rows = points(dtype)
    growth = float(d.growth.subs(codegen.default_values(d)))
    rows = [r for r in rows if growth <= 0 or 4 * growth * max(float(r[4]), float(r[5])) < 0.99]
    true, scales = truths(d, m, rows)
    f = module.k if m == 0 else module.kdot
    got = np.asarray(f(*(np.array([r[i] for r in rows], dtype) for i in (3, 4, 5))))
    eps, top, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)
    out = []
    for row, value, t, s in zip(rows, got, true, scales, strict=True):
        size = abs(float(t.mid()))
        if np.isnan(value):
            error = np.inf
        elif size > top:
            error = 0.0 if np.isinf(value) else np.inf
        elif float(s.mid()) < tiny:
            error = abs(float(value) - float(t.mid())) / tiny
        else:
            error = float((abs(balls.exact(float(value)) - t) / s).mid()) / eps if np.isfinite(value) else np.inf
        out.append((error, row, float(value), float(t.mid()), float(s.mid())))
    return out


def main(ids):
    target = "jax" if "--jax" in ids else "numpy"
    ids = [i for i in ids if not i.startswith("--")]
    if target == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    for name in ids or catalog.load():
        try:
            d = dual.derive(name)
        except dual.NoClosedForm:
            continue
        if d.activation is None:
            continue
        module = codegen.load(codegen.emit(d, target), target)
        for m in (0, 1):
            if m and d.jumps:
                continue
            for dtype in (np.float64, np.float32):
                found = [(e, limit(d, r), r, v, t, z) for e, r, v, t, z in errors(d, module, m, dtype)]
                found = sorted((f for f in found if f[1] is not None), key=lambda f: -f[0] / f[1])
                over = [f for f in found if not f[0] <= f[1]]
                which = "k" if m == 0 else "kdot"
                print(
                    f"{name:20s} {which:5s} {dtype.__name__} worst {found[0][0]:9.3g} over: {len(over)} of {len(found)}"
                )
                for e, _, (a, b, c, *_), value, truth, scale in over[:4]:
                    at = f"a={a} b={b} 1-|c|={1 - abs(c):.0e} c{'<' if c < 0 else '>'}0"
                    print(f"      {e:9.3g} at {at}: {value:.6g} for {truth:.6g}, scale {scale:.3g}")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
