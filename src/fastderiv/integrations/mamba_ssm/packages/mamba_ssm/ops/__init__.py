"""The functions that mamba_ssm computes by CUDA and Triton kernels, on CPU tensors.

How a call flows: arguments as mamba_ssm takes them → ``fastderiv.integrations.torch``'s operators,
with PyTorch's own operations around them → results as mamba_ssm returns them.

selective_scan_interface   Mamba's scan, and what surrounds it in the mixer
triton                     steps, Mamba-2's scan, normalisations: named so after where they lie
"""
