"""Rows of arrays of any strides: where a row begins, and its numbers gathered side by side.

The last axis of an array is its row; the arrays of one call share the axes before it.
"""
cimport numpy as cnp
from fastderiv._core.ints cimport ceil_div
from fastderiv._core.simd cimport ix, real

cdef enum:
    MAX_AXES = 64                       # of an array: NumPy's NPY_MAXDIMS

cdef struct Rows:                       # the rows of one call, and how tasks share them
    int leading                         # how many axes stand before the last
    cnp.npy_intp shape[MAX_AXES]        # copied, as another thread may reshape the arrays meanwhile
    ix count                            # how many rows there are
    ix entries                          # how many numbers a row has
    ix per_task                         # rows of one task; 1 if a row has several tasks
    ix parts                            # tasks of one row; 1 if a task has several rows

cdef struct Strided:                    # the memory of one array
    char *data
    cnp.npy_intp strides[MAX_AXES]      # in bytes; copied, for the same reason


cdef inline void rows_of(Rows *rows, cnp.ndarray array) noexcept:
    """OUT rows: those of an array of at least one axis; the whole call is one task's, until the
    caller divides it.  The product of the axes fits into an integer, as NumPy's own size does."""
    cdef int axis
    rows.leading, rows.count = cnp.PyArray_NDIM(array) - 1, 1
    for axis in range(rows.leading + 1):
        rows.shape[axis] = cnp.PyArray_DIM(array, axis)
    for axis in range(rows.leading):
        rows.count *= rows.shape[axis]
    rows.entries = rows.shape[rows.leading]
    rows.per_task, rows.parts = max(<ix>1, rows.count), 1


cdef inline void strided_of(Strided *memory, cnp.ndarray array) noexcept:
    """OUT memory: where the array lies."""
    cdef int axis
    memory.data = <char *>cnp.PyArray_DATA(array)
    for axis in range(cnp.PyArray_NDIM(array)):
        memory.strides[axis] = cnp.PyArray_STRIDE(array, axis)


cdef inline ix task_count(const Rows *rows) noexcept nogil:
    """How many tasks the call has."""
    return ceil_div(rows.count, rows.per_task) * rows.parts


cdef inline ix offset(const Rows *rows, ix row, const cnp.npy_intp *strides) noexcept nogil:
    """How many bytes lie between the starts of the first row and of this one."""
    cdef ix bytes = 0
    cdef int axis = rows.leading - 1
    while axis > 0:
        bytes += row % rows.shape[axis] * strides[axis]
        row //= rows.shape[axis]
        axis -= 1
    return bytes + row * strides[0] if rows.leading else 0


cdef inline char *row_start(const Rows *rows, const Strided *memory, ix row) noexcept nogil:
    """The first number of the row."""
    return memory.data + offset(rows, row, memory.strides)


cdef inline void gather(const char *source, ix stride, ix n, real *y) noexcept nogil:
    """IN n numbers `stride` bytes apart; OUT y (n,)."""
    cdef ix i
    for i in range(n):
        y[i] = (<const real *>(source + i * stride))[0]


cdef inline void scatter(const real *y, ix stride, ix n, char *target) noexcept nogil:
    """IN y (n,); OUT n numbers `stride` bytes apart."""
    cdef ix i
    for i in range(n):
        (<real *>(target + i * stride))[0] = y[i]
