# Checks of what Python hands over: a mistake there must not become a read of foreign memory.
# needs: Call (_call.pxi)

cdef int expect_array(cnp.ndarray a) except -1:
    """A TypeError unless kernels of this type can read `a`."""
    if not (cnp.PyArray_ISFLOAT(a) and cnp.PyArray_ITEMSIZE(a) == sizeof(real)
            and cnp.PyArray_ISBEHAVED_RO(a)):
        raise TypeError(f"a kernel for {8 * sizeof(real)}-bit numbers was handed an array of dtype "
                        f"{a.dtype}, or one not aligned")
    return 0


cdef int expect_partial(cnp.ndarray a, ix size) except -1:
    """A TypeError unless `a` holds so many float64, contiguous and writeable."""
    if (cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT64 or not cnp.PyArray_ISCARRAY(a)
            or cnp.PyArray_SIZE(a) != size):
        raise TypeError(f"a kernel was handed {(<object>a).shape} {a.dtype} for partial sums; "
                        f"expected {size} contiguous float64")
    return 0


cdef int expect_leading(cnp.ndarray x, cnp.ndarray out, int axes) except -1:
    """A TypeError unless `out` is writeable, of so many axes, the leading ones as x has them."""
    cdef int axis, leading = cnp.PyArray_NDIM(x) - 1
    cdef bint good = cnp.PyArray_NDIM(out) == axes and cnp.PyArray_ISWRITEABLE(out)
    expect_array(out)
    for axis in range(leading if good else 0):
        good = good and cnp.PyArray_DIM(x, axis) == cnp.PyArray_DIM(out, axis)
    return 0 if good else refuse(x, out)


cdef int refuse(cnp.ndarray x, cnp.ndarray out) except -1:
    raise TypeError(f"a kernel was handed x {(<object>x).shape} and out {(<object>out).shape}, "
                    "which do not fit")


cdef int expect_short(const Call *call, ix most) except -1:
    """A TypeError unless rows have at most so many entries."""
    if call.rows.entries > most:
        raise TypeError(f"a kernel was handed rows of {call.rows.entries} entries; "
                        f"expected at most {most}")
    return 0


cdef int expect_row(const Call *call, ix most) except -1:
    """A TypeError unless x is one row of at most so many entries."""
    if call.rows.leading != 0:
        raise TypeError("a kernel was handed several rows; expected one")
    return expect_short(call, most)


cdef int call_of(Call *call, cnp.ndarray x, cnp.ndarray out) except -1:
    """IN x (..., n), out; OUT call."""
    expect_array(x)
    if cnp.PyArray_NDIM(x) < 1:
        raise TypeError("a kernel was handed x without axes")
    rows_of(&call.rows, x)
    strided_of(&call.x, x)
    strided_of(&call.out, out)
    return 0
