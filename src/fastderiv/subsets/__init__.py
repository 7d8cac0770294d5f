"""Sums over all subsets of a row, written out or streamed, and log-sum-exp of them all.

The path of a call, ``fastderiv.subset_sums(x)``:

    _api.py            subset_sums: checks the arguments, allocates the result
    _kernels.pyx       sums: compares shapes, cuts the rows into tasks, runs them on the thread pool
    _sums.pxi          sums_task: takes some rows, or a part of a long row
    _table.pxi         fill: the sums of the row's first ten entries, and those of the others
    _sums.pxi          join: adds each of the one kind to each of the other

`subset_logsumexp` takes the same path to _enumerate.pxi or _closed.pxi; `iter_subset_sums` calls
`sums` once for each block.  _kernels.pyi says what each door of the compiled modules takes.
"""

from ._api import iter_subset_sums, subset_logsumexp, subset_sums

__all__ = ["iter_subset_sums", "subset_logsumexp", "subset_sums"]
