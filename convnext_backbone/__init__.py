"""ConvNeXt as a backbone plugin for OpenMMLab frameworks.

Importing the package has these effects:

- ``ConvNextBackbone``, ``ConvNextModel`` and ``ConvNextForImageClassification`` are registered in
  mmengine's root registry ``MODELS``, ``ConvNextLayerDecayOptimWrapperConstructor`` in
  ``OPTIM_WRAPPER_CONSTRUCTORS``, ``ConvNextResumeHook`` and ``ConvNextSetupHook`` in ``HOOKS``
  and ``convnext_auto_wrap_policy`` in ``FUNCTIONS``.
- mmengine's loader of local checkpoints (``load_from``, ``resume``) is replaced by one that can
  read mmengine's own checkpoints with torch 2.6 and newer. Only while it reads a file, torch's
  unpickler also accepts the classes in those files. ``weights_only`` stays on, and ``torch.load``
  in other code behaves as before (while a file is read, other threads accept the same classes). See
  ``checkpoint/mmengine_files.py``.
- A module that gets a model of this package as a part gets a check, too: its ``load_state_dict``
  refuses what the model would refuse before it loads any other part. See
  ``checkpoint/larger_models.py``.
- mmengine finds the configs in this package: ``_base_ = 'convnext_backbone::detection/...'``. See
  ``registry.py``.

``import convnext_backbone.data`` registers data and metrics for training classifiers.
"""

try:
    import mmengine
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(
        'convnext_backbone needs mmengine, which is not installed: install either upstream '
        "OpenMMLab with pip install 'convnext-backbone[openmmlab]' or the OneDL forks with "
        "pip install 'convnext-backbone[onedl]', never both in one environment",
        name='mmengine',
    ) from error
else:
    import torch
    from mmengine.config.utils import MODULE2PACKAGE

    from .versions import check_version

    check_version('torch', torch.__version__)
    check_version('mmengine', mmengine.__version__)

from .checkpoint import (
    LoadReport,
    PublishedWeights,
    guard_larger_models,
    infer_arch,
    list_pretrained,
    load_checkpoint,
    register_loader,
)
from .engine import (
    ConvNextLayerDecayOptimWrapperConstructor,
    ConvNextResumeHook,
    ConvNextSetupHook,
    convnext_auto_wrap_policy,
)
from .extraction import FeatureExtractor
from .models import (
    ConvNextBackbone,
    ConvNextBackboneOutput,
    ConvNextDropPath,
    ConvNextEmbeddings,
    ConvNextEncoder,
    ConvNextForImageClassification,
    ConvNextGRN,
    ConvNextLayer,
    ConvNextLayerNorm,
    ConvNextModel,
    ConvNextModelOutput,
    ConvNextStage,
    drop_path,
)

__version__ = '0.2.0'

__all__ = [
    'ConvNextBackbone',
    'ConvNextBackboneOutput',
    'ConvNextDropPath',
    'ConvNextEmbeddings',
    'ConvNextEncoder',
    'ConvNextForImageClassification',
    'ConvNextGRN',
    'ConvNextLayer',
    'ConvNextLayerDecayOptimWrapperConstructor',
    'ConvNextLayerNorm',
    'ConvNextModel',
    'ConvNextModelOutput',
    'ConvNextResumeHook',
    'ConvNextSetupHook',
    'ConvNextStage',
    'FeatureExtractor',
    'LoadReport',
    'PublishedWeights',
    'convnext_auto_wrap_policy',
    'drop_path',
    'infer_arch',
    'list_pretrained',
    'load_checkpoint',
]

# mmengine reads configs only from the packages in this table.
MODULE2PACKAGE[__name__] = __name__
register_loader()
guard_larger_models()
