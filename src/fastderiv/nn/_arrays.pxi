# The arrays that the door checks, makes and hands to the kernels as pointers.

cdef cnp.ndarray new_array(ix size, bint zeros):
    """A new array of `size` reals.

    It is made by NumPy's C interface, because a call of np.empty compiles to four times as much
    code.
    """
    cdef cnp.npy_intp n = size
    cdef int kind = cnp.NPY_FLOAT if sizeof(real) == 4 else cnp.NPY_DOUBLE
    return cnp.PyArray_ZEROS(1, &n, kind, 0) if zeros else cnp.PyArray_EMPTY(1, &n, kind, 0)


cdef cnp.ndarray aligned_array(ix size):
    """A new array of `size` reals that begins on a cache line.

    A vector that straddles two cache lines takes twice as long to load.
    """
    cdef cnp.ndarray whole = new_array(size + GL, False)
    cdef ix start = -<ix>cnp.PyArray_DATA(whole) // <ix>sizeof(real) % GL
    return whole[(start + GL) % GL:][:size]


cdef real *reals_of(cnp.ndarray a) noexcept:
    return NULL if a is None else <real *>cnp.PyArray_DATA(a)


cdef int expect(bint right) except -1:
    if not right:
        raise ValueError("a kernel was given arrays of the wrong type, rank or size")
    return 0


cdef bint holds(cnp.ndarray a, double size) noexcept:
    """Whether `a` is a contiguous array of `size` reals."""
    cdef int kind = cnp.NPY_FLOAT if sizeof(real) == 4 else cnp.NPY_DOUBLE
    return (a is not None and cnp.PyArray_TYPE(a) == kind
            and cnp.PyArray_ISCARRAY_RO(a) and <double>cnp.PyArray_SIZE(a) == size)


cdef bint may_hold(cnp.ndarray a, double size) noexcept:
    """Whether `a` is None or a contiguous array of `size` reals."""
    return a is None or holds(a, size)


cdef bint ranked(cnp.ndarray a, int rank) noexcept:
    return a is not None and cnp.PyArray_NDIM(a) == rank
