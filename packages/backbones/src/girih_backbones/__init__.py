"""3D encoders, necks and audited weight transfer for medical imaging."""

from girih_backbones.descriptions import describe, make_encoder, make_neck, make_stem, preset
from girih_backbones.encoder import Encoder
from girih_backbones.interfaces import Description, Neck
from girih_backbones.plain import PlainEncoder
from girih_backbones.pyramid import FeaturePyramid
from girih_backbones.residual import ResidualEncoder
from girih_backbones.ufpn import UFPN
from girih_backbones.unet import UNetDecoder

__all__ = [
    "UFPN",
    "Description",
    "Encoder",
    "FeaturePyramid",
    "Neck",
    "PlainEncoder",
    "ResidualEncoder",
    "UNetDecoder",
    "describe",
    "make_encoder",
    "make_neck",
    "make_stem",
    "preset",
]
