# Rows that are shorter than whole vectors, and arrays that may be missing.

cdef inline void store_some(real *p, vf v, ix n) noexcept nogil:
    """Store the first n lanes, n ≤ VL."""
    cdef real lanes[GL]
    if n == VL:
        vstore(p, v)
    else:
        vstore(lanes, v)
        memcpy(p, lanes, n * sizeof(real))


cdef inline vf load_some(const real *p, ix n) noexcept nogil:
    """The first n lanes of p, n ≤ VL, and zeros in the others; only zeros if p is NULL."""
    cdef real lanes[GL]
    if p is not NULL and n == VL:
        return vload(p)
    memset(lanes, 0, sizeof(lanes))
    if p is not NULL:
        memcpy(lanes, p, n * sizeof(real))
    return vload(lanes)


cdef inline void copy_row(real *dst, const real *src, ix n) noexcept nogil:
    """dst = src; for short rows that are in the cache, where a call of memcpy takes longer."""
    cdef ix k = 0
    while k + VL <= n:
        vstore(dst + k, vload(src + k))
        k += VL
    if k < n and n >= VL:
        vstore(dst + n - VL, vload(src + n - VL))
        k = n
    while k < n:
        dst[k] = src[k]
        k += 1


cdef inline void copy_or_zero(real *dst, const real *src, ix n) noexcept nogil:
    """dst = src, or zeros if src is NULL."""
    if src is NULL:
        memset(dst, 0, n * sizeof(real))
    else:
        memcpy(dst, src, n * sizeof(real))


cdef inline const real *offset(const real *a, ix i) noexcept nogil:
    """a + i, or NULL if a is NULL."""
    if a is NULL:
        return NULL
    return a + i


cdef inline real *out_offset(real *a, ix i) noexcept nogil:
    return <real *>offset(a, i)
