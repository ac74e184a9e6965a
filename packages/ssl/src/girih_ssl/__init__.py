"""Self-supervised and supervised pre-training objectives for 3D medical volumes, one file each."""

from girih_ssl.batch import check_batch, check_cells, check_patch, sample_generators
from girih_ssl.dataset_heads import check_dataset_info
from girih_ssl.interfaces import Batch, DatasetInfo, Encoder, Neck, Objective, ObjectiveConfig, Parts
from girih_ssl.mae import MAE, MAEConfig
from girih_ssl.masking import draw_hidden_blocks, hidden_count, to_voxels
from girih_ssl.models_genesis import ModelsGenesis, ModelsGenesisConfig
from girih_ssl.multitalent import MultiTalent, MultiTalentConfig, dataset_weights
from girih_ssl.registry import PluginError, objectives
from girih_ssl.s3d import S3D, S3DConfig
from girih_ssl.voco import VoCo, VoCoConfig
from girih_ssl.voxel_head import VoxelHead

__all__ = [
    "MAE",
    "S3D",
    "Batch",
    "DatasetInfo",
    "Encoder",
    "MAEConfig",
    "ModelsGenesis",
    "ModelsGenesisConfig",
    "MultiTalent",
    "MultiTalentConfig",
    "Neck",
    "Objective",
    "ObjectiveConfig",
    "Parts",
    "PluginError",
    "S3DConfig",
    "VoCo",
    "VoCoConfig",
    "VoxelHead",
    "check_batch",
    "check_cells",
    "check_dataset_info",
    "check_patch",
    "dataset_weights",
    "draw_hidden_blocks",
    "hidden_count",
    "objectives",
    "sample_generators",
    "to_voxels",
]
