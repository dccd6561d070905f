"""Triton kernels for NVIDIA GPUs: the operators of :mod:`portable`, with the same names.

Only imported where Triton is installed, as it is with every CUDA build of torch.
"""
