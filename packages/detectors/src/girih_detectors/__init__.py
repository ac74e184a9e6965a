"""3D medical object detectors and whole-volume inference."""

from .anchor_truth import AnchorTruth, anchor_truth
from .anchors import CENTRE_OFFSET, AnchorGrid, anchor_grid
from .atss import AnchorMatch, match_atss
from .coder import decode, encode
from .deformable_attention import DeformableAttention3D, zyx_to_grid
from .flavours import Flavour, FocalL1, HnmGiou
from .hard_negatives import sample_anchors
from .heads import BoxHead, ClassHead, SegmentationHead
from .hungarian import match_hungarian, matching_costs
from .inference import Merging, detect_volume, restore
from .interfaces import Detections, Detector, Mask, Pyramid, Target, Volume
from .losses import cross_entropy_and_dice, sigmoid_focal_loss, smooth_l1
from .ops import (
    class_nms,
    clip,
    giou,
    iou,
    pairwise_giou,
    pairwise_iou,
    volume,
    weighted_box_clustering,
    weighted_nms,
)
from .parameter_groups import parameter_groups
from .postprocess import PostProcessing, select_detections
from .retina_unet import RetinaUNet
from .set_loss import LayerOutput, SetLoss

__all__ = [
    "CENTRE_OFFSET",
    "AnchorGrid",
    "AnchorMatch",
    "AnchorTruth",
    "BoxHead",
    "ClassHead",
    "DeformableAttention3D",
    "Detections",
    "Detector",
    "Flavour",
    "FocalL1",
    "HnmGiou",
    "LayerOutput",
    "Mask",
    "Merging",
    "PostProcessing",
    "Pyramid",
    "RetinaUNet",
    "SegmentationHead",
    "SetLoss",
    "Target",
    "Volume",
    "anchor_grid",
    "anchor_truth",
    "class_nms",
    "clip",
    "cross_entropy_and_dice",
    "decode",
    "detect_volume",
    "encode",
    "giou",
    "iou",
    "match_atss",
    "match_hungarian",
    "matching_costs",
    "pairwise_giou",
    "pairwise_iou",
    "parameter_groups",
    "restore",
    "sample_anchors",
    "select_detections",
    "sigmoid_focal_loss",
    "smooth_l1",
    "volume",
    "weighted_box_clustering",
    "weighted_nms",
    "zyx_to_grid",
]
