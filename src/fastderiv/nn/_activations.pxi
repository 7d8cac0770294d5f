# The activations and their derivatives by number: docs/derivations.md §3.2.
#
# `curve` is a constant wherever these functions are used, so that a loop holds one of them and no
# branch.  The functions that simd_math.h does not have are in activations.h.

cdef extern from "activations.h" nogil:
    vf vsilu_grad(vf x)
    vf vgelu(vf x)
    vf vgelu_grad(vf x)
    vf vrelu(vf x)


cdef enum Curve:                        # IDENTITY, then those of _activations.NAMES in its order
    IDENTITY, SIGMOID, TANH, RELU, SOFTPLUS, SILU, GELU


cdef inline vf phi(vf x, const Curve curve) noexcept nogil:
    if curve == SIGMOID:
        return vsigmoid(x)
    if curve == TANH:
        return vtanh(x)
    if curve == RELU:
        return vrelu(x)
    if curve == SOFTPLUS:
        return vsoftplus(x)
    if curve == SILU:
        return vsilu(x)
    if curve == GELU:
        return vgelu(x)
    return x


cdef inline vf phi_slope(vf x, vf *slope, const Curve curve, const bint with_slope) noexcept nogil:
    """φ(x), and φ'(x) in `slope` if `with_slope`."""
    if with_slope and curve == TANH:
        return vtanh_slope(x, slope)
    if with_slope:
        slope[0] = phi_vjp(x, vset1(1), curve)
    return phi(x, curve)


cdef inline vf phi_vjp(vf x, vf dy, const Curve curve) noexcept nogil:
    """dy·φ'(x).  Where relu is 0 the result is 0, even if dy is infinite or NaN."""
    cdef vf slope
    if curve == SIGMOID:
        return dy * vsigmoid_grad(x)
    if curve == TANH:
        vtanh_slope(x, &slope)
        return dy * slope
    if curve == RELU:
        return vkeep_nan(x, vsel_lt(vset1(0), x, dy, vset1(0)))
    if curve == SOFTPLUS:
        return dy * vsigmoid(x)
    if curve == SILU:
        return dy * vsilu_grad(x)
    if curve == GELU:
        return dy * vgelu_grad(x)
    return dy
