"""Element-wise maths on contiguous arrays, one function per curve of simd.h."""
from libc.string cimport memcpy
cimport numpy as cnp
from .simd cimport (VL, ix, real, vexp, vf, vload, vsigmoid, vsilu, vsoftplus, vstore,
                    vtanh, vtanh_slope)
from .threads cimport Worker, run

cnp.import_array()

ctypedef enum Curve:
    EXP, SIGMOID, SILU, SOFTPLUS, TANH, TANH_GRAD

cdef enum:
    BLOCK = 4096                        # elements per task

cdef struct Elementwise:                # IN x (n,); OUT y (n,)
    const real *x
    real *y
    ix n
    Curve curve


cdef inline vf curve_of(vf x, const Curve curve) noexcept nogil:
    cdef vf slope
    if curve == EXP:
        return vexp(x)
    if curve == SIGMOID:
        return vsigmoid(x)
    if curve == SILU:
        return vsilu(x)
    if curve == TANH:
        return vtanh(x)
    if curve == TANH_GRAD:
        vtanh_slope(x, &slope)
        return slope
    return vsoftplus(x)


cdef inline void span(const real *x, real *y, ix n, const Curve curve) noexcept nogil:
    cdef real pad[64]
    cdef ix i = 0
    while i + VL <= n:
        vstore(y + i, curve_of(vload(x + i), curve))
        i += VL
    if i < n:
        memcpy(pad, x + i, (n - i) * sizeof(real))
        vstore(pad, curve_of(vload(pad), curve))
        memcpy(y + i, pad, (n - i) * sizeof(real))


cdef void elementwise(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Elementwise *a = <Elementwise *>args
    cdef const real *x = a.x + i * BLOCK
    cdef real *y = a.y + i * BLOCK
    cdef ix n = min(<ix>BLOCK, a.n - i * BLOCK)
    if a.curve == EXP:
        span(x, y, n, EXP)
    elif a.curve == SIGMOID:
        span(x, y, n, SIGMOID)
    elif a.curve == SILU:
        span(x, y, n, SILU)
    elif a.curve == TANH:
        span(x, y, n, TANH)
    elif a.curve == TANH_GRAD:
        span(x, y, n, TANH_GRAD)
    else:
        span(x, y, n, SOFTPLUS)


cdef int expect_array(cnp.ndarray a) except -1:
    """A mistake in Python must not become a read of foreign memory: a TypeError unless `a` is
    contiguous and of the kernel's type."""
    if not (cnp.PyArray_ISFLOAT(a) and cnp.PyArray_ITEMSIZE(a) == sizeof(real)
            and cnp.PyArray_ISCARRAY_RO(a)):
        raise TypeError(f"a kernel for {8 * sizeof(real)}-bit numbers was handed an array of dtype "
                        f"{a.dtype}, or one not contiguous")
    return 0


cdef int apply(cnp.ndarray x, cnp.ndarray y, Curve curve) except -1:
    cdef Elementwise a
    expect_array(x)
    expect_array(y)
    if cnp.PyArray_SIZE(x) != cnp.PyArray_SIZE(y) or not cnp.PyArray_ISWRITEABLE(y):
        raise TypeError("a kernel was handed a result that is read-only or of another size")
    a.x, a.y, a.n, a.curve = <real *>cnp.PyArray_DATA(x), <real *>cnp.PyArray_DATA(y), cnp.PyArray_SIZE(x), curve
    return run(elementwise, &a, (a.n + BLOCK - 1) // BLOCK, 0, a.n * 1e-9 * sizeof(real) / 4)


def exp(x, y):
    apply(x, y, EXP)


def sigmoid(x, y):
    apply(x, y, SIGMOID)


def silu(x, y):
    apply(x, y, SILU)


def softplus(x, y):
    apply(x, y, SOFTPLUS)


def tanh(x, y):
    apply(x, y, TANH)


def tanh_grad(x, y):
    apply(x, y, TANH_GRAD)


def simd_bits():
    return VL * sizeof(real) * 8
