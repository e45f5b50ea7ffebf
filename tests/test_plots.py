"""Figures of activations: that they build, what they show, that files are the same twice, and what is refused."""

import numpy as np
import pytest

from dualcalc import plots
from dualcalc.dual import derive
from dualcalc.plots import CURVES, FORMATS, Curve, Panel, draw, overview, save

MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def lines(ax) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): tuple(np.asarray(v) for v in line.get_data()) for line in ax.get_lines()}


@pytest.fixture(scope="module")
def gelu():
    return overview("gelu")


@pytest.mark.parametrize("name", ["relu", "tanh", "sign(t)"])
def test_overview_builds(name, tmp_path):
    figure = overview(name)
    assert [ax.get_title(loc="left").split(" at ")[0] for ax in figure.axes] == [
        "Activation",
        "Dual",
        "Hermite spectrum",
        "Error of the truncated dual",
    ]
    assert all(ax.get_lines() for ax in figure.axes)
    save(figure, tmp_path / "figure.png")


def test_overview_shows_the_dual(gelu):
    """Against the closed forms at q = 1, by hand: k(1) = 1/3 + 1/(2 sqrt(3) pi), k(0) = 1/(4 pi), kdot(0) = 1/4."""
    drawn = lines(gelu.axes[1])
    c, k = drawn["k / k(1)"]
    top = 1 / 3 + 1 / (2 * np.sqrt(3) * np.pi)
    assert f"k(1) = {top:.4g}" in gelu.axes[1].get_title(loc="left")
    assert np.interp(0, c, k) == pytest.approx(1 / (4 * np.pi) / top, rel=1e-12)
    assert np.interp(0, *drawn["kdot"]) == pytest.approx(1 / 4, rel=1e-12)


@pytest.mark.parametrize("name", ["gelu", "relu", "tanh"])
def test_errors_stay_below_their_bounds(name):
    drawn = lines(overview(name).axes[3])
    for c in (0.9, 0.5):
        error, bound = drawn[f"error, c = {c:g}"][1], drawn[f"Parseval bound, c = {c:g}"][1]
        seen = np.isfinite(error) & np.isfinite(bound)
        assert seen.sum() > 10 and (error[seen] <= bound[seen] * (1 + 1e-9)).all()


def test_relu_at_degree_two():
    """What is left of E[s^2] = 1/2 beyond 1/(2 pi), 1/4 and 1/(4 pi): half of it left out is 1/2 - 3/(2 pi)."""
    q, error = lines(overview("Max(t, 0)").axes[3])["error = Parseval bound, c = 1"]
    assert error[q == 2] == pytest.approx(0.5 - 3 / (2 * np.pi), rel=1e-12)


def test_jumps_are_gaps_and_have_no_kdot():
    axes = overview("sign(t)").axes
    x, s = lines(axes[0])["s"]
    assert np.isnan(s[x == 0]).all() and set(s[x != 0]) == {-1.0, 1.0}
    assert set(lines(axes[1])) == {"k / k(1)"}


def test_parameters_and_duals(gelu):
    low, high = (lines(overview("abrelu", A=a, B=1).axes[0])["s"][1][0] for a in (0.25, 0.75))
    assert (low, high) == (-0.25 * -4, -0.75 * -4)
    same = lines(overview(derive("gelu")).axes[1])["kdot"][1]
    assert np.array_equal(same, lines(gelu.axes[1])["kdot"][1])


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_are_the_same_twice(suffix, tmp_path, gelu):
    for name, figure in (("a", gelu), ("b", overview("gelu"))):
        save(figure, tmp_path / (name + suffix.upper()))
    first, second = ((tmp_path / (name + suffix.upper())).read_bytes() for name in "ab")
    assert first.startswith(MAGIC[suffix]) and first == second
    assert not any(word in first for word in (b"CreationDate", b"<dc:date>", b"tIME"))


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png.txt"])
def test_other_formats_are_refused(name, tmp_path, gelu):
    with pytest.raises(ValueError, match=r"ends in \.png, \.svg, \.pdf"):
        save(gelu, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "activation, why",
    [
        ("normalized_gaussian", "no activation"),
        ("exp(t**2)", "square-integrable"),
        ("sin(t", "sin"),
        ("__import__('os')", "import"),
        ("0*t", "zero"),
    ],
)
def test_refusals(activation, why):
    with pytest.raises(ValueError, match=why):
        overview(activation)


def test_panels():
    """Gaps where a logarithm has no value, one legend for all, no axes without a panel."""
    x = np.arange(4.0)
    curves = [Curve(x, np.array([1, 0, np.inf, 2]), "y", kind=kind) for kind in plots.KINDS]
    figure = draw([Panel("p", curves, yscale="log", legend=False)] * 3, columns=2, shared_legend=True)
    shown = [np.isfinite(line.get_ydata()).sum() for line in figure.axes[0].get_lines()]
    assert shown == [2] * len(plots.KINDS)
    assert [ax.axison for ax in figure.axes] == [True, True, True, False]
    assert len(figure.legends) == 1 and not any(ax.get_legend() for ax in figure.axes)


def test_colours_differ_in_grey():
    """No two rows share dash or marker; print in grey tells curves apart by these."""
    assert len({str(dash) for _, dash, _ in CURVES}) == len({marker for *_, marker in CURVES}) == len(CURVES)


def test_nothing_global():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw([Panel("p", [Curve(np.arange(2), np.arange(2))])])
    assert dict(matplotlib.rcParams) == before


def test_the_legend_of_the_errors_covers_no_curve(gelu):
    axes = gelu.axes[3]
    assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0
