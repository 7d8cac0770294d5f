"""The causal depthwise convolution: whole sequences, single steps, the adjoint."""
