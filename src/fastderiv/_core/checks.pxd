"""Assertions in kernels: they are compiled if FASTDERIV_DEBUG=1 is set while the package is built.

One that does not hold ends the process with its text, file and line.
"""

cdef extern from "<assert.h>" nogil:
    void affirm "assert"(bint condition)
