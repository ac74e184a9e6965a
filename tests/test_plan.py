"""Plans meet the networks: presets, memory against what autograd keeps, and plan - prepare - finetune."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import girih_data3d
from girih.batches import plan_differences
from girih.cli import main
from girih.commands.finetune import Finetune
from girih.commands.plan import Plan as PlanCommand
from girih.commands.prepare import Prepare
from girih.loop import Training
from girih.networks import make_detector
from girih.plans import PRESETS, Plan
from girih.recipes import Recipe
from girih.samples import SamplesUnavailable, fetch, lidc
from girih_data3d.planning.memory import Precision, activation_bytes, loss_bytes, parameters
from girih_data3d.planning.network import ANCHORS, Encoder, Network
from girih_data3d.planning.planner import FIXED
from girih_data3d.planning.topology import plan_topology
from girih_detectors.losses import cross_entropy_and_dice, sigmoid_focal_loss

TOLERANCE = 0.02
"""Of what is counted against what autograd keeps; the aim is 15 %."""
BATCH = 2
TOPOLOGIES = {
    "fixed": FIXED,
    "five stages": plan_topology((96, 96, 96), (1, 1, 1)),
    "seven stages, thick slices": plan_topology((20, 256, 256), (5, 0.7, 0.7)),
    "coarse": plan_topology((56, 192, 160), (2.5, 0.8, 0.8)),
}


def plan_of(network: Network) -> Plan:
    return replace(
        PRESETS["resenc_l"],
        patch_zyx=network.topology.patch_zyx,
        encoder=network.describe_encoder(),
        neck=network.describe_neck(),
        levels=network.topology.levels,
    )


@pytest.mark.parametrize(("encoder", "preset"), [("resenc_l", "resenc_l"), ("retina_unet", "retina_unet")])
def test_the_fixed_topology_is_the_presets(encoder: Encoder, preset: str) -> None:
    plan = plan_of(Network(FIXED, encoder, 1, 1))
    wanted = PRESETS[preset]
    assert replace(plan, notes=()).to_json() == replace(wanted, notes=()).to_json()


class Outputs(nn.Module):
    """The outputs of a detector, as a forward pass."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.detector.tensors(images)


def kept_bytes(run: Callable[[], Any], besides: set[int]) -> int:
    """Bytes of the storages that autograd keeps of a forward pass, without the parameters."""
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in besides:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operations of which CUDA's autocast has another opinion than the CPU's."""
    monkeypatch.setattr(
        nn.GroupNorm,
        "forward",
        lambda self, x: F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps),
    )

    def pool(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.avg_pool3d(x, self.kernel_size, self.stride)

    monkeypatch.setattr(nn.AvgPool3d, "forward", pool)


@pytest.mark.usefixtures("as_cuda")
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("encoder", ["resenc_l", "retina_unet"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_counted_memory_is_what_autograd_keeps(name: str, encoder: Encoder, precision: Precision) -> None:
    network = Network(TOPOLOGIES[name], encoder, in_channels=2, classes=3)
    detector = Outputs(
        make_detector(plan_of(network), in_channels=2, classes=("a", "b", "c"), segmentation=True, seed=0)
    )
    assert sum(p.numel() for p in detector.parameters()) == parameters(network)
    with FakeTensorMode():
        tensors = [*detector.named_parameters(), *detector.named_buffers()]
        state = {
            key: torch.empty(t.shape, dtype=t.dtype, requires_grad=isinstance(t, nn.Parameter)) for key, t in tensors
        }
        images = torch.empty(BATCH, 2, *network.topology.patch_zyx)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            kept = kept_bytes(
                lambda: functional_call(detector, state, (images,)),
                {t.untyped_storage()._cdata for t in state.values()},
            )
    copies = {"no": 0, "bf16": 2}[precision]  # bfloat16, counted with the parameters
    weights = copies * sum(p.numel() for p in detector.parameters() if p.ndim == 5)
    assert BATCH * activation_bytes(network, precision) == pytest.approx(kept - weights, rel=TOLERANCE)


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_counted_memory_of_the_losses_is_what_autograd_keeps(precision: Precision, dtype: torch.dtype) -> None:
    network = Network(plan_topology((32, 32, 32), (1, 1, 1)), "resenc_l", in_channels=1, classes=3)
    voxels = math.prod(network.topology.patch_zyx)
    strides = [network.topology.strides[level] for level in network.topology.levels]
    anchors = ANCHORS * sum(voxels // math.prod(stride) for stride in strides)
    logits = torch.zeros(anchors, 3, dtype=dtype, requires_grad=True)
    masks = torch.zeros(1, 2, *network.topology.patch_zyx, dtype=dtype, requires_grad=True)
    wanted = torch.zeros(anchors, 3)

    def losses() -> Tensor:
        focal = sigmoid_focal_loss(logits, wanted, gamma=1.0, alpha=0.75).mean(-1)
        return (focal * torch.ones(anchors)).sum() + sum(cross_entropy_and_dice(masks, masks[:, 0] > 0))

    kept = kept_bytes(losses, {logits.untyped_storage()._cdata, masks.untyped_storage()._cdata})
    outputs = dtype.itemsize * (anchors * (6 + 3) + voxels * 2) + wanted.nbytes
    assert loss_bytes(network, precision) == pytest.approx(kept + outputs, rel=TOLERANCE)


@pytest.fixture(scope="session")
def nodules_mm() -> np.ndarray:
    """Sides of the boxes of the 1389 consensus nodules of LIDC-IDRI, (z, y, x)."""
    try:
        database = fetch().lidc_database
    except SamplesUnavailable as reason:
        if os.environ.get("GIRIH_REQUIRE_SAMPLES") == "1":
            raise
        pytest.skip(f"the sample scans cannot be had: {str(reason).splitlines()[0]}")
    scans, contours = lidc._read(database)
    wanted = [finding for finding in lidc._group(scans, contours) if len(finding.annotations) >= lidc.READERS_WANTED]
    finding_of = {annotation: k for k, finding in enumerate(wanted) for annotation in finding.annotations}
    outlines: list[list[Any]] = [[] for _ in wanted]
    for contour in contours:
        if contour.annotation in finding_of:
            outlines[finding_of[contour.annotation]].append(contour)
    sides = []
    for finding, drawn in zip(wanted, outlines, strict=True):
        scan = scans[finding.scan]
        inside = np.argwhere(lidc._consensus(finding.annotations, drawn, scan))
        sides.append((np.ptp(inside, axis=0) + 1) * (scan.slice_mm, scan.pixel_mm, scan.pixel_mm))
    return np.array(sides)


@pytest.mark.samples
def test_the_sizes_that_data3d_tests_with_are_those_of_the_nodules_of_lidc(nodules_mm: np.ndarray) -> None:
    path = Path(__file__).parents[1] / "packages" / "data3d" / "tests" / "data" / "lidc_nodules.json"
    np.testing.assert_allclose(json.loads(path.read_text())["sides_zyx_mm"], nodules_mm, atol=1e-3)


def test_a_plan_that_no_network_can_be_built_from_is_refused_before_any_work(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = PRESETS["demo"].to_json()
    path = tmp_path / "plan.json"
    for field, change, message in (
        ("encoder", {"class": "ResidualEncodr"}, "encoder class: found 'ResidualEncodr'"),
        ("neck", {"kwargs": {"out_chanels": 32}}, "neck kwargs of UFPN"),
    ):
        path.write_text(json.dumps({**content, field: {**content[field], **change}}))
        arguments = ["--data", str(raw), "--out", str(tmp_path / "out"), "--plan", str(path)]
        for command in ("prepare", "finetune"):
            assert main([command, *arguments]) == 2
            assert f"{path}: field '{field}': {message}" in " ".join(capsys.readouterr().err.split())
            assert not (tmp_path / "out" / "index").exists()


def test_another_dataset_than_the_plans_is_said(raw: Path, tmp_path: Path) -> None:
    Prepare(data=raw, out=tmp_path / "store", workers=0).run()
    store = girih_data3d.Store.open(tmp_path / "store")
    plan = replace(PRESETS["demo"], spacing_zyx_mm=None, classes=store.classes, dataset="other")
    assert plan_differences(plan, store) == [f"the plan's dataset is other, that of {store.root} is {store.name}"]
    assert not plan_differences(replace(plan, dataset=store.name), store)
    assert not plan_differences(replace(plan, classes=None), store)  # pre-trains on any


def test_plan_prepare_finetune(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    PlanCommand(data=raw, out=path, encoder="retina_unet", memory_gb=4.0, batch_size=2, workers=0).run()
    said = capsys.readouterr().out
    assert said.startswith(
        f"{path} (measurements: {tmp_path / 'fingerprint.json'}, made now)\n  dataset        balls: 3 cases"
    )
    plan = girih_data3d.read_plan(path)
    assert plan.patch_zyx == (32, 40, 40)  # of 32 x 36 x 40 voxels
    # by hand: a plan that trains in seconds on a CPU
    content = plan.to_json()
    content["encoder"]["kwargs"]["channels"] = [8, 8, 16, 16]
    content["neck"]["kwargs"]["out_channels"] = 16
    content["anchors"]["sizes_zyx_voxels"] = content["anchors"]["sizes_zyx_voxels"][:4]
    path.write_text(json.dumps(content))
    assert (
        main(["prepare", "--data", str(raw), "--out", str(tmp_path / "store"), "--plan", str(path), "--workers", "0"])
        == 0
    )
    store = girih_data3d.Store.open(tmp_path / "store")
    assert store.spec.target_zyx_mm == plan.spacing_zyx_mm
    assert store.spec.record == plan.normalisation
    capsys.readouterr()
    run = Finetune(
        data=tmp_path / "store",
        out=tmp_path / "run",
        plan=str(path),
        recipe=Recipe(steps=1, lr=1e-3),
        augmentation="none",
        training=Training(workers=0, checkpoint_every=1),
    )
    run.run()
    assert "the plan's" not in capsys.readouterr().err  # nothing differs from what it was prepared with
    assert girih_data3d.objects_per_patch(store.index, plan.patch_zyx) == pytest.approx(
        plan.objects_per_patch_p95, abs=0.06
    )


def test_prepare_refuses_what_the_plan_decides(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", "--data", str(raw), "--out", str(tmp_path / "out"), "--plan", "resenc_l"]
    assert main([*arguments, "--spacing-zyx-mm", "1", "1", "1"]) == 2
    assert "--spacing-zyx-mm is given beside --plan resenc_l, which decides it" in capsys.readouterr().err
    assert main([*arguments[:5], "--format-options", "a=b"]) == 2
    assert "options are those of a format" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prepare_and_plan_read_formats(tmp_path: Path, raw: Path) -> None:
    folder = tmp_path / "nnunet" / "imagesTr"
    folder.mkdir(parents=True)
    (folder.parent / "labelsTr").mkdir()
    for number in range(2):
        shutil.copy(raw / f"case{number}.nii.gz", folder / f"b_{number}_0000.nii.gz")
        shutil.copy(raw / f"case{number}_instances.nii.gz", folder.parent / "labelsTr" / f"b_{number}.nii.gz")
    labels = {"background": 0, "ball": 1, "other": 2}
    record = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (folder.parent / "dataset.json").write_text(json.dumps(record))
    options = {"format": "nnunet", "format_options": ("objects=ball",), "workers": 0}
    Prepare(data=folder.parent, out=tmp_path / "store", **options).run()
    assert len(girih_data3d.Store.open(tmp_path / "store").index.boxes) == 2
    PlanCommand(data=folder.parent, out=tmp_path / "plan.json", **options).run()
    assert girih_data3d.read_plan(tmp_path / "plan.json").classes == ("ball",)
