"""What training takes on a GPU, by counting: no network is built and nothing runs.

    bytes = batch * (encoder + pyramid + heads + losses + transient) + 14 * parameters + overhead

Retina U-Net, stochastic gradient descent, in bfloat16 autocast or in full precision (float32). Counted is what autograd
keeps for the backward pass, in
elements e_i = channels_i * cells_i of stage i and w_i = pyramid channels_i * cells_i, 2 bytes each unless said
otherwise, in full precision 4 (a unit is convolution, normalisation, activation; the last two share one output):

- encoder: the image; per unit 2 e_i, its convolution's and its own output. A residual block is two units. The first
  block of a stage also keeps, if it changes the channels, its pooled input (if it pools) and its projection, e_i.
- pyramid: of each map what its output convolution or the way up reads, w_i; and the output where a head reads it, w_i.
- heads, two towers of two units on each level: the group normalisation runs in float32, so that a unit keeps its input
  and output in float32 and the output in bfloat16, 10 bytes per w_i; 8 in full precision. Per anchor 6 deltas before
  their scale and 6 after it, and a logit per class.
- losses, in float32: per anchor 4 bytes and 26 per class (focal loss) and 4 for what is wanted; per voxel 2
  segmentation logits and 32 bytes of cross-entropy and Dice.
- transient: gradients of the two finest maps while everything else is still kept.
- parameters: weight, gradient and momentum in float32, and in autocast the bfloat16 copy.
- overhead: 768 MiB for CUDA's context and the workspaces of cuDNN, as much as nnDetection sets aside.

Not counted: the matching of anchors (chunked), fragmentation. Not measured on a GPU; the test suite holds the kept
activations and the parameters against the real networks. Deformable DETR keeps other amounts; it is not planned with.
"""

import math
from typing import Literal

from girih_data3d.planning.network import ANCHORS, Network
from girih_data3d.planning.topology import PYRAMID_CHANNELS

OVERHEAD = 768 * 2**20
Precision = Literal["no", "bf16"]
"""Mixed precision of the training, as `girih finetune --precision` spells it; "no": float32 throughout."""
BYTES: dict[Precision, int] = {"no": 4, "bf16": 2}
"""Of a number of a map."""
PER_PARAMETER: dict[Precision, int] = {"no": 4 + 4 + 4, "bf16": 4 + 4 + 4 + 2}
HEAD_UNIT: dict[Precision, int] = {"no": 4 + 4, "bf16": 4 + 4 + 2}
TOWERS, UNITS = 2, 2
SEGMENTATION_CLASSES = 2


def training_bytes(network: Network, batch_size: int, precision: Precision) -> int:
    """Return the bytes of GPU memory that training with batches of this size takes."""
    finest = max(
        channels * math.prod(network.topology.patch_zyx)
        for channels in (network.topology.channels[0], network.pyramid_channels[0])
    )
    transient = 2 * finest * BYTES[precision]
    per_image = activation_bytes(network, precision) + loss_bytes(network, precision) + transient
    return batch_size * per_image + PER_PARAMETER[precision] * parameters(network) + OVERHEAD


def activation_bytes(network: Network, precision: Precision) -> int:
    """Return what the forward pass of one image keeps for the backward pass, without the loss."""
    topology = network.topology
    cells = _cells(network)
    residual = network.encoder == "resenc_l"
    kept = network.in_channels * math.prod(topology.patch_zyx)
    if residual:
        kept += 2 * topology.channels[0] * cells[0]  # the stem
    before = topology.channels[0]
    for channels, step, count, depth in zip(
        topology.channels, topology.downsampling, cells, network.depth, strict=True
    ):
        kept += (2 if residual else 1) * depth * 2 * channels * count
        if residual and channels != before:
            kept += channels * count + (before * count if step != (1, 1, 1) else 0)
        before = channels
    widths = network.pyramid_channels
    for level, (width, count) in enumerate(zip(widths, cells, strict=True)):
        kept += width * count
        if level == 0 or level in topology.levels:
            kept += width * count
    heads = sum(TOWERS * UNITS * HEAD_UNIT[precision] * PYRAMID_CHANNELS * cells[level] for level in topology.levels)
    anchors = ANCHORS * sum(cells[level] for level in topology.levels)
    return BYTES[precision] * (kept + anchors * 6) + heads


def loss_bytes(network: Network, precision: Precision) -> int:
    """Return what outputs and losses of one image take on top of `activation_bytes`."""
    cells = _cells(network)
    anchors = ANCHORS * sum(cells[level] for level in network.topology.levels)
    voxels = math.prod(network.topology.patch_zyx)
    outputs = anchors * (6 + network.classes) + voxels * SEGMENTATION_CLASSES
    return BYTES[precision] * outputs + anchors * (4 + (26 + 4) * network.classes) + voxels * 32


def parameters(network: Network) -> int:
    """Return the number of parameters of the network."""
    topology, widths = network.topology, network.pyramid_channels
    residual = network.encoder == "resenc_l"
    bias = 1 if residual else 0
    norm = 2
    total, before = 0, network.in_channels
    if residual:
        before = topology.channels[0]
        total += before * (network.in_channels * math.prod(topology.kernels[0]) + bias + norm)
    for channels, kernel, depth in zip(topology.channels, topology.kernels, network.depth, strict=True):
        if residual and channels != before:
            total += channels * (before + norm)
        units = 2 * depth if residual else depth
        total += channels * (before * math.prod(kernel) + bias + norm)
        total += (units - 1) * channels * (channels * math.prod(kernel) + bias + norm)
        before = channels
    for level, (width, channels) in enumerate(zip(widths, topology.channels, strict=True)):
        total += width * (channels + 1)
        if level + 1 < len(widths):
            total += width * (widths[level + 1] * math.prod(topology.downsampling[level + 1]) + 1)
        if level == 0 or level in topology.levels:
            total += width * (27 * width + 1)
    tower = UNITS * PYRAMID_CHANNELS * (27 * PYRAMID_CHANNELS + norm)
    outputs = ANCHORS * (network.classes + 6) * (27 * PYRAMID_CHANNELS + 1)
    segmentation = SEGMENTATION_CLASSES * (widths[0] + 1)
    return total + TOWERS * tower + outputs + len(topology.levels) + segmentation


def _cells(network: Network) -> tuple[int, ...]:
    """Return the cells of each stage's map."""
    topology = network.topology
    return tuple(math.prod(topology.patch_zyx) // math.prod(stride) for stride in topology.strides)
