"""fastderiv inside other libraries: each module here needs the library it is named after, and is imported only when asked for.

torch          selective_scan and selective_state_update on CPU tensors, with autograd and torch.compile
matplotlib     BoundaryDisplay: a sigmoid network's decision boundary as exact curves
transformers   enable(), disable(), enabled(): Mamba models on CPU compute their scans with fastderiv
"""
