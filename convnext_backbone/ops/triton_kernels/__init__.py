"""Triton kernels for NVIDIA GPUs: the operators of :mod:`portable`, with the same names.

Only imported where Triton is installed, as it is with every CUDA build of torch.
"""

from .branch import add_branch_, branch_grad, plan_add_branch_, plan_branch_grad
from .gelu_backward import gelu_backward_, plan_gelu_backward_
from .norm_backward import norm_backward_, plan_norm_backward_
from .products import column_products, plan_column_products, plan_row_products, row_products

__all__ = [
    'add_branch_',
    'branch_grad',
    'column_products',
    'gelu_backward_',
    'norm_backward_',
    'plan_add_branch_',
    'plan_branch_grad',
    'plan_column_products',
    'plan_gelu_backward_',
    'plan_norm_backward_',
    'plan_row_products',
    'row_products',
]
