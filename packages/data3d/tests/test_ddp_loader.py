"""Two processes of torchrun share out the items of one."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import girih_data3d as d3

PROGRAM = """
import json, sys, zlib
from pathlib import Path
import torch.distributed as dist
import girih_data3d as d3
from girih_data3d.torch import make_loader

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
sampler = d3.PatchSampler((8, 8, 8), object_fraction=0, geometry=d3.Geometry(p_rotation=0.5))
samples = d3.PatchDataset(d3.Store.open(sys.argv[1]), sampler, n_per_epoch=12)
found = []
for batch in make_loader(samples, batch_size=3, start=0, stop=2, rank=rank, world=world):
    for b, image in enumerate(batch["image"]):
        found.append([int(batch["index"][b]), batch["case_id"][b], zlib.crc32(image.numpy().tobytes())])
shares = [None] * world
dist.all_gather_object(shares, found)
if rank == 0:
    Path(sys.argv[2]).write_text(json.dumps(shares))
dist.destroy_process_group()
"""


def test_union_of_two_processes_is_the_permutation(prepared: d3.Store, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "program.py"), str(prepared.root), str(tmp_path / "out.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shares = json.loads((tmp_path / "out.json").read_text())
    assert [len(share) for share in shares] == [6, 6]
    sampler = d3.PatchSampler((8, 8, 8), object_fraction=0, geometry=d3.Geometry(p_rotation=0.5))
    alone = d3.PatchDataset(prepared, sampler, n_per_epoch=12)
    expected = [[g, s["case_id"], zlib.crc32(s["image"].tobytes())] for g, s in enumerate(alone)]
    assert sorted(shares[0] + shares[1]) == expected
    assert all({case_id for _, case_id, _ in expected[at : at + 3]} == set(prepared) for at in range(0, 12, 3))
