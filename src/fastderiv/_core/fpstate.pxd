"""fpstate.h as Cython sees it."""

cdef extern from "fpstate.h" nogil:
    ctypedef struct fp_word:            # an integer or a struct, by platform
        pass
    fp_word fp_default()
    fp_word fp_get()
    fp_word fp_change(fp_word wanted)   # returns the state before
    fp_word fp_enter()                  # enters the default state; returns the one before
    void fp_leave(fp_word before)
