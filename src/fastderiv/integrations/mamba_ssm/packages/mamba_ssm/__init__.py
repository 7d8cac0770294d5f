"""The package ``mamba_ssm`` for the CPU: what code that was written for GPUs imports by this name.

`fastderiv.integrations.mamba_ssm.install` puts it there.  Names, parameters and initial values are
those of version 2.3; the scans are those of `fastderiv.integrations.torch`.

ops        functions: scans, steps, norms
modules    mixers and blocks
models     language models
utils      generation, weights from files
"""

from fastderiv.integrations.mamba_ssm._distributions import VERSIONS

from .models.mixer_seq_simple import MambaLMHeadModel
from .modules.mamba2 import Mamba2
from .modules.mamba_simple import Mamba
from .ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn

__all__ = ["Mamba", "Mamba2", "MambaLMHeadModel", "mamba_inner_fn", "selective_scan_fn"]
__version__ = VERSIONS["mamba_ssm"]
