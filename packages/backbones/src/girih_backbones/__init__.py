"""3D encoders, necks and audited weight transfer for medical imaging."""

from girih_backbones.activation_checkpointing import set_checkpointing
from girih_backbones.adapting import freeze, head_first, parameter_groups, unfreeze
from girih_backbones.counting import Counts, count
from girih_backbones.descriptions import describe, make_encoder, make_neck, make_stem, preset
from girih_backbones.encoder import Encoder
from girih_backbones.export import export_nnunet
from girih_backbones.interfaces import Description, Neck, WeightsHeader
from girih_backbones.lora import add_lora, merge_lora
from girih_backbones.plain import PlainEncoder
from girih_backbones.pyramid import FeaturePyramid
from girih_backbones.report import Row, TransferError, TransferReport
from girih_backbones.residual import ResidualEncoder
from girih_backbones.stems import DatasetStems, make_stems
from girih_backbones.transfer import load_weights
from girih_backbones.ufpn import UFPN
from girih_backbones.unet import UNetDecoder
from girih_backbones.weights import Weights, WeightsError, read_weights, save_weights, write_weights

__all__ = [
    "UFPN",
    "Counts",
    "DatasetStems",
    "Description",
    "Encoder",
    "FeaturePyramid",
    "Neck",
    "PlainEncoder",
    "ResidualEncoder",
    "Row",
    "TransferError",
    "TransferReport",
    "UNetDecoder",
    "Weights",
    "WeightsError",
    "WeightsHeader",
    "add_lora",
    "count",
    "describe",
    "export_nnunet",
    "freeze",
    "head_first",
    "load_weights",
    "make_encoder",
    "make_neck",
    "make_stem",
    "make_stems",
    "merge_lora",
    "parameter_groups",
    "preset",
    "read_weights",
    "save_weights",
    "set_checkpointing",
    "unfreeze",
    "write_weights",
]
