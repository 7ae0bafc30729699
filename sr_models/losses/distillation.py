"""What a student learns from a teacher beside single pixels: where to follow it, and its features.

The terms that compare pictures are the registry's; which teacher, and how much, is said outside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Largest side of the grid on which places are compared: affinities grow with its fourth power.
GRID = 24


def where_closer(teacher: Tensor, student: Tensor, hr: Tensor) -> Tensor:
    """The teacher's picture where it is closer to HR than the student, else the student's own.

    Against this target the student is drawn to the teacher at some pixels and left alone at the
    others: a teacher's mistakes are not learnt.

    Args:
        teacher, student, hr: floating [B, 3, H, W]; closeness is the mean |difference| of the three
            channels of a pixel.

    Returns:
        [B, 3, H, W], without gradients.
    """
    with torch.no_grad():
        away = (student - hr).abs().mean(1, keepdim=True)
        closer = (teacher - hr).abs().mean(1, keepdim=True) < away
        return torch.where(closer, teacher, student)


def affinity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |difference| of how alike the places of two feature maps are to one another.

    A place is a channel vector, normalised to length 1; the affinity of two places is their inner
    product, so the maps may differ in their channels. He et al. 2020, "FAKD: Feature-affinity based
    knowledge distillation for efficient image super-resolution", eq. 3 and 4. Maps larger than
    `GRID` are first averaged over equal cells; what is left over at the right and below is dropped.

    Args:
        student: floating [B, C, h, w]; gradients go to it alone.
        teacher: floating [B, D, h, w].

    Returns:
        0-dimensional float32, at least 0 and at most 2.

    Raises:
        ValueError: the maps differ in batch, height or width.
    """
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"features of the student {list(student.shape)} and of the expert "
            f"{list(teacher.shape)} differ in size: name a module of LR's size"
        )
    with torch.autocast(student.device.type, enabled=False):
        own, taught = _affinities(student), _affinities(teacher.detach())
    return F.l1_loss(own, taught)


def _affinities(features: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, n, n], n at most `GRID`²."""
    # Equal cells: adaptive pooling has no deterministic gradient on CUDA.
    cell = [-(-side // GRID) for side in features.shape[2:]]
    places = F.normalize(F.avg_pool2d(features.float(), cell).flatten(2), dim=1)
    return places.transpose(1, 2) @ places
