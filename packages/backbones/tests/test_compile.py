"""Graph capture runs in a process of its own, where no run-time type checker stands in the way."""

import subprocess
import sys

PROGRAM = """
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from girih_backbones import UFPN, FeaturePyramid, PlainEncoder, ResidualEncoder, UNetDecoder, set_checkpointing

torch.set_num_threads(1)
image = torch.randn(2, 1, 8, 8, 8)
encoder = ResidualEncoder(1, channels=(2, 4, 4), blocks=(1, 2, 1))
plain = PlainEncoder(1, channels=(2, 4), convs=(2, 1))
pyramid = FeaturePyramid(plain, UFPN(plain.channels, plain.strides, out_channels=8, first_level=1))
unet = FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides))


def maps_and_gradients(forward, network):
    network.zero_grad()
    maps = forward(image)
    sum(m.square().sum() for m in maps).backward()
    return [*maps, *(p.grad.clone() for p in network.parameters())]


for network, checkpointing in ((encoder, False), (encoder, True), (pyramid, False), (unet, True)):
    wanted = maps_and_gradients(network, network)
    set_checkpointing(network, checkpointing)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True)  # raises at a graph break
    found = maps_and_gradients(compiled, network)
    assert counter.frame_count == 1
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(found, wanted, strict=True))
    checkpoints = [node for node in counter.graphs[0].graph.nodes if "checkpoint" in str(node.target)]
    assert bool(checkpoints) == checkpointing
    set_checkpointing(network, False)

any_size = torch.export.Dim.DYNAMIC
exported = torch.export.export(encoder, (image,), dynamic_shapes=({0: any_size, 2: any_size},)).module()
larger = torch.randn(3, 1, 16, 8, 8)
for x in (image, larger):
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(exported(x), encoder(x), strict=True))
print("captured")
"""


def test_networks_are_captured_whole_and_exported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "captured\n", done.stderr
