"""The Triton kernels of deformable attention in Triton's interpreter, against plain torch in float64.

Triton obeys TRITON_INTERPRET as it stands when the kernels are imported, so they run in processes of their own.
"""

import ast
import importlib.util
import itertools
import runpy
import sys
from pathlib import Path

import pytest
import torch

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason=f"Triton is not installed (platform {sys.platform})")

DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("attention_cases.py")))
DTYPES, LAUNCH, COMPARABLE = (DEFINITIONS[name] for name in ("DTYPES", "LAUNCH", "COMPARABLE"))
draw, oracle, check, run = (DEFINITIONS[name] for name in ("draw", "oracle", "check", "run"))


torch.manual_seed(0)
SPANNING, SPECIAL = DEFINITIONS["spanning"](), DEFINITIONS["special"]()

INTERPRET = """
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
assert torch.empty(9).isnan().all() and torch.zeros(1).new_empty(9).isnan().all()
settings, found = ops.settings, {}
for name, case in torch.load(sys.argv[1]).items():
    ops.settings = lambda *args: settings(*args) | {"tile": case["tile"]}
    found[name] = launch(case)
    if name.startswith("subsets"):
        found[name]["subsets"] = subsets(case)
torch.save(found, sys.argv[2])
"""


def interpret(cases, folder, before=""):
    """{name: found} of the kernels in the interpreter; `before` is code that goes first."""
    torch.save(cases, folder / "cases.pt")
    run(before + LAUNCH + INTERPRET, folder / "cases.pt", folder / "found.pt", TRITON_INTERPRET="1")
    return torch.load(folder / "found.pt")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return interpret(SPANNING | SPECIAL, tmp_path_factory.mktemp("interpreted"))


@needs_triton
@pytest.mark.parametrize("name", SPANNING)
def test_kernels_agree_with_plain_torch_in_float64(name, interpreted) -> None:
    check(interpreted[name], SPANNING[name])


@needs_triton
@pytest.mark.parametrize("name", COMPARABLE)
def test_hard_inputs_agree_with_plain_torch_in_float64(name, interpreted) -> None:
    check(interpreted[name], SPECIAL[name], scale=COMPARABLE[name])


@needs_triton
def test_far_locations_and_no_numbers_add_exactly_zero(interpreted) -> None:
    found = interpreted["all far away"]
    for part in (found["out"], *found["grads"], *found["fixed"]):
        assert torch.equal(part, torch.zeros_like(part))


@needs_triton
def test_offsets_and_sizes_that_are_no_numbers_have_zero_gradients(interpreted) -> None:
    case, found = SPECIAL["offsets that are no numbers"], interpreted["offsets that are no numbers"]
    clean = dict(case)
    clean["places"] = case["places"].nan_to_num(nan=1e6)
    clean["reference"] = case["reference"].nan_to_num(posinf=1e6)
    want, (of_value, *_, of_logits) = oracle(clean)
    torch.testing.assert_close(found["out"].double(), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["grads"][0].double(), of_value, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["grads"][3].double(), of_logits, rtol=0, atol=1e-5)
    for grad in found["grads"]:
        assert torch.isfinite(grad).all()
    assert (found["grads"][2][case["places"].isnan().any(-1)] == 0).all()
    assert (found["grads"][1][0, 1] == 0).all()


@needs_triton
def test_a_location_at_a_centre_gives_its_voxel(interpreted) -> None:
    assert torch.equal(interpreted["centres"]["out"], SPECIAL["centres"]["value"][:, :, 0])


@needs_triton
def test_coordinates_as_values_give_back_the_location(interpreted) -> None:  # fails if two axes are swapped
    case = SPECIAL["ramp"]
    want = case["places"][:, :, 0, 0, 0] * torch.tensor([7.0, 5, 3]) - 0.5
    torch.testing.assert_close(interpreted["ramp"]["out"], want, rtol=0, atol=5e-6)
    of_locations = interpreted["ramp"]["grads"][1][:, :, 0, 0, 0]
    torch.testing.assert_close(of_locations, case["gradient"] * torch.tensor([7.0, 5, 3]), rtol=1e-4, atol=1e-4)


@needs_triton
def test_the_deterministic_gradient_does_not_depend_on_the_order_of_the_queries(interpreted) -> None:
    ordered, shuffled = interpreted["in order"], interpreted["shuffled"]
    assert torch.equal(ordered["fixed"][0], shuffled["fixed"][0])
    torch.testing.assert_close(ordered["fixed"][0], ordered["grads"][0], rtol=0, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("name", ["a gradient is NaN", "a logit is infinite"])
def test_the_deterministic_gradient_is_nan_where_the_other_would_be(name, interpreted) -> None:
    found = interpreted[name]
    assert found["grads"][0][0].isnan().any()
    assert found["fixed"][0][0].isnan().all()
    for kind in ("grads", "fixed"):  # and nowhere in the other item
        assert found[kind][0][1].isfinite().all()
        assert found[kind][0][1].any()


@needs_triton
def test_every_batch_item_has_a_scale_of_its_own(interpreted) -> None:
    case, found = SPECIAL["unlike items"], interpreted["unlike items"]
    _, (of_value, *_) = oracle(case)
    for kind in ("grads", "fixed"):
        for got, want in zip(found[kind][0].double(), of_value, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * want.abs().max().item())


@needs_triton
@pytest.mark.parametrize("name", ["no queries", "no batch"])
def test_nothing_gives_nothing(name, interpreted) -> None:
    found, case = interpreted[name], SPECIAL[name]
    assert found["out"].shape == case["gradient"].shape
    for kind in ("grads", "fixed"):
        assert torch.equal(found[kind][0], torch.zeros_like(case["value"]))
        assert [grad.numel() for grad in found[kind][-2:]] == [case["places"].numel(), case["scores"].numel()]


@needs_triton
@pytest.mark.parametrize("form", [0, 6])
def test_gradients_that_are_not_needed_are_none_and_the_others_stay(form, interpreted) -> None:
    found = interpreted[f"subsets {form}"]
    assert len(found["subsets"]) == (6 if form == 0 else 10)
    for needs, grads in found["subsets"].items():
        for wanted, got, want in zip(needs, grads, found["grads"], strict=True):
            assert torch.equal(got, want) if wanted else got is None


HUGE = """
import numpy
from girih_detectors.ops.deformable_attention_kernels import attend_backward

def zeros(*shape, dtype):  # memory that is never touched is never there
    return torch.from_numpy(numpy.zeros(shape, dtype))

def case(batch, shape):
    value = zeros(batch, shape[0] * shape[1] * shape[2], 2, 64, dtype=numpy.float16)
    value[-1, 0], value[-1, -1] = 3, 5
    places = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1, 1).expand(batch, 2, 2, 1, 1, 3).contiguous()
    return value, (shape,), places, torch.ones(batch, 2, 2, 1, 1, dtype=torch.float16)

# more numbers than 2**31 in one item; the corner of a volume keeps an eighth of its voxel
value, shapes, places, scores = case(1, (257, 256, 256))
print(value[0].numel() > 2**31, ops.forward(value, shapes, places, scores)[0, :, ::127].tolist())
buffer = zeros(*value.shape, dtype=numpy.float32)
gradient = torch.ones(1, 2, 128, dtype=torch.float16)
others = torch.empty_like(places), torch.empty_like(scores)
inputs = gradient, value, places, scores, None, None
ops._launch(attend_backward, "backward", (buffer, *others, None, *inputs), value, shapes, None, places)
print(buffer[0, 0, 0, 0].item(), buffer[0, -1, 1, 63].item(), buffer[0, 12345].sum().item())
# and with 2**31 before the last item
value, shapes, places, scores = case(3, (64, 512, 256))
print(value[:2].numel() == 2**31, ops.forward(value, shapes, places, scores)[:, :, 0].tolist())
"""


@needs_triton
def test_more_numbers_than_32_bits_can_count() -> None:
    one, buffer, three = run(LAUNCH + HUGE, TRITON_INTERPRET="1").splitlines()
    assert one == "True [[0.375, 0.375], [0.625, 0.625]]"
    assert buffer == "0.125 0.125 0.0"
    assert three == "True [[0.0, 0.0], [0.0, 0.0], [0.375, 0.625]]"


KERNELS = Path(importlib.util.find_spec("girih_detectors").origin).parent / "ops" / "deformable_attention_kernels.py"


@needs_triton
def test_whatever_is_loaded_is_widened_at_once(tmp_path) -> None:
    """All loads go through `_read`; without its cast the bfloat16 cases fail, so the tests above would see it go."""
    source = KERNELS.read_text()
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert calls.count("tl.load") == 1
    widened = "return tl.load(pointer, mask=mask, other=0.0).to(real)"
    assert source.count(widened) == 1
    mutant = tmp_path / "mutant.py"
    mutant.write_text(source.replace(widened, widened.removesuffix(".to(real)")))
    replace = f"""
import importlib.util, sys
import girih_detectors.ops
name = "girih_detectors.ops.deformable_attention_kernels"
spec = importlib.util.spec_from_file_location(name, {str(mutant)!r})
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
"""
    cases = {"bfloat16": draw(torch.bfloat16, 0, 1, 4, 1, 8, 1, 1)}
    found = interpret(cases, tmp_path, before=replace)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(found["bfloat16"], cases["bfloat16"])


def matrix(name, form):
    """{name: case}: channels, levels and points crossed, one and two batch items in turn, queries that fill no tile."""
    found = {}
    for number, (channels, levels, points) in enumerate(itertools.product((8, 12, 16, 32, 64), (1, 2, 3, 4), (1, 4))):
        batch = 1 + (number // 2) % 2
        key = f"B{batch} C{channels} L{levels} P{points}"
        found[key] = draw(DTYPES[name], form, batch, 19, 1, channels, levels, points, tile=32)
    return found


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize("form", [0, 3, 6])
@pytest.mark.parametrize("name", DTYPES)
def test_the_whole_matrix_agrees_with_plain_torch_in_float64(name, form, tmp_path) -> None:
    cases = matrix(name, form)
    found = interpret(cases, tmp_path)
    for key, case in cases.items():
        check(found[key], case)
