"""A picture of the feature maps of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..command_line import whole_file
from .extractor import ImageFeatures

if TYPE_CHECKING:
    from PIL import Image


def draw_features(image: Image.Image, features: ImageFeatures, path: Path) -> None:
    """Draws an image and, below each other, two views of each of its feature maps.

    The first view shows the three principal components of the channels as red, green and blue:
    similar features have similar colours. The second shows the norm of the difference from the mean
    over the image: the norm itself is nearly constant, as the maps come from layer norms.

    Args:
        image: The image.
        features: Its features, with maps.
        path: The picture to write.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    columns = 1 + len(features.maps)
    ratio = image.height / image.width
    figure = Figure(figsize=(3 * columns, 2 * (3 * ratio + 0.9)), layout='constrained')
    axes = figure.subplots(2, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    axes[0, 0].imshow(image)
    legend = (
        'top: the first three principal\ncomponents as red, green, blue\n\n'
        'bottom: norm of the difference\nfrom the mean over the image'
    )
    axes[1, 0].text(0, 0.5, legend, fontsize=10, va='center')
    axes[0, 0].set_title(f'image\n{image.height} x {image.width}', fontsize=10)
    for i, (name, features_of) in enumerate(features.maps.items(), 1):
        channels, height, width = features_of.shape
        extent = (0, image.width, image.height, 0)
        axes[0, i].imshow(principal_colours(features_of), extent=extent, interpolation='nearest')
        axes[0, i].set_title(
            f'{name}, stride {features.strides[name]}\n{channels} x {height} x {width}',
            fontsize=10,
        )
        centred = features_of - features_of.mean((1, 2), keepdim=True)
        norms = torch.linalg.vector_norm(centred, dim=0).numpy()
        heat = axes[1, i].imshow(norms, extent=extent, interpolation='nearest', cmap='viridis')
        figure.colorbar(heat, ax=axes[1, i], location='bottom', shrink=0.8, pad=0.02)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110)


def principal_colours(features: Tensor) -> np.ndarray:
    """Returns the three principal components of the channels as RGB values from 0 to 1.

    Args:
        features: A feature map ``(C, H, W)``.

    Returns:
        ``(H, W, 3)``. Each component is scaled so that its 2nd and 98th percentiles are 0 and 1.
    """
    channels, height, width = features.shape
    rows = features.reshape(channels, -1).t().double()
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(rows.t() @ rows)
    components = rows @ vectors[:, -3:].flip(1)
    # The sign of a component is arbitrary: it is chosen so that pictures can be compared.
    components = components * torch.where(components.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = torch.quantile(components, torch.tensor([0.02, 0.98]).double(), dim=0)
    scaled = (components - low) / (high - low).clamp(min=1e-12)
    colours = torch.zeros(len(rows), 3, dtype=torch.double)
    colours[:, : scaled.shape[1]] = scaled.clamp(0, 1)
    return colours.view(height, width, 3).numpy()
