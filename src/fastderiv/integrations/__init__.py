"""fastderiv inside other libraries.

Each module is imported only when asked for, and needs the library that it is named after;
`mamba_ssm` needs PyTorch instead.

torch          selective_scan, selective_state_update on CPU tensors: autograd, torch.compile;
               LSTM, GridRNN, ReversibleSGD
mamba_ssm      install(), uninstall(): code written for mamba_ssm on a GPU runs on the CPU
matplotlib     BoundaryDisplay: a sigmoid network's decision boundary as exact curves
transformers   enable(), disable(), enabled(): Mamba and others on the CPU use fastderiv
"""
