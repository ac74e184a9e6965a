"""Geometry and suppression of boxes: plain torch on any device, Triton kernels beside it for CUDA."""

from .boxes import clip, giou, iou, pairwise_giou, pairwise_iou, volume
from .nms import class_nms

__all__ = ["class_nms", "clip", "giou", "iou", "pairwise_giou", "pairwise_iou", "volume"]
