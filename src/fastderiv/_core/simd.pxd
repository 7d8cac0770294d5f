"""simd.h, simd_math.h and simd_lanes.h as Cython sees them; they say what functions do.

`vf` and `real` are declared double whatever they are: only the C compiler knows.  Never let a `vf`
live in a `def` function, a closure or a heap struct: Cython does not keep its alignment there.
"""
from libc.stddef cimport ptrdiff_t

ctypedef Py_ssize_t ix

cdef extern from "simd.h" nogil:
    enum: VL                            # lanes of a vector
    ctypedef double real
    ctypedef double vf
    vf vload(const real *p)
    void vstore(real *p, vf v)
    void vstream(real *p, vf v)         # past the caches
    void vstream_end()
    void vprefetch(const void *p)
    void vprefetch_far(const void *p)   # to the second-level cache only
    vf vset1(real x)
    real vget(vf v, int i)
    vf vabs(vf a)
    vf vmax(vf a, vf b)                 # b where either is NaN
    vf vmin(vf a, vf b)
    vf vcopysign(vf a, vf b)            # |a| with the sign of b
    vf vxor(vf a, vf b)
    vf vfma(vf a, vf b, vf c)           # a·b + c
    vf vfma_once(vf a, vf b, vf c)      # the same rounded once on every level
    vf vsel_lt(vf a, vf b, vf x, vf y)  # x where a < b, else y
    vf vsel_neg(vf s, vf x, vf y)       # x where the sign bit of s is set, else y
    vf vkeep_nan(vf x, vf y)            # x where x is NaN, else y

cdef extern from "simd_math.h" nogil:
    const real LOG2E, EXP2_SAFE
    vf vexp2_safe(vf d, vf a)           # 2**(d·a), |d·a| < EXP2_SAFE
    vf vexp2_any(vf d, vf a)            # 2**(d·a) for any d and a
    vf vexp2_neg(vf d, vf a)            # 2**(d·a), d·a < EXP2_SAFE, −inf included
    vf vdecay_safe(vf d, vf a, vf h, vf x, vf b)    # h·2**(d·a) + x·b
    vf vdecay_any(vf d, vf a, vf h, vf x, vf b)
    vf vratio_safe(vf d, vf a, vf *rest)            # 2**(d·a) = ratio·(1 + rest)
    vf vratio_any(vf d, vf a, vf *rest)
    vf vexp(vf x)
    vf vsigmoid(vf x)
    vf vsigmoid_grad(vf x)
    vf vtail(vf x)                      # σ(−|x|) with the sign of x
    vf vsilu(vf x)
    vf vsilu_slope(vf x, vf *slope)
    vf vsoftplus(vf x)
    vf vsoftplus_slope(vf x, vf *slope)
    vf vtanh(vf x)
    vf vtanh_slope(vf x, vf *slope)     # tanh and 1 − tanh²

cdef extern from "simd_lanes.h" nogil:
    enum: GL, NS                        # lanes of a logical group; vectors in it
    enum: SHARE, FOURS, PARTS           # see vpartsums
    bint vall_lt(vf a, vf b)            # every lane a < b
    unsigned vlt(vf a, vf b)            # bit i: lane i has a < b
    int vcount(unsigned lanes)
    int vfirst(unsigned lanes)          # lanes != 0
    void vcompress(real *p, vf v, unsigned lanes)   # the chosen lanes, close together
    vf vgather(const real *p, vf at)    # p[at], whole numbers
    vf vload_some(const real *p, ix n)              # the first n ≤ VL numbers, then zeros
    void vstore_some(real *p, vf v, ix n)           # the first n ≤ VL lanes
    void vtranspose(const real *src, ptrdiff_t ss, real *dst, ptrdiff_t ds)
    void vpartsums(vf a, vf b, vf c, vf d, vf *out)  # FOURS vectors of sums within 128-bit parts
    real gsum(const real *g)            # of GL numbers
