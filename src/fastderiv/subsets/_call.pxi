# The arrays of a call, x (..., n) and its result, and the entries of a row of x.

cdef struct Call:                       # x (..., n), and a result that shares its leading axes
    Rows rows
    Strided x
    Strided out


cdef inline void some_entries(const Call *call, ix row, ix first, ix n, real *y) noexcept nogil:
    """OUT y (n,) = the entries of the row from `first` on."""
    cdef ix stride = call.x.strides[call.rows.leading]
    gather(row_start(&call.rows, &call.x, row) + first * stride, stride, n, y)


cdef inline void entries(const Call *call, ix row, real *x) noexcept nogil:
    """OUT x (n,) = the entries of the row."""
    some_entries(call, row, 0, call.rows.entries, x)
