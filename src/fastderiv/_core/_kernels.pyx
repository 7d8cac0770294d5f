"""Element-wise curves of simd_math.h on contiguous arrays; maths.py is what calls this door."""
cimport numpy as cnp

from .checks cimport affirm
from .ints cimport ceil_div
from .simd cimport (VL, ix, real, vexp, vf, vload, vload_some, vsigmoid, vsilu, vsoftplus, vstore,
                    vstore_some, vtanh, vtanh_slope)
from .threads cimport Worker, run

cnp.import_array()

ctypedef enum Curve:                    # of this door alone: nn numbers its activations differently
    EXP, SIGMOID, SILU, SOFTPLUS, TANH, TANH_GRAD

cdef dict CURVES = {"exp": EXP, "sigmoid": SIGMOID, "silu": SILU, "softplus": SOFTPLUS,
                    "tanh": TANH, "tanh_grad": TANH_GRAD}

cdef enum:
    BLOCK = 4096                        # elements per task

cdef struct Elementwise:                # IN x (n,); OUT y (n,)
    const real *x
    real *y
    ix n
    Curve curve


cdef inline vf at(vf x, const Curve curve) noexcept nogil:
    """The curve at x."""
    cdef vf slope
    if curve == EXP:
        return vexp(x)
    if curve == SIGMOID:
        return vsigmoid(x)
    if curve == SILU:
        return vsilu(x)
    if curve == SOFTPLUS:
        return vsoftplus(x)
    if curve == TANH:
        return vtanh(x)
    vtanh_slope(x, &slope)
    return slope


cdef inline void block(const Elementwise *a, ix i, const Curve curve) noexcept nogil:
    """OUT y = the curve at x, for the i-th block of elements."""
    cdef ix first = i * BLOCK
    cdef ix n = min(<ix>BLOCK, a.n - first), j = 0
    cdef const real *x = a.x + first
    cdef real *y = a.y + first
    affirm(0 <= first < a.n)
    while j + VL <= n:
        vstore(y + j, at(vload(x + j), curve))
        j += VL
    if j < n:
        vstore_some(y + j, at(vload_some(x + j, n - j), curve), n - j)


cdef void elementwise_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Each curve has a loop of its own, in which `curve` is a constant."""
    cdef const Elementwise *a = <const Elementwise *>args
    if a.curve == EXP:
        block(a, i, EXP)
    elif a.curve == SIGMOID:
        block(a, i, SIGMOID)
    elif a.curve == SILU:
        block(a, i, SILU)
    elif a.curve == SOFTPLUS:
        block(a, i, SOFTPLUS)
    elif a.curve == TANH:
        block(a, i, TANH)
    else:
        block(a, i, TANH_GRAD)


cdef int expect_array(cnp.ndarray a) except -1:
    """A TypeError unless `a` is contiguous and of the kernel's type: a mistake in Python must not
    become a read of foreign memory."""
    if not (cnp.PyArray_ISFLOAT(a) and cnp.PyArray_ITEMSIZE(a) == sizeof(real)
            and cnp.PyArray_ISCARRAY_RO(a)):
        raise TypeError(f"a kernel for {8 * sizeof(real)}-bit numbers was handed an array of dtype "
                        f"{a.dtype}, or one not contiguous")
    return 0


def elementwise(cnp.ndarray x not None, cnp.ndarray y not None, str curve not None):
    """IN x; OUT y = the curve at x.  Both are contiguous, of one size, and may be one array."""
    cdef Elementwise a
    expect_array(x)
    expect_array(y)
    if cnp.PyArray_SIZE(x) != cnp.PyArray_SIZE(y) or not cnp.PyArray_ISWRITEABLE(y):
        raise TypeError("a kernel was handed a result that is read-only or of another size")
    a.x, a.y, a.n = <real *>cnp.PyArray_DATA(x), <real *>cnp.PyArray_DATA(y), cnp.PyArray_SIZE(x)
    a.curve = CURVES[curve]
    run(elementwise_task, &a, ceil_div(a.n, BLOCK), 0, a.n * 1e-9 * sizeof(real) / 4)


def simd_bits():
    """The width of a vector."""
    return VL * sizeof(real) * 8
