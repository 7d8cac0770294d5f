"""`custom_fwd`, `custom_bwd`: decorators of autograd functions, for autocast on the CPU."""

from functools import partial

import torch

custom_fwd = partial(torch.amp.custom_fwd, device_type="cpu")
custom_bwd = partial(torch.amp.custom_bwd, device_type="cpu")
