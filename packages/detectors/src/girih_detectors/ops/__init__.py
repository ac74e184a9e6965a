"""Boxes' geometry, suppression and clustering, deformable attention: torch on any device, Triton beside it for CUDA."""

from .boxes import clip, giou, iou, pairwise_giou, pairwise_iou, volume
from .clustering import weighted_box_clustering
from .deformable_attention import deformable_attention, fused_deformable_attention
from .nms import class_nms, weighted_nms

__all__ = [
    "class_nms",
    "clip",
    "deformable_attention",
    "fused_deformable_attention",
    "giou",
    "iou",
    "pairwise_giou",
    "pairwise_iou",
    "volume",
    "weighted_box_clustering",
    "weighted_nms",
]
