"""What mamba_ssm computes by Triton kernels; nothing here needs Triton.

selective_state_update   one step of a scan
ssd_combined             Mamba-2's scan, alone and with convolution, gate, norm and projection
layer_norm               LayerNorm and RMSNorm of a residual stream; layernorm is its former name
layernorm_gated          LayerNorm and RMSNorm with a gate, in groups
k_activations            SwiGLU
"""
