# Checks of what Python hands over, and the structs filled with it.  Arrays of the user were checked
# before; so that a mistake of this package cannot become a read of foreign memory, these functions
# compare ranks, types and sizes once more.
# needs: PIECE, WIDEST (_kernels.pyx)
# needs: Update (_momentum.pxi)
# needs: Fixed, put (_fixed.pxi)

cdef int expect(bint right) except -1:
    if not right:
        raise ValueError("a kernel was given arrays of the wrong type, rank or size")
    return 0


cdef bint holds(cnp.ndarray a, int kind, cnp.npy_intp size) noexcept:
    """Whether `a` is a contiguous array of so many numbers of this type."""
    return (a is not None and cnp.PyArray_TYPE(a) == kind and cnp.PyArray_ISCARRAY_RO(a)
            and cnp.PyArray_SIZE(a) == size)


cdef int type_of_real() noexcept:
    return cnp.NPY_FLOAT if sizeof(real) == 4 else cnp.NPY_DOUBLE


cdef bint alike(cnp.ndarray a, cnp.ndarray theta) noexcept:
    """Whether `a` has theta's shape, is not empty, and kernels of this type can read it."""
    cdef int axis
    if a is None or cnp.PyArray_TYPE(a) != type_of_real() or not cnp.PyArray_ISBEHAVED_RO(a):
        return False
    if (cnp.PyArray_SIZE(a) == 0 or not 0 < cnp.PyArray_NDIM(a) <= MAX_AXES
            or cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(theta)):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) != cnp.PyArray_DIM(theta, axis):
            return False
    return True


cdef int update_of(Update *u, cnp.ndarray theta, cnp.ndarray p, cnp.ndarray grad) except -1:
    """OUT u: the arrays, and how tasks share them."""
    expect(alike(theta, theta) and alike(p, theta) and alike(grad, theta)
           and cnp.PyArray_ISWRITEABLE(theta) and cnp.PyArray_ISWRITEABLE(p))
    rows_of(&u.rows, theta)
    u.rows.parts = ceil_div(u.rows.entries, PIECE)
    u.rows.per_task = max(<ix>1, PIECE // u.rows.entries)
    strided_of(&u.theta, theta)
    strided_of(&u.p, p)
    strided_of(&u.grad, grad)
    return 0


cdef ix padded_size(cnp.ndarray state) except -1:
    """The length of θ, of p and of i: whole vectors of the widest level."""
    expect(state is not None and cnp.PyArray_NDIM(state) == 2)
    cdef ix padded = cnp.PyArray_DIM(state, 1)
    expect(cnp.PyArray_DIM(state, 0) == 3 and padded % WIDEST == 0
           and holds(state, cnp.NPY_INT64, 3 * padded))
    return padded


cdef uint16_t *words_of(cnp.ndarray words, cnp.ndarray state) except? NULL:
    expect(holds(words, cnp.NPY_UINT16, cnp.PyArray_DIM(state, 1)))
    return <uint16_t *>cnp.PyArray_DATA(words)


cdef int64_t *count_of(cnp.ndarray count) except NULL:
    expect(holds(count, cnp.NPY_INT64, 1) and cnp.PyArray_ISWRITEABLE(count))
    return <int64_t *>cnp.PyArray_DATA(count)


cdef int fixed_of(Fixed *f, cnp.ndarray state, cnp.ndarray grad, double alpha,
                  unsigned n) except -1:
    """OUT f: a step without words."""
    cdef ix padded = padded_size(state)
    expect(0 < n < 65536 and cnp.PyArray_ISWRITEABLE(state) and grad is not None
           and holds(grad, type_of_real(), cnp.PyArray_SIZE(grad))
           and padded - WIDEST < cnp.PyArray_SIZE(grad) <= padded)
    f.first.theta = <int64_t *>cnp.PyArray_DATA(state)
    f.first.p = f.first.theta + padded
    f.first.buffer = <double *>(f.first.theta + 2 * padded)
    f.first.words = NULL
    f.grad, f.size = <const real *>cnp.PyArray_DATA(grad), cnp.PyArray_SIZE(grad)
    f.alpha, f.n = alpha, n
    put(&f.bad, False)
    return 0
