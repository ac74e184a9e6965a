"""3D medical object detectors and whole-volume inference."""

from .anchor_truth import AnchorTruth, anchor_truth
from .anchors import CENTRE_OFFSET, AnchorGrid, anchor_grid
from .atss import AnchorMatch, match_atss
from .centre_boxes import centre_to_edges, edges_to_centre
from .channel_mapper import ChannelMapper
from .coder import decode, encode
from .deformable_attention import DeformableAttention3D, zyx_to_grid
from .deformable_detr import ORIGINAL_2D, DeformableDETR
from .detr_decoder import DetrDecoder
from .detr_encoder import DetrEncoder
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
from .positional_encoding import PositionalEncoding3D
from .postprocess import PostProcessing, select_detections
from .proposals import TwoStage
from .query_detections import select_queries
from .query_heads import LayerOutput, QueryHeads
from .retina_unet import RetinaUNet
from .set_loss import SetLoss
from .transformer_settings import TransformerSettings

__all__ = [
    "CENTRE_OFFSET",
    "ORIGINAL_2D",
    "AnchorGrid",
    "AnchorMatch",
    "AnchorTruth",
    "BoxHead",
    "ChannelMapper",
    "ClassHead",
    "DeformableAttention3D",
    "DeformableDETR",
    "Detections",
    "Detector",
    "DetrDecoder",
    "DetrEncoder",
    "Flavour",
    "FocalL1",
    "HnmGiou",
    "LayerOutput",
    "Mask",
    "Merging",
    "PositionalEncoding3D",
    "PostProcessing",
    "Pyramid",
    "QueryHeads",
    "RetinaUNet",
    "SegmentationHead",
    "SetLoss",
    "Target",
    "TransformerSettings",
    "TwoStage",
    "Volume",
    "anchor_grid",
    "anchor_truth",
    "centre_to_edges",
    "class_nms",
    "clip",
    "cross_entropy_and_dice",
    "decode",
    "detect_volume",
    "edges_to_centre",
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
    "select_queries",
    "sigmoid_focal_loss",
    "smooth_l1",
    "volume",
    "weighted_box_clustering",
    "weighted_nms",
    "zyx_to_grid",
]
