"""Whether arrays are as kernels want them, as nearly all are: one answer, many checks saved."""

cimport numpy as cnp

cnp.import_array()


def plain(target, tuple required, tuple optional):
    """Whether a kernel can write to `target` and read the other arrays, all as they are.

    `target` is then a float32 or float64 array, no two elements of which share memory.  The others
    are arrays of the same dtype whose memory does not reach into that of `target`; those that are
    `optional` may be None.  False says that something may have to be converted, or may be wrong:
    `arrays` has the conversions and the errors.
    """
    cdef cnp.npy_uintp start, end
    if not cnp.PyArray_CheckExact(target) or not cnp.PyArray_ISBEHAVED(target) or not apart(target):
        return False
    if cnp.PyArray_TYPE(target) not in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64):
        return False
    extent(target, &start, &end)
    for array in required:
        if not readable(array, target, start, end):
            return False
    for array in optional:
        if array is not None and not readable(array, target, start, end):
            return False
    return True


def alike(tuple arrays, int required):
    """Whether the arrays, of which all but the first `required` may be None, are base arrays of one
    dtype, float32 or float64, that a kernel can read as they are."""
    cdef int i, kind = -1
    for i in range(len(arrays)):
        array = arrays[i]
        if array is None and i >= required:
            continue
        if not cnp.PyArray_CheckExact(array) or not cnp.PyArray_ISBEHAVED_RO(array):
            return False
        if kind == -1:
            kind = cnp.PyArray_TYPE(array)
        if cnp.PyArray_TYPE(array) != kind:
            return False
    return kind in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64)


def widest(cnp.ndarray starts):
    """The largest difference of neighbours in `starts`, contiguous intp; -1 where it decreases."""
    cdef const cnp.npy_intp *p = <const cnp.npy_intp *>cnp.PyArray_DATA(starts)
    cdef cnp.npy_intp i, widest = 0
    if (cnp.PyArray_NDIM(starts) != 1 or cnp.PyArray_TYPE(starts) != cnp.NPY_INTP
            or not cnp.PyArray_ISCARRAY_RO(starts)):
        raise TypeError("starts is not contiguous intp")
    for i in range(cnp.PyArray_DIM(starts, 0) - 1):
        if p[i + 1] < p[i] or p[i] < 0:     # a negative one could make the difference overflow
            return -1
        widest = max(widest, p[i + 1] - p[i])
    return widest


cdef bint apart(cnp.ndarray a):
    """Whether surely no two elements share memory.

    This is so if each axis steps over everything that the axes after it span, or if each steps over
    everything that the axes before it span.
    """
    cdef int axis, n = cnp.PyArray_NDIM(a)
    cdef cnp.npy_intp step, size, inner = cnp.PyArray_ITEMSIZE(a), outer = inner
    for axis in range(n - 1, -1, -1):
        size, step = cnp.PyArray_DIM(a, axis), abs(cnp.PyArray_STRIDE(a, axis))
        if size > 1:
            if step < inner:
                break
            inner += step * (size - 1)
    else:
        return True
    for axis in range(n):
        size, step = cnp.PyArray_DIM(a, axis), abs(cnp.PyArray_STRIDE(a, axis))
        if size > 1:
            if step < outer:
                return False
            outer += step * (size - 1)
    return True


cdef bint readable(array, cnp.ndarray target, cnp.npy_uintp start, cnp.npy_uintp end):
    """Whether `array` has the dtype of `target` and lies outside [start, end)."""
    cdef cnp.npy_uintp first, last
    if not cnp.PyArray_CheckExact(array) or not cnp.PyArray_ISBEHAVED_RO(array):
        return False
    if cnp.PyArray_TYPE(array) != cnp.PyArray_TYPE(target):
        return False
    extent(array, &first, &last)
    return last <= start or end <= first


cdef void extent(cnp.ndarray a, cnp.npy_uintp *start, cnp.npy_uintp *end):
    """The bytes from the first to behind the last element; none of an empty array."""
    cdef int axis
    cdef cnp.npy_intp reach
    start[0] = end[0] = <cnp.npy_uintp>cnp.PyArray_DATA(a)
    if cnp.PyArray_SIZE(a) == 0:
        return
    end[0] += cnp.PyArray_ITEMSIZE(a)
    for axis in range(cnp.PyArray_NDIM(a)):
        reach = (cnp.PyArray_DIM(a, axis) - 1) * cnp.PyArray_STRIDE(a, axis)
        if reach < 0:
            start[0] += reach
        else:
            end[0] += reach
