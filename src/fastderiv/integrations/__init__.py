"""fastderiv inside other libraries.

Each module needs the library that it is named after, and is imported only when asked for.

torch          selective_scan, selective_state_update on CPU tensors: autograd, torch.compile
matplotlib     BoundaryDisplay: a sigmoid network's decision boundary as exact curves
transformers   enable(), disable(), enabled(): Mamba and others on the CPU use fastderiv
"""
