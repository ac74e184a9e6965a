"""Graph capture runs in a process of its own, where no run-time type checker stands in the way."""

import subprocess
import sys

PROGRAM = """
import torch
from girih_backbones import UFPN, FeaturePyramid, PlainEncoder, ResidualEncoder

torch.set_num_threads(1)
image = torch.randn(2, 1, 8, 8, 8)
encoder = ResidualEncoder(1, channels=(2, 4, 4), blocks=(1, 2, 1))
plain = PlainEncoder(1, channels=(2, 4), convs=(2, 1))
pyramid = FeaturePyramid(plain, UFPN(plain.channels, plain.strides, out_channels=8, first_level=1))
for network in (encoder, pyramid):
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # raises at a graph break
    assert all(torch.equal(a, b) for a, b in zip(compiled(image), network(image), strict=True))

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
