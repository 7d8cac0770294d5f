"""simd.h as Cython sees it.  `vf` and `real` are declared double whatever they are: only the C compiler knows.

Never let a `vf` live in a `def` function, a closure or a heap struct: Cython does not keep its alignment there.
"""
from libc.stddef cimport ptrdiff_t

ctypedef Py_ssize_t ix

cdef extern from "simd.h" nogil:
    enum: VL, GL, NS                    # lanes of a vector, of a logical group; vectors in a group
    enum: SHARE, FOURS, PARTS           # see vpartsums
    ctypedef double real
    ctypedef double vf
    const real LOG2E, EXP2_SAFE
    vf vload(const real *p)
    void vstore(real *p, vf v)
    void vstream(real *p, vf v)
    void vstream_end()
    void vprefetch(const void *p)
    vf vset1(real x)
    vf vabs(vf a)
    vf vmax(vf a, vf b)
    vf vmin(vf a, vf b)
    vf vcopysign(vf a, vf b)            # |a| with the sign of b
    vf vfma(vf a, vf b, vf c)           # a·b + c
    vf vsel_lt(vf a, vf b, vf x, vf y)  # x where a < b else y
    bint vall_lt(vf a, vf b)
    real vget(vf v, int i)
    unsigned vlt(vf a, vf b)            # bit i: lane i has a < b
    int vcount(unsigned lanes)
    int vfirst(unsigned lanes)          # lanes != 0
    void vcompress(real *p, vf v, unsigned lanes)   # the chosen lanes, close together; may overwrite VL numbers
    vf vexp2_safe(vf d, vf a)           # 2**(d·a)
    vf vexp2_any(vf d, vf a)            # the same for any d and a
    vf vexp2_neg(vf d, vf a)            # 2**(d·a), d·a <= 0 or little above, −inf included
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
    void vtranspose(const real *src, ptrdiff_t ss, real *dst, ptrdiff_t ds)
    void vpartsums(vf a, vf b, vf c, vf d, vf *out)  # FOURS vectors: per 128-bit part, the sums of SHARE of the four over its lanes
    real gsum(const real *g)
