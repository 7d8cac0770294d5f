"""The selective scan: whole sequences, single steps, chunks, its hidden attention, and the product of its transitions."""

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
