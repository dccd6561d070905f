"""Feature pyramids and pooled vectors of image files, without a framework around them."""

from .extractor import FeatureExtractor, ImageFeatures
from .preprocessing import Preprocessing

__all__ = ['FeatureExtractor', 'ImageFeatures', 'Preprocessing']
