"""Geometry, suppression and clustering of boxes: plain torch on any device, Triton kernels beside it for CUDA."""

from .boxes import clip, giou, iou, pairwise_giou, pairwise_iou, volume
from .clustering import weighted_box_clustering
from .nms import class_nms, weighted_nms

__all__ = [
    "class_nms",
    "clip",
    "giou",
    "iou",
    "pairwise_giou",
    "pairwise_iou",
    "volume",
    "weighted_box_clustering",
    "weighted_nms",
]
