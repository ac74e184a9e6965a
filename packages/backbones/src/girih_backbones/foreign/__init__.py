"""Checkpoints of other programs in this package's names: nnU-Net, nnssl, MultiTalent and nnDetection."""

from girih_backbones.foreign.convert import convert

__all__ = ["convert"]
