"""The scans of the field: the selective scan (S6), Mamba-2's (SSD), the causal convolution before
them, and the plain linear recurrence; whole sequences, single steps, chunks, adjoints.

Each family has a folder, with the same files in each: Python on one side of the door, kernels
(`.pxi`, `.h`) on the other.

    s6/        selective_scan, its adjoint, step, chunks, hidden attention, ΠĀ, the layer S6
    ssd/       ssd_scan, its adjoint, step, chunks, hidden attention
    conv/      causal_conv1d, its adjoint, step
    linear/    linear_scan and its adjoint

The path of one call of `selective_scan`, file by file:

    s6/_scan.py      `ScanCall` checks the arguments and calls the kernel's door, `scan`
    s6/_doors.pxi    `scan` fills a struct from the arrays (s6/_door.pxi) and runs tasks on threads
    s6/_scan.pxi     `scan_task` takes a few channels through time, block by block: `scan_block`
    s6/_tiles.pxi    turns a block of a signal so that channels lie in the lanes of vectors
    _core/simd.h     has the arithmetic of vectors

The other functions take the same path.  _kernels.pyx is the one compiled module, and lists what it
includes; _kernels.pyi says what each of its doors takes.
"""

from .._core.former_names import register
from ._former_names import FORMER_NAMES
from .conv._conv import ConvCall as ConvCall  # for integrations: the checks of a convolution
from .conv._conv import causal_conv1d
from .conv._step import causal_conv1d_update
from .conv._vjp import CausalConv1dGrads, causal_conv1d_vjp
from .linear._scan import LinearCall as LinearCall  # for integrations: the checks of a scan
from .linear._scan import linear_scan
from .linear._vjp import LinearScanGrads, linear_scan_vjp
from .s6._attention import scan_attention
from .s6._cache import kept_size as kept_size  # for integrations: a scan and its adjoint apart
from .s6._chunks import ChunkSummary, chunk_summary, combine_summaries
from .s6._layer import S6, S6Grads
from .s6._scan import ScanCall as ScanCall  # for integrations: the checks of a scan
from .s6._scan import selective_scan
from .s6._step import selective_state_update
from .s6._transition import transition_product
from .s6._vjp import SelectiveScanGrads, selective_scan_vjp
from .s6._vjp import scan_adjoint as scan_adjoint  # for integrations, as ScanCall
from .ssd._attention import ssd_attention
from .ssd._call import SSDCall as SSDCall  # for integrations, as ScanCall
from .ssd._call import check_limits as check_limits
from .ssd._chunks import SSDChunkSummary, ssd_chunk_summary
from .ssd._scan import ssd_scan
from .ssd._step import ssd_state_update
from .ssd._vjp import SSDScanGrads, ssd_scan_vjp
from .ssd._vjp import ssd_adjoint as ssd_adjoint

__all__ = [
    "S6",
    "CausalConv1dGrads",
    "ChunkSummary",
    "LinearScanGrads",
    "S6Grads",
    "SSDChunkSummary",
    "SSDScanGrads",
    "SelectiveScanGrads",
    "causal_conv1d",
    "causal_conv1d_update",
    "causal_conv1d_vjp",
    "chunk_summary",
    "combine_summaries",
    "linear_scan",
    "linear_scan_vjp",
    "scan_attention",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "ssd_attention",
    "ssd_chunk_summary",
    "ssd_scan",
    "ssd_scan_vjp",
    "ssd_state_update",
    "transition_product",
]

register(__name__, FORMER_NAMES)
