"""Numeric primitives that generated modules carry, each with its derivative.

Generated code imports neither SymPy nor dualcalc: `codegen.py` copies the source text of the primitives that a kernel
uses (`source`) into a standalone module for JAX, NumPy, numba or torch.  Hence the house rule of this file: a body is
elementwise, branch-free (`where`) and calls only functions of the same name in `jax.numpy`, `numpy`, `torch` and numba;
what differs between targets is in `TWINS`.  Only JAX gets the derivative rules, which stand below each body.

All inputs of a primitive have one dtype, float32 or float64, and one shape.  Derivative rules are free of NaN at every
finite input, to every order: a singular derivative is zero, and so is the tangent of a redundant input (one that the
caller computed from the others in order to save digits).  eps is 2^-23 or 2^-52.
"""

import ast
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as xp

where = xp.where

SQRT_HALF = 0.7071067811865476
INV_SQRT_2PI = 0.3989422804014327
INV_2PI = 0.15915494309189535
TWO_OVER_SQRT_PI = 1.1283791670955126


def pick(x, single, double):
    """The constant or table for the precision of `x`."""
    return single if x.dtype.itemsize == 4 else double


def polynomial(coefficients, x):
    """Horner's rule, highest degree first."""
    total = 0.0 * x
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


# ---------------------------------------------------------------------------------------------------- determinant


def split(x):
    """x = high + low, each short enough that products of two parts are exact.  XLA contracts multiply and add, which
    breaks Veltkamp's splitting (the other targets' twin), so here the rounding is asked for by name."""
    exponent_bits, mantissa_bits = pick(x, (8, 11), (11, 25))
    high = jax.lax.reduce_precision(x, exponent_bits, mantissa_bits)
    return high, x - high


def two_sum(a, b):
    """a + b = total + error, exactly (Knuth 1969)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


@jax.custom_jvp
def gram_det(q12, q11, q22):
    """(delta, q12p): delta = q11 q22 - q12^2 to 1 eps, and q12 projected on |q12| <= sqrt(q11 q22).

    Rounded inputs can have delta < 0: within 10 eps q11 q22 (5 eps of q12) they mean delta = 0, beyond it is NaN,
    as are a negative variance, and a delta that underflows (variances below 1e-19 in float32, 1e-154 in float64)."""
    # With x = xh + xl for each input, delta is a sum of exact products (so contraction to FMA changes nothing),
    #   (ah bh - ch^2) + (ah bl + al bh - 2 ch cl) + (al bl - cl^2),
    # added with error terms (Dekker 1971) where they can matter: the first difference is exact, or no smaller than half
    # of a b; and so is its sum with the second. Small inputs are scaled by 2^30 so that no product underflows.
    small = q11 * q22 < 2.0**-60
    up, down = where(small, 1073741824.0 + 0.0 * q11, 1.0), where(small, 2.0**-30 + 0.0 * q11, 1.0)
    a, b, c = q11 * up, q22 * up, q12 * up
    ah, al = split(a)
    bh, bl = split(b)
    ch, cl = split(c)
    cross, error1 = two_sum(ah * bl, al * bh)
    cross, error2 = two_sum(cross, -2.0 * ch * cl)
    scaled = (ah * bh - ch * ch) + cross + (error1 + error2 + (al * bl - cl * cl))
    variances = (q11 >= 0) & (q22 >= 0)
    possible = variances & (scaled >= 0)
    tolerated = variances & (-scaled <= pick(q11, 10 * 2.0**-23, 10 * 2.0**-52) * (a * b))
    delta = scaled * down * down
    lost = possible & (scaled > 0) & (delta < pick(q11, 2.0**-126, 2.0**-1022))
    delta = where(possible & ~lost, delta, where(tolerated & ~lost, 0.0, xp.nan + 0.0 * scaled))
    edge = xp.sign(q12) * xp.sqrt(q11) * xp.sqrt(q22)
    return delta, where(possible, q12, edge + delta)


@gram_det.defjvp
def _gram_det_jvp(primals, tangents):
    q12, q11, q22 = primals
    d12, d11, d22 = tangents
    return gram_det(q12, q11, q22), (q22 * d11 + q11 * d22 - 2.0 * q12 * d12, d12)


# ------------------------------------------------------------------------------------------- root, ratio and angle


@jax.custom_jvp
def root(x):
    """sqrt(x); tangent zero at x = 0."""
    return xp.sqrt(x)


@root.defjvp
def _root_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    slope = where(x == 0, 0.0, 0.5 / root(where(x == 0, 1.0, x)))
    return root(x), slope * dx


@jax.custom_jvp
def ratio(x, y):
    """x/y with 0/0 = 0; tangent zero where y = 0."""
    return x / where((x == 0) & (y == 0), 1.0, y)


@ratio.defjvp
def _ratio_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    safe = where(y == 0, 1.0, y)
    return ratio(x, y), where(y == 0, 0.0, (dx - x / safe * dy) / safe)


# atan(z)/z as a polynomial in z^2 on [0, 1], by interpolation at Chebyshev points: 1.1 eps in float32, 0.9 in float64.
ATAN_SINGLE = (
    -0.001701170064,
    0.01048764925,
    -0.03035186479,
    0.05708955593,
    -0.08349724968,
    0.109323415,
    -0.1426001608,
    0.1999807528,
    -0.3333327629,
    0.9999999972,
)
ATAN_DOUBLE = (
    -8.26799581733715e-06,
    9.978410811953032e-05,
    -0.0005727925781292097,
    0.002090633535263676,
    -0.005484778971809356,
    0.011122014669752633,
    -0.018386836817918875,
    0.0259471057039563,
    -0.03264116292977077,
    0.038129809754225044,
    -0.042828645702794474,
    0.0474370596643217,
    -0.05259103789485882,
    0.05881647236717415,
    -0.06666572806289763,
    0.07692298432985685,
    -0.09090908440338843,
    0.11111111080383854,
    -0.14285714284820428,
    0.19999999999986157,
    -0.3333333333333325,
    1.0,
)


@jax.custom_jvp
def angle(y, x):
    """atan2(y, x) for x >= 0, 0 at the origin; tangent (x dy - y dx)/(x^2 + y^2), zero at the origin.

    XLA's own arctan2 takes four times as long on a CPU."""
    steep, flat = xp.abs(y), xp.abs(x)
    size = xp.maximum(steep, flat)
    z = xp.minimum(steep, flat) / where(size == 0, 1.0, size)
    low = z * polynomial(ATAN_SINGLE if z.dtype.itemsize == 4 else ATAN_DOUBLE, z * z)
    return xp.sign(y) * where(steep > flat, 1.5707963267948966 - low, low)


@angle.defjvp
def _angle_jvp(primals, tangents):
    # The angle is homogeneous of degree 0, so scaling by a constant (hence stop_gradient) of the size of the inputs
    # keeps x^2 + y^2 between 1 and 2.
    (y, x), (dy, dx) = primals, tangents
    size = jax.lax.stop_gradient(xp.maximum(xp.abs(x), xp.abs(y)))
    origin = size == 0
    size = where(origin, 1.0, size)
    u, v = where(origin, 1.0, x / size), y / size
    scale = where(origin, 0.0, 1.0 / (u * u + v * v))
    return angle(y, x), (u * scale * dy - v * scale * dx) / size


# -------------------------------------------------------------------------------------------------- erfcx and erf

# (1 + 2x) exp(x^2) erfc(x) as a polynomial in t = (x - 3.5)/(x + 3.5) on [-1, 1] (the variable of Shepherd and
# Laframboise 1981): Chebyshev interpolation of degree 11 and 23 with mpmath at 40 digits,
# `tests/test_runtime.py::erfcx_table`.
ERFCX_SINGLE = (
    -6.599514789833978e-05, 0.000448676533283797, -0.0003590936620743805, -0.0040893597362799215,
    0.01912750985981881, -0.048887399522983384, 0.0879767016784749, -0.11507471284641521,
    0.09751964199385116, -0.010556866769515286, -0.14000918771601753, 1.2423492625014958,
)  # fmt: skip
ERFCX_DOUBLE = (
    -1.2155186967957756e-09, 5.811094619015422e-11, 1.3911592311296799e-08, 6.778448793564802e-10,
    -9.711971328975727e-08, -8.641744973204816e-09, 6.025096057081062e-07, -4.3051702801470573e-08,
    -3.814933907984698e-06, 2.3272968965569266e-06, 2.4260839884956625e-05, -4.2781721628905614e-05,
    -0.00012151232760165049, 0.0005643842605299897, -0.00030226790250868746, -0.004215019878405747,
    0.019099330945601945, -0.0488233258310565, 0.08798315382467885, -0.11508959816001958,
    0.09751909515326224, -0.010555596332221952, -0.14000918013761943, 1.2423492448711544,
)  # fmt: skip


@jax.custom_jvp
def erfcx(x):
    """exp(x^2) erfc(x) for x >= 0, to 2 eps."""
    clipped = where(x > 1e18, 1e18, x)
    return polynomial(pick(x, ERFCX_SINGLE, ERFCX_DOUBLE), (clipped - 3.5) / (clipped + 3.5)) / (1.0 + 2.0 * x)


@erfcx.defjvp
def _erfcx_jvp(primals, tangents):
    # erfcx' = 2x erfcx - 2/sqrt(pi) cancels; from x = 25 on its asymptotic series in z = 1/(2 x^2) (DLMF 7.12.1), so
    # that the error stays below 100 eps of erfcx.
    (x,), (dx,) = primals, tangents
    near = where(x < 25.0, x, 0.0)
    far = where(x < 25.0, 25.0, x)
    z = 0.5 / far / far
    series = polynomial((10395.0, -945.0, 105.0, -15.0, 3.0, -1.0, 0.0), z)
    slope = where(x < 25.0, 2.0 * near * erfcx(near) - TWO_OVER_SQRT_PI, TWO_OVER_SQRT_PI * series)
    return erfcx(x), slope * dx


# erf(x)/x - 1 as a polynomial in x^2 on [0, 1], Chebyshev interpolation, `tests/test_runtime.py::erf_table`.
ERF_SINGLE = (
    -0.0005648059865503044, 0.004921762027877231, -0.02671505423226643, 0.11280316652505075,
    -0.37612343775327806, 0.12837912617873729,
)  # fmt: skip
ERF_DOUBLE = (
    -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07, 1.6447424703317362e-06,
    -1.492473690741966e-05, 0.00012055294904839707, -0.0008548325975389692, 0.0052239776071164225,
    -0.02686617064323777, 0.11283791670945006, -0.37612638903183543, 0.12837916709551256,
)  # fmt: skip


def erf_series(x):
    """erf(x) for a target that has none: x (1 + P(x^2)) up to |x| = 1, then 1 - exp(-x^2) erfcx(|x|)."""
    size = xp.abs(x)
    inner = where(size < 1.0, x, 0.0)
    near = inner + inner * polynomial(pick(x, ERF_SINGLE, ERF_DOUBLE), inner * inner)
    return where(size < 1.0, near, xp.sign(x) * (1.0 - xp.exp(-size * size) * erfcx(size)))


erf = jax.scipy.special.erf

# --------------------------------------------------------------------------------- normal distributions in log space


@jax.custom_jvp
def exp_normal(e, eh, h):
    """exp(e - h^2/2), given eh = e - h^2/2 (redundant, so that h may be infinite)."""
    return xp.exp(eh)


@exp_normal.defjvp
def _exp_normal_jvp(primals, tangents):
    (e, eh, h), (de, _, dh) = primals, tangents
    value = exp_normal(e, eh, h)
    return value, value * de - value * where(value == 0, 0.0, h) * dh


@jax.custom_jvp
def exp_ndtr(e, eh, h):
    """exp(e) Phi(h), Phi the normal distribution function, given eh = e - h^2/2 (redundant)."""
    full = xp.exp(e)
    beyond = 0.5 * xp.exp(eh) * erfcx(xp.abs(h) * SQRT_HALF)  # exp(e) Phi(-|h|)
    return where(h <= 0, beyond, where(full == xp.inf, full, full - beyond))


@exp_ndtr.defjvp
def _exp_ndtr_jvp(primals, tangents):
    (e, eh, h), (de, _, dh) = primals, tangents
    value = exp_ndtr(e, eh, h)
    return value, value * de + INV_SQRT_2PI * exp_normal(e, eh, h) * dh


# Two quadrature rules on [0, 1] side by side, (node, weight, node, weight), derivations below;
# `tests/test_runtime.py::wedge_table` recomputes them.
WEDGE_SINGLE = (
    (0.013057480301633121, 0.033503010059046774, 0.1252334085114689, 0.24914704581340277),
    (0.06876119262110407, 0.07793759712944552, 0.3678314989981802, 0.2334925365383548),
    (0.16908586900363484, 0.12289876533442058, 0.5873179542866175, 0.20316742672306592),
    (0.3153902572301385, 0.17046755169841823, 0.7699026741943047, 0.16007832854334622),
    (0.512769910052381, 0.22658351341967695, 0.9041172563704749, 0.10693932599531843),
    (0.7761889619119365, 0.30520659887605195, 0.9815606342467192, 0.04717533638651183),
)
WEDGE_DOUBLE = (
    (0.003088023417373464, 0.007923878996883845, 0.05923009342931321, 0.11832141527926228),
    (0.016262268962380144, 0.018426867580433586, 0.17685882035689018, 0.11666044348529658),
    (0.03993344886166837, 0.028909406758598294, 0.2920048394859569, 0.11336181654631966),
    (0.07407002129728457, 0.03935996587494089, 0.4030517551234863, 0.10847184052857659),
    (0.11865329791012855, 0.0498117899235602, 0.5084407148245057, 0.10205916109442542),
    (0.17371983495631613, 0.06034441795884076, 0.6066922930176181, 0.09421380035591415),
    (0.2394160162068679, 0.07110175390260055, 0.6964272604199573, 0.08504589431348523),
    (0.3160761181692386, 0.08232219696762882, 0.7763859488206789, 0.07468414976565975),
    (0.40434120905343873, 0.09439311408913148, 0.845445942788498, 0.06327404632957484),
    (0.5053545110062336, 0.10795487637211428, 0.9026378619843071, 0.05097582529714781),
    (0.6211001742648818, 0.12408596607578713, 0.9471590666617142, 0.037962383294362766),
    (0.7548996959075975, 0.1442743739786429, 0.978385445956471, 0.02441785109263191),
    (0.9093239429814253, 0.16003322070994552, 0.9958857011456169, 0.010551372617343006),
)


def wedge(x, t, ex, er):
    """exp(e) M(x, t), M(x, t) = P(X > x, Y < t X/x) for x >= 0 and independent standard normal X, Y,
    given ex = e - x^2/2 and er = e - (x^2 + t^2)/2."""
    # M(x, t) + M(x, -t) = Q(x) = P(X > x), and with tau = |t|, in polar coordinates (Owen 1956),
    #   2 pi M(x, -tau) = exp(-(x^2 + tau^2)/2) J(x, tau, inf)
    #                   = pi Q(x) - exp(-x^2/2) J(x, 0, tau)
    #                   = exp(-tau^2/2) J(tau, 0, x) - 2 pi Q(tau) (1/2 - Q(x)),
    #   J(p, q, L) = int_0^L exp(-v (q + v/2)) p / (p^2 + (q + v)^2) dv.
    # The first serves tau > 1.75, cut where the exponential has fallen to exp(-37) (exp(-18) in float32); the second
    # tau <= x; the third the rest.  In the first the integrand falls like exp(-37 y + a y (1 - y)), y = v/L, a < 25:
    # its nodes are the Gauss rule for that weight with a = 9 (float32: 4), 1e-15 where Gauss-Legendre has 1e-7.  In the
    # others L <= p and the integrand is even in v: half of the Gauss-Legendre rule of twice the size on [-L, L].
    tau = xp.abs(t)
    tau, x = where(tau > 1e6, 1e6, tau), where(x > 1e6, 1e6, x)
    cut = pick(x, 36.0, 74.0)
    far, low = tau > 1.75, tau <= x
    p = where(far | low, x, tau)
    p = where(x + tau == 0, 1.0, p)  # there the span is zero, and so is the sum
    q = where(far, tau, 0.0)
    span = where(far, cut / (tau + xp.sqrt(tau * tau + cut)), where(low, tau, x))
    use_far, use_near = where(far, 1.0 + 0.0 * x, 0.0), where(far, 0.0 * x, 1.0)  # a `where` per node would be a branch
    total = 0.0 * x
    for node_far, weight_far, node, weight in pick(x, WEDGE_SINGLE, WEDGE_DOUBLE):
        v = span * (node_far * use_far + node * use_near)
        ordinate = xp.exp(-v * (q + 0.5 * v)) * p / (p * p + (q + v) * (q + v))
        total = total + (weight_far * use_far + weight * use_near) * ordinate
    lead = xp.exp(where(far, er, where(low, ex, er + 0.5 * x * x)))
    ray = INV_2PI * lead * span * total
    scaled = erfcx(x * SQRT_HALF)
    outside = 0.5 * xp.exp(ex) * scaled  # exp(e) Q(x)
    corner = 0.25 * lead * erfcx(tau * SQRT_HALF) * (1.0 - xp.exp(-0.5 * x * x) * scaled)  # exp(e) Q(tau) (1/2 - Q(x))
    minus = where(far, ray, where(low, 0.5 * outside - ray, ray - corner))
    return where(t < 0, minus, outside - minus)


@jax.custom_jvp
def exp_phi2(e, eh, ek, er, h, k, th, tk, y, x):
    """exp(e) Phi2(h, k, rho), Phi2 the bivariate normal distribution function.

    Redundant inputs, which the caller has without cancellation:
    th = (k - rho h)/sqrt(1 - rho^2) and tk = (h - rho k)/sqrt(1 - rho^2), 0 for a zero numerator, +-inf at |rho| = 1;
    eh = e - h^2/2, ek = e - k^2/2, er = e - (h^2 + th^2)/2 = e - (k^2 + tk^2)/2.
    The correlation enters as (y, x) proportional to (rho, sqrt(1 - rho^2)), x >= 0."""
    # The quadrant below (h, k) is cut by the ray from the origin through (h, k) into two wedges, of positive sign where
    # the bound is negative.  At h = k = 0 the ray is not defined: any will do, so the quadrant moves by a speck along
    # its bisector, where th = tk = h tan(quarter turn/2 - angle(y, x)/2).  (An arctangent would cost ten nodes.)
    # x = y = 0 says that a variance is zero: the variables are independent, and th, tk came as 0/0.
    alone = (y == 0) & (x == 0)
    th, tk, er = where(alone, k, th), where(alone, h, tk), where(alone, eh - 0.5 * k * k, er)
    speck = pick(h, 1e-11, 1e-17)
    origin = xp.abs(h) + xp.abs(k) < speck
    size = where(xp.abs(y) > x, xp.abs(y), x)
    u, v = y / where(size > 0, size, 1.0), where(size > 0, x, 1.0) / where(size > 0, size, 1.0)
    diagonal = xp.sqrt(u * u + v * v)
    tangent = where(u > 0, v, diagonal - u) / where(u > 0, diagonal + u, v)
    bisector = -speck * tangent
    er = where(origin, e, er)
    at_h = wedge(where(origin, speck, xp.abs(h)), where(origin, bisector, th), eh, er)
    at_k = wedge(where(origin, speck, xp.abs(k)), where(origin, bisector, tk), ek, er)
    full = xp.exp(e)
    above_h, above_k = where(origin, -1.0, h) > 0, where(origin, -1.0, k) > 0
    wedges = where(above_h, -at_h, at_h) + where(above_k, -at_k, at_k)
    return where(above_h & above_k, where(full == xp.inf, full, full + wedges), wedges)


@exp_phi2.defjvp
def _exp_phi2_jvp(primals, tangents):
    # dPhi2/dh = phi(h) Phi(th), dPhi2/dk = phi(k) Phi(tk), dPhi2/drho = the density, and drho/sqrt(1 - rho^2) = dangle.
    e, eh, ek, er, h, k, th, tk, y, x = primals
    de, _, _, _, dh, dk, _, _, dy, dx = tangents
    value = exp_phi2(*primals)
    _, turn = jax.jvp(angle, (y, x), (dy, dx))
    slopes = exp_ndtr(eh, er, th) * dh + exp_ndtr(ek, er, tk) * dk
    return value, value * de + INV_SQRT_2PI * slopes + INV_2PI * exp_normal(eh, er, th) * turn


# ---------------------------------------------------------------------------------------------- hyperbolic functions


def abs_slope(x):
    """The derivative of |x| as JAX has it: 1 at 0."""
    return where(x < 0, -1.0, 1.0 + 0.0 * xp.sign(x))  # sign, because x may be infinite


@jax.custom_jvp
def exp_sinh(g, x):
    """exp(g - |x|) sinh(x); the caller has g = s + |x| exactly, so that exp(s) sinh(x) cannot overflow.

    The derivative of |x| in the rules cancels the one in the caller's g at every order, at x = 0 too."""
    half = where(x == 0, 0.0, xp.exp(0.5 * g))  # twice, because exp(g) may overflow where the product does not
    return -0.5 * xp.sign(x) * half * xp.expm1(-2.0 * xp.abs(x)) * half


@jax.custom_jvp
def exp_cosh(g, x):
    """exp(g - |x|) cosh(x), as `exp_sinh`."""
    return 0.5 * xp.exp(g) * (1.0 + xp.exp(-2.0 * xp.abs(x)))


@exp_sinh.defjvp
def _exp_sinh_jvp(primals, tangents):
    (g, x), (dg, dx) = primals, tangents
    value = exp_sinh(g, x)
    return value, value * dg + (exp_cosh(g, x) - abs_slope(x) * value) * dx


@exp_cosh.defjvp
def _exp_cosh_jvp(primals, tangents):
    (g, x), (dg, dx) = primals, tangents
    value = exp_cosh(g, x)
    return value, value * dg + (exp_sinh(g, x) - abs_slope(x) * value) * dx


# ------------------------------------------------------------------------------------------------------- assembling

NODES = (
    0.001368069075259215, 0.007194244227365809, 0.017618872206246805, 0.03254696203113017, 0.051839422116973954,
    0.07531619313371501, 0.10275810201602881, 0.13390894062985514, 0.16847786653489238, 0.20614212137961885,
    0.24655004553388532, 0.28932436193468236, 0.33406569885893617, 0.38035631887393145, 0.42776401920860174,
    0.4758461671561308, 0.5241538328438692, 0.5722359807913983, 0.6196436811260685, 0.6659343011410639,
    0.7106756380653176, 0.7534499544661146, 0.7938578786203812, 0.8315221334651076, 0.8660910593701449,
    0.8972418979839711, 0.924683806866285, 0.948160577883026, 0.9674530379688698, 0.9823811277937532,
    0.9928057557726342, 0.9986319309247408,
)  # fmt: skip
WEIGHTS = (
    0.003509305004735253, 0.008137197365452872, 0.012696032654631012, 0.017136931456510882, 0.021417949011113418,
    0.025499029631188046, 0.029342046739267783, 0.03291111138818084, 0.03617289705442417, 0.039096947893535114,
    0.041655962113473353, 0.04382604650220189, 0.04558693934788189, 0.046922199540402255, 0.047819360039637354,
    0.04827004425736383, 0.04827004425736383, 0.047819360039637354, 0.046922199540402255, 0.04558693934788189,
    0.04382604650220189, 0.041655962113473353, 0.039096947893535114, 0.03617289705442417, 0.03291111138818084,
    0.029342046739267783, 0.025499029631188046, 0.021417949011113418, 0.017136931456510882, 0.012696032654631012,
    0.008137197365452872, 0.003509305004735253,
)  # fmt: skip
"""The 32-point Gauss-Legendre rule on [0, 1]: numpy.polynomial.legendre.leggauss(32), halved and shifted."""


def quotient(x, y):
    """x / y in a coefficient: zero over anything that vanishes, where the head beside it vanishes faster."""
    zero = y == 0
    return where(zero, 0.0, x / where(zero, 1.0, y))


def filled(value, like):
    """A constant as an array."""
    return xp.full_like(like, value)


def parameter(value, like):
    """A parameter in the precision of the covariances."""
    return xp.asarray(value, like.dtype)


def stacked_phi2(*calls):
    """All bivariate normals of a member by one body, compiled once: a loop, because XLA would fuse a stack with what
    feeds it and run three times slower."""
    rows = tuple(xp.stack(xp.broadcast_arrays(*row)) for row in zip(*calls, strict=True))
    out = jax.lax.map(lambda row: exp_phi2(*row), rows)
    return tuple(out[i] for i in range(len(calls)))


def integrated(slope, mean, q12, q11, q22, delta, *parameters):
    """E[s(u)] E[s(v)] + the integral of E[s'(u) s'(v)] over the covariance from 0 to q12.

    With the covariance as sqrt(q11 q22) sin(angle) the integrand is smooth, and nothing cancels at small norms."""
    top, size = angle(q12, root(delta)), root(q11) * root(q22)
    nodes, weights = xp.asarray(NODES, q12.dtype), xp.asarray(WEIGHTS, q12.dtype)

    def add(i, total):
        c, s = xp.cos(top * nodes[i]), xp.sin(top * nodes[i])
        return total + weights[i] * c * slope(size * s, q11, q22, (size * c) ** 2, *parameters)

    total = jax.lax.fori_loop(0, len(NODES), add, 0.0 * q12)
    return mean(q11, *parameters) * mean(q22, *parameters) + top * size * total


def mean_by_curvature(curvature, start, q, *parameters):
    """E[s(sqrt(q) Z)] = s(0) + the integral of y E[s''(y Z)] over y from 0 to sqrt(q)."""
    a = root(q)
    nodes, weights = xp.asarray(NODES, q.dtype), xp.asarray(WEIGHTS, q.dtype)

    def add(i, total):
        y = a * nodes[i]
        return total + weights[i] * y * curvature(y * y, *parameters)

    return start + a * jax.lax.fori_loop(0, len(NODES), add, 0.0 * q)


def mean_by_norm(curvature, start, closed, q, *parameters):
    """E[s(sqrt(q) Z)]: for norms below 1, where the closed form can cancel, by its curvature."""
    below = q < 1.0
    small = mean_by_curvature(curvature, start, where(below, q, 1.0), *parameters)
    return where(below, small, closed(q, *parameters))


def by_norm(tiny, small, closed, q12, q11, q22, delta, *parameters):
    """The integral where a norm is below 1/2 and the other at most 3, or a variance below `tiny`; else the closed form.

    The integral is not run where no pair needs it."""
    low = xp.minimum(q11, q22) < where(xp.maximum(q11, q22) <= 9.0, 0.25, tiny + 0.0 * q11)
    value = closed(q12, q11, q22, delta, *parameters)

    def mixed():
        return where(low, small(q12, q11, q22, delta, *parameters), value)

    return jax.lax.cond(xp.any(low), mixed, lambda: value)


def at_covariance(member):
    """A member of the covariance alone: the determinant without cancellation, q12 projected where rounding overshot."""

    def at(q12, q11, q22, *parameters):
        q12, q11, q22 = xp.broadcast_arrays(q12, q11, q22)
        delta, q12 = gram_det(q12, q11, q22)
        return member(q12, q11, q22, delta, *parameters)

    return at


def price(member, slope, own):
    """A member with Price's theorem as its derivative: dK/dq12 = slope, dK/dq11 = own/2, dK/dq22 its mirror image.

    Parameters are differentiated through the formula, at fixed covariance."""
    value_at = at_covariance(member)

    @jax.custom_jvp
    def value(q12, q11, q22, *parameters):
        return value_at(q12, q11, q22, *parameters)

    @value.defjvp
    def rule(primals, tangents):
        (q12, q11, q22, *parameters), (d12, d11, d22, *d_parameters) = primals, tangents
        total = slope(q12, q11, q22, *parameters) * d12
        total = total + 0.5 * own(q12, q11, q22, *parameters) * d11 + 0.5 * own(q12, q22, q11, *parameters) * d22
        if parameters:
            fixed = lambda *p: value_at(q12, q11, q22, *p)  # noqa: E731
            total = total + jax.jvp(fixed, tuple(parameters), tuple(d_parameters))[1]
        return value(*primals), total

    return value


def inputs(*arrays):
    """Floating arrays of one dtype (at least float32) and one shape."""
    typed = [a.dtype for a in arrays if hasattr(a, "dtype")]
    dtype = xp.result_type(*typed) if typed else xp.zeros(()).dtype
    dtype = dtype if xp.issubdtype(dtype, xp.floating) else xp.zeros(()).dtype
    dtype = xp.float32 if dtype.itemsize < 4 else dtype
    shape = xp.broadcast_shapes(*(xp.shape(a) for a in arrays))
    return [xp.broadcast_to(xp.asarray(a, dtype), shape) for a in arrays]


def flagged(member):
    """A member for `accepted`: its value, and whether that is NaN because no Gaussian has the covariance."""

    def value(q12, q11, q22, *parameters):
        out = member(q12, q11, q22, *parameters)
        most = xp.sqrt(xp.abs(q11)) * xp.sqrt(xp.abs(q22)) * (1.0 + pick(q12, 4e-7, 8e-16))
        return out, xp.any(xp.isnan(out) & ((q11 < 0) | (q22 < 0) | (xp.abs(q12) > most)))

    return value


def accepted(value, bad):
    """The value, or ValueError for a covariance matrix that no Gaussian has (while JAX traces: NaN)."""
    if known_true(bad):
        raise ValueError(
            "the arguments are (q12, q11, q22), and [[q11, q12], [q12, q22]] must be a covariance matrix; "
            "what came has a negative variance or q12^2 > q11 q22 beyond rounding"
        )
    return value


def required(holds, value, name, sign):
    """ValueError where a parameter lacks the sign that its formula assumes (while JAX traces: nothing is checked)."""
    if known_true(xp.any(xp.asarray(holds) == False)):  # noqa: E712
        raise ValueError(f"{name} = {value} came; expected a {sign} number, as the formula assumes it")


def known_true(flag):
    """Whether a flag is true and known, that is, not being traced."""
    try:
        return bool(flag)
    except jax.errors.ConcretizationTypeError:
        return False


# ----------------------------------------------------------------------------------------------------------- tables

# A table is an approximate kernel, constant + linear q12 + E + c O (`approximate.Table` says what its entries mean):
# a dictionary of norms, log_scale, constant, linear, and of even and odd, each (ranks, features, signs) or None.


def clenshaw(coefficients, y):
    """sum_n coefficients[n] T_n(y), for coefficients (N, ...) that broadcast with y."""
    b1 = b2 = 0.0 * y
    for n in range(len(coefficients) - 1, 0, -1):
        b1, b2 = coefficients[n] + 2.0 * y * b1 - b2, b1
    return coefficients[0] + y * b1 - b2


def norm_coordinate(table, q):
    """y in [-1, 1] on the table's norms, NaN outside; variances q at the edge may be off by rounding."""
    low, high = table["variances"]
    slack = 1e-6 if q.dtype.itemsize == 4 else 2e-15
    inside = (q >= low * (1.0 - slack)) & (q <= high * (1.0 + slack))
    slope, offset = table["affine"]
    return slope * xp.log(xp.where(inside, q, xp.nan)) + offset


def norm_features(table, part, q):
    """W_r(sqrt(q)) of one part: (R, *q.shape). q is small: rows before they meet columns."""
    y = norm_coordinate(table, q)[None]
    columns = parameter(table[part][1], q)
    columns = columns.reshape(columns.shape + (1,) * q.ndim)
    scale = clenshaw(parameter(table["log_scale"], q), y)
    return xp.exp(scale) * clenshaw(columns, y)


def separable_series(table, part, q11, q22, x):
    """The sum over degrees l of P_l(x), its coefficients sum_r sign_r W_r(a) W_r(b): one multiply-add a term."""
    ranks, _, signs = table[part]
    rows, columns = norm_features(table, part, q11), norm_features(table, part, q22)
    coefficients, first = [], 0
    for rank in ranks:
        total = 0.0 * x
        for r in range(first, first + rank):
            total = total + (rows[r] if signs[r] > 0 else -rows[r]) * columns[r]
        coefficients.append(total)
        first += rank
    return clenshaw(coefficients, x) if table["basis"] == "chebyshev" else polynomial(coefficients[::-1], x)


def cosine_and_variable(table, q12, q11, q22):
    """c = cos(theta), and the variable of the table's series: a function of sin(theta)^2, or c^2."""
    delta, q12 = gram_det(q12, q11, q22)
    cosine = q12 / xp.sqrt(q11) / xp.sqrt(q22)
    if table["basis"] == "power":
        return cosine, cosine * cosine
    shift, middle, half = table["variable"]
    return cosine, (root(delta / (q11 * q22) + shift) - middle) / half


def table_value(table, q12, q11, q22, cosine, x):
    """The kernel at a cosine and variable that are known."""
    total = table["constant"] + table["linear"] * q12 + 0.0 * x
    if table["even"] is not None:
        total = total + separable_series(table, "even", q11, q22, x)
    if table["odd"] is not None:
        total = total + cosine * separable_series(table, "odd", q11, q22, x)
    return total


def in_blocks(value, table, q12, q11, q22):
    """`value(q12, q11, q22)`, block by block where the features of the norms would not fit into memory."""
    terms = sum(len(table[part][2]) for part in ("even", "odd") if table[part] is not None)
    if terms * max(q11.size, q22.size) <= 2**24:
        return value(q12, q11, q22)
    shape = xp.broadcast_shapes(q12.shape, q11.shape, q22.shape)
    flat = tuple(xp.broadcast_to(q, shape).reshape(-1) for q in (q12, q11, q22))
    return jax.lax.map(lambda q: value(*q), flat, batch_size=2**20 // terms).reshape(shape)


def tabulated(table, slope=None):
    """The kernel of a table, with Price's theorem as its derivative: dK/dq12 = slope, itself a kernel of a table.

    dK/dq11 at fixed q12 is that at fixed angle less slope q12/(2 q11). Without a slope the table is differentiated."""

    def plain(q12, q11, q22):
        return in_blocks(lambda *q: table_value(table, *q, *cosine_and_variable(table, *q)), table, q12, q11, q22)

    if slope is None:
        return plain
    value = jax.custom_jvp(plain)

    @value.defjvp
    def rule(primals, tangents):
        (q12, q11, q22), (d12, d11, d22) = primals, tangents
        cosine, x = cosine_and_variable(table, q12, q11, q22)
        fixed = lambda q12, q11, q22: table_value(table, q12, q11, q22, cosine, x)  # noqa: E731
        turn = d12 - 0.5 * q12 * (d11 / q11 + d22 / q22)
        along = jax.jvp(fixed, primals, (d12 - turn, d11, d22))[1]
        return value(*primals), along + slope(*primals) * turn

    return value


def table_diagonal(table):
    """k(q, q, q) of a table, from one-dimensional quadrature."""

    def value(q):
        return xp.exp(2.0 * clenshaw(parameter(table["log_scale"], q), norm_coordinate(table, q)))

    return value


def in_rank(*arrays):
    """Floating arrays of one dtype (at least float32) and one rank, for broadcasting; they keep their sizes."""
    dtype = inputs(*(xp.zeros((), a.dtype) if hasattr(a, "dtype") else 0.0 for a in arrays))[0].dtype
    typed = [xp.asarray(a, dtype) for a in arrays]
    rank = max(a.ndim for a in typed)
    return [a.reshape((1,) * (rank - a.ndim) + a.shape) for a in typed]


# ------------------------------------------------------------------------------------------------------ source text

TARGETS = ("jax", "numpy", "numba", "torch")

HEADERS = {
    "jax": "import jax\nimport jax.numpy as xp",
    "numpy": "import numpy as xp",
    "numba": "import math\n\nimport numba\nimport numpy as xp",
    "torch": "import torch as xp",
}

VELTKAMP = '''def split(x):
    """x = high + low, each short enough that products of two parts are exact (Veltkamp 1968)."""
    shifted = x * pick(x, 4097.0, 134217729.0)
    high = shifted - (shifted - x)
    return high, x - high'''

ANGLE = '''def angle(y, x):
    """atan2(y, x) for x >= 0, 0 at the origin."""
    return xp.arctan2(y, abs(x))'''

AT_COVARIANCE = '''def at_covariance(member):
    """A member of the covariance alone: the determinant without cancellation, q12 projected where rounding overshot."""

    def at(q12, q11, q22, *parameters):
        with xp.errstate(all="ignore"):
            delta, q12 = gram_det(q12, q11, q22)
            return member(q12, q11, q22, delta, *parameters)

    return at'''

AT_COVARIANCE_TORCH = AT_COVARIANCE.replace('        with xp.errstate(all="ignore"):\n', "").replace(12 * " ", 8 * " ")

INTEGRATED = '''def integrated(slope, mean, q12, q11, q22, delta, *parameters):
    """E[s(u)] E[s(v)] + the integral of E[s'(u) s'(v)] over the covariance from 0 to q12.

    With the covariance as sqrt(q11 q22) sin(angle) the integrand is smooth, and nothing cancels at small norms."""
    top, size, total = angle(q12, root(delta)), root(q11) * root(q22), 0.0 * q12
    for i in range(len(NODES)):
        c, s = xp.cos(top * NODES[i]), xp.sin(top * NODES[i])
        total = total + WEIGHTS[i] * c * slope(size * s, q11, q22, (size * c) ** 2, *parameters)
    return mean(q11, *parameters) * mean(q22, *parameters) + top * size * total'''

MEAN_BY_CURVATURE = '''def mean_by_curvature(curvature, start, q, *parameters):
    """E[s(sqrt(q) Z)] = s(0) + the integral of y E[s''(y Z)] over y from 0 to sqrt(q)."""
    a, total = root(q), 0.0 * q
    for i in range(len(NODES)):
        y = a * NODES[i]
        total = total + WEIGHTS[i] * y * curvature(y * y, *parameters)
    return start + a * total'''

BY_NORM = '''def by_norm(tiny, small, closed, q12, q11, q22, delta, *parameters):
    """The integral where a norm is below 1/2 and the other at most 3, or a variance below `tiny`."""
    low = where(q11 < q22, q11, q22) < where(where(q11 < q22, q22, q11) <= 9.0, 0.25, tiny + 0.0 * q11)
    out = closed(q12, q11, q22, delta, *parameters)
    return where(low, small(q12, q11, q22, delta, *parameters), out) if low.any() else out'''

BY_NORM_SCALAR = '''def by_norm(tiny, small, closed, q12, q11, q22, delta, *parameters):
    """The integral where a norm is below 1/2 and the other at most 3, or a variance below `tiny`."""
    if min(q11, q22) < (0.25 if max(q11, q22) <= 9.0 else tiny):
        return small(q12, q11, q22, delta, *parameters)
    return closed(q12, q11, q22, delta, *parameters)'''

TORCH_INPUTS = '''def inputs(*arrays):
    """Floating tensors of one dtype (at least float32) and one shape."""
    given = [a.dtype for a in arrays if isinstance(a, xp.Tensor) and a.dtype.is_floating_point]
    dtype = xp.float32
    for other in given or [xp.get_default_dtype()]:
        dtype = xp.promote_types(dtype, other)
    return xp.broadcast_tensors(*(xp.as_tensor(a, dtype=dtype) for a in arrays))'''

IN_BLOCKS = '''def in_blocks(value, table, q12, q11, q22):
    """`value(q12, q11, q22)`, block by block where the features of the norms would not fit into memory."""
    terms = sum(len(table[part][2]) for part in ("even", "odd") if table[part] is not None)
    shape = xp.broadcast_shapes(q12.shape, q11.shape, q22.shape)
    if terms * max(len(q11.reshape(-1)), len(q22.reshape(-1))) <= 2**24:
        return value(q12, q11, q22)
    flat = [xp.broadcast_to(q, shape).reshape(-1) for q in (q12, q11, q22)]
    step = 2**20 // terms
    parts = [value(*(q[i : i + step] for q in flat)) for i in range(0, len(flat[0]), step)]
    return xp.concatenate(parts).reshape(shape)'''

TABULATED = '''def tabulated(table, slope=None):
    """The kernel of a table."""

    def value(q12, q11, q22):
        return in_blocks(lambda *q: table_value(table, *q, *cosine_and_variable(table, *q)), table, q12, q11, q22)

    return value'''

TABULATED_NUMPY = TABULATED.replace(
    "        return in", '        with xp.errstate(all="ignore"):\n            return in'
)

TABULATED_SCALAR = '''def tabulated(table, slope=None):
    """The kernel of a table, compiled for numbers."""
    (low, high), (scale, offset), (shift, middle, half) = table["variances"], table["affine"], table["variable"]
    constant, linear, power = table["constant"], table["linear"], table["basis"] == "power"
    log_scale = xp.array(table["log_scale"]).reshape(-1, 1)
    parts = [table[part] or ((), ((),), ()) for part in ("even", "odd")]
    ranks0, ranks1 = (xp.array(ranks, dtype=xp.int64) for ranks, _, _ in parts)
    columns0, columns1 = (xp.array(columns, dtype=float) for _, columns, _ in parts)
    signs0, signs1 = (xp.array(signs, dtype=float) for _, _, signs in parts)

    @numba.njit(error_model="numpy")
    def chebyshev(columns, r, y):
        b1 = b2 = 0.0
        for n in range(columns.shape[0] - 1, 0, -1):
            b1, b2 = columns[n, r] + 2.0 * y * b1 - b2, b1
        return columns[0, r] + y * b1 - b2

    @numba.njit(error_model="numpy")
    def series(ranks, columns, signs, ya, yb, x):
        b1 = b2 = 0.0
        r = len(signs)
        for l in range(len(ranks) - 1, -1, -1):
            total = 0.0
            for _ in range(ranks[l]):
                r -= 1
                total += signs[r] * chebyshev(columns, r, ya) * chebyshev(columns, r, yb)
            if power:
                b1 = b1 * x + total
            elif l > 0:
                b1, b2 = total + 2.0 * x * b1 - b2, b1
            else:
                b1 = total + x * b1 - b2
        return b1

    @numba.vectorize
    def value(q12, q11, q22):
        slack = 2e-15
        if not (low * (1 - slack) <= min(q11, q22) and max(q11, q22) <= high * (1 + slack)):
            return xp.nan
        delta, q12 = gram_det(q12, q11, q22)
        cosine = q12 / math.sqrt(q11) / math.sqrt(q22)
        x = cosine * cosine if power else (root(delta / (q11 * q22) + shift) - middle) / half
        ya, yb = scale * math.log(q11) + offset, scale * math.log(q22) + offset
        total = series(ranks0, columns0, signs0, ya, yb, x) + cosine * series(ranks1, columns1, signs1, ya, yb, x)
        return constant + linear * q12 + math.exp(chebyshev(log_scale, 0, ya) + chebyshev(log_scale, 0, yb)) * total

    return value'''

TORCH_IN_RANK = '''def in_rank(*arrays):
    """Floating tensors of one dtype (at least float32) and one rank, for broadcasting; they keep their sizes."""
    dtype = inputs(*(a.new_zeros(()) if isinstance(a, xp.Tensor) else 0.0 for a in arrays))[0].dtype
    arrays = [xp.as_tensor(a, dtype=dtype) for a in arrays]
    rank = max(a.ndim for a in arrays)
    return [a.reshape((1,) * (rank - a.ndim) + a.shape) for a in arrays]'''

TWINS: dict[str, dict[str, str]] = {
    "where": {"numba": "def where(condition, a, b):\n    return a if condition else b"},
    "pick": {"numba": "def pick(x, single, double):\n    return double"},
    "angle": dict.fromkeys(("numpy", "numba", "torch"), ANGLE),
    "split": {"numpy": VELTKAMP, "numba": VELTKAMP, "torch": VELTKAMP},
    "erf": {"numpy": "erf = erf_series", "numba": "def erf(x):\n    return math.erf(x)", "torch": "erf = xp.erf"},
    "at_covariance": {"numpy": AT_COVARIANCE, "torch": AT_COVARIANCE_TORCH},
    "integrated": dict.fromkeys(("numpy", "numba", "torch"), INTEGRATED),
    "mean_by_curvature": dict.fromkeys(("numpy", "numba", "torch"), MEAN_BY_CURVATURE),
    "by_norm": {"numpy": BY_NORM, "numba": BY_NORM_SCALAR, "torch": BY_NORM},
    "in_blocks": {"numpy": IN_BLOCKS, "torch": IN_BLOCKS.replace("concatenate", "cat")},
    "tabulated": {"numpy": TABULATED_NUMPY, "numba": TABULATED_SCALAR, "torch": TABULATED},
    "in_rank": {"torch": TORCH_IN_RANK},
    "filled": {"numba": "def filled(value, like):\n    return value"},
    "parameter": {
        "torch": "def parameter(value, like):\n    return xp.as_tensor(value, dtype=like.dtype, device=like.device)",
    },
    "inputs": {"torch": TORCH_INPUTS},
    "known_true": {target: "def known_true(flag):\n    return bool(flag)" for target in ("numpy", "numba", "torch")},
}
"""What a target needs in place of the text above: numba is scalar and float64, only XLA contracts, NumPy has no erf."""


ON_ARRAYS = (
    "inputs",
    "flagged",
    "accepted",
    "required",
    "known_true",
    "in_rank",
    "tabulated",
    "table_diagonal",
    "norm_coordinate",
    "clenshaw",
)
"""What runs on whole arrays, around numba's scalar functions."""


@dataclass(frozen=True)
class Primitive:
    """A function or constant of this file: for each target its text and the names of the others that the text uses."""

    name: str
    text: Mapping[str, str]
    needs: Mapping[str, tuple[str, ...]]


def _primitives() -> dict[str, Primitive]:
    """Everything above the heading "source text", in file order, which is an order of definition."""
    module = inspect.getsource(sys.modules[__name__])
    lines = module.splitlines()
    body: dict[str, str] = {}
    rules: dict[str, str] = {}
    for node in ast.parse(module).body:
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])  # a function's line is that of its `def`
        if isinstance(node, ast.Assign) and isinstance(name := node.targets[0], ast.Name):
            if name.id == "TARGETS":
                break
            body[name.id] = text
        elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
            body[node.name] = text
        elif isinstance(node, ast.FunctionDef):
            decorator = ast.unparse(node.decorator_list[0])
            if decorator.endswith(".defjvp"):
                rules[decorator.removesuffix(".defjvp")] = f"@{decorator}\n{text}"
            else:
                body[node.name] = text

    def text_for(name: str, target: str) -> str:
        text = TWINS.get(name, {}).get(target, body[name])
        if target == "jax" and name in rules:
            return f"@jax.custom_jvp\n{text}\n\n\n{rules[name]}"
        if target == "numba" and text.startswith("def ") and name not in ON_ARRAYS:
            return f'@numba.njit(error_model="numpy")\n{text}'
        return text

    def needed(name: str, text: str) -> tuple[str, ...]:
        used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        return tuple(other for other in body if other in used and other != name)

    texts = {name: {target: text_for(name, target) for target in TARGETS} for name in body}
    return {
        name: Primitive(name, text, {target: needed(name, text[target]) for target in TARGETS})
        for name, text in texts.items()
    }


PRIMITIVES: dict[str, Primitive] = _primitives()


def source(names: Iterable[str], target: str) -> str:
    """The text that defines `names` and all they need, without imports (those are `HEADERS[target]`).

    ValueError for an unknown name or target."""
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}: expected one of {', '.join(TARGETS)}")
    pending, wanted = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name not in PRIMITIVES:
            raise ValueError(f"unknown primitive {name!r}: expected one of {', '.join(PRIMITIVES)}")
        if name not in wanted:
            wanted.add(name)
            pending.extend(PRIMITIVES[name].needs[target])
    out, after_function = "", False
    for name in PRIMITIVES:  # file order
        if name in wanted:
            text = PRIMITIVES[name].text[target]
            function = text.startswith(("def ", "@"))
            gap = "\n\n\n" if function or after_function else "\n"
            out, after_function = (out + gap + text if out else text), function
    return out
