"""The selective scan: whole sequences, single steps, chunks, its hidden attention, and the product
of its transitions.

The path of one call of `selective_scan`, file by file:

    _scan.py        `ScanCall` checks the arguments and calls the kernel's door, `scan`
    _kernels.pyx    `scan` fills a struct from the arrays (_door.pxi) and hands tasks to the threads
    _scan.pxi       `scan_task` takes a few channels through time, block by block: `scan_block`
    _tiles.pxi      turns a block of a signal so that channels lie in the lanes of vectors
    _core/simd.h    has the arithmetic of vectors

The other functions take the same path from files of their own: _vjp.py (the adjoint), _step.py (one
step), _chunks.py (summaries), _attention.py; _transition.py and _s6.py stand on these.  The head of
_kernels.pyx draws the compiled half; _kernels.pyi says what each of its doors takes.
"""

from ._attention import scan_attention
from ._chunks import ChunkSummary, chunk_summary, combine_summaries
from ._s6 import S6, S6Grads
from ._scan import ScanCall as ScanCall  # for integrations: the checks of a scan
from ._scan import selective_scan
from ._step import selective_state_update
from ._transition import transition_product
from ._vjp import SelectiveScanGrads, selective_scan_vjp

__all__ = [
    "S6",
    "ChunkSummary",
    "S6Grads",
    "SelectiveScanGrads",
    "chunk_summary",
    "combine_summaries",
    "scan_attention",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "transition_product",
]
