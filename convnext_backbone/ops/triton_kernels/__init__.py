"""Triton kernels for NVIDIA GPUs: the operators of :mod:`portable`, with the same names.

Only imported where Triton is installed, as it is with every CUDA build of torch.
"""

from .branch import add_branch_, branch_grad, plan_add_branch_, plan_branch_grad
from .depthwise import depthwise_norm, plan_depthwise_norm
from .depthwise_input import depthwise_input_grad, plan_depthwise_input_grad
from .depthwise_weight import depthwise_weight_grad, plan_depthwise_weight_grad
from .gelu_backward import gelu_backward_, plan_gelu_backward_
from .norm import norm, plan_norm
from .norm_backward import norm_backward_, plan_norm_backward_
from .products import column_products, plan_column_products, plan_row_products, row_products

__all__ = [
    'add_branch_',
    'branch_grad',
    'column_products',
    'depthwise_input_grad',
    'depthwise_norm',
    'depthwise_weight_grad',
    'gelu_backward_',
    'norm',
    'norm_backward_',
    'plan_add_branch_',
    'plan_branch_grad',
    'plan_column_products',
    'plan_depthwise_input_grad',
    'plan_depthwise_norm',
    'plan_depthwise_weight_grad',
    'plan_gelu_backward_',
    'plan_norm',
    'plan_norm_backward_',
    'plan_row_products',
    'row_products',
]
