"""Files that `fastderiv.integrations.mamba_ssm.install` imports under their original names.

mamba_ssm                    modules, models and functions of Mamba and Mamba-2
causal_conv1d                the causal depthwise convolution
selective_scan_cuda, …       what forks call instead of mamba_ssm: `fwd` and `bwd`
"""
