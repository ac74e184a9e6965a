"""The set loss against an implementation in float64, one query after the other; and what must not change it."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from girih_detectors import LayerOutput, SetLoss, set_loss
from girih_detectors.set_loss import too_many_objects

PATCH = (16, 24, 32)
DEFAULT = SetLoss()


def judge(layers, targets, loss=DEFAULT):
    """The loss of decoder layers and, if the last says what is usable, of proposals."""
    *decoded, last = layers
    decoded, proposed = (layers, None) if last.usable is None else (decoded, last)
    return loss(decoded, proposed, targets, PATCH)


def layer(batch, queries, classes=2, seed=0, usable=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, classes, generator=generator) - 1
    boxes = 0.2 + 0.5 * torch.rand(batch, queries, 6, generator=generator)
    mask = torch.rand(batch, queries, generator=generator) < 0.7 if usable else None
    return LayerOutput(logits.requires_grad_(), boxes.requires_grad_(), mask)


def target(objects, seed=0, classes=2):
    generator = torch.Generator().manual_seed(1000 + seed)
    size = torch.tensor(PATCH)
    low = torch.rand(objects, 3, generator=generator) * size * 0.5
    high = low + 2 + torch.rand(objects, 3, generator=generator) * (size * 0.5 - 2)
    labels = torch.randint(classes, (objects,), generator=generator)
    return {"boxes": torch.cat([low, high], 1), "labels": labels}


def reference(layers, targets, loss=DEFAULT):
    """{part: float64 scalar with gradient}: for each layer, image and query; every assignment is tried."""
    number = max(1, sum(len(t["labels"]) for t in targets))
    parts = {}
    for logits, boxes, usable, _ in layers:
        prefix = "" if usable is None else "encoder_"
        for image, truth in enumerate(targets):
            rows = [q for q in range(logits.shape[1]) if usable is None or usable[image, q]]
            objects = [centre(box) for box in truth["boxes"].double()]
            costs = [
                [cost(logits[image, q].tolist(), boxes[image, q].double().detach(), box, int(c), loss) for q in rows]
                for box, c in zip(objects, truth["labels"], strict=True)
            ]
            pairs = {rows[j]: i for i, j in cheapest(costs, len(rows))}
            for q in rows:
                for c in range(logits.shape[2]):
                    positive = q in pairs and int(truth["labels"][pairs[q]]) == c
                    term = loss.classification * focal(logits[image, q, c].double(), positive, loss)
                    parts[f"{prefix}classification"] = parts.get(f"{prefix}classification", 0) + term / number
            for q, i in pairs.items():
                l1 = sum(abs(boxes[image, q, a].double() - objects[i][a]) for a in range(6))
                misfit = 1 - overlap(boxes[image, q].double(), objects[i])
                parts[f"{prefix}l1"] = parts.get(f"{prefix}l1", 0) + loss.l1 * l1 / number
                parts[f"{prefix}giou"] = parts.get(f"{prefix}giou", 0) + loss.giou * misfit / number
    return parts


def centre(box):
    size = torch.tensor(PATCH, dtype=torch.float64)
    return torch.cat([(box[:3] + box[3:]) / 2 / size, (box[3:] - box[:3]) / size])


def focal(x, positive, loss):
    p = 1 / (1 + torch.exp(-x))
    if positive:
        return -loss.alpha * (1 - p) ** loss.gamma * torch.log(p)
    return -(1 - loss.alpha) * p**loss.gamma * torch.log(1 - p)


def cost(logits, box, wanted, label, loss):
    p = float(1 / (1 + math.exp(-logits[label])))
    like = loss.alpha * (1 - p) ** loss.gamma * -math.log(p + 1e-8)
    unlike = (1 - loss.alpha) * p**loss.gamma * -math.log(1 - p + 1e-8)
    l1 = float((box - wanted).abs().sum())
    value = loss.cost_classification * (like - unlike) + loss.cost_l1 * l1
    return value - loss.cost_giou * float(overlap(box, wanted))


def overlap(a, b):
    shared, union, hull = 1.0, 0.0, 1.0
    for axis in range(3):
        ends = [(x[axis] - x[axis + 3] / 2, x[axis] + x[axis + 3] / 2) for x in (a, b)]
        shared = shared * (min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0])).clamp(min=0)
        hull = hull * (max(ends[0][1], ends[1][1]) - min(ends[0][0], ends[1][0]))
    union = a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared
    return shared / union - (hull - union) / hull


def cheapest(costs, queries):
    """Pairs (object, query) of the least total."""
    n = len(costs)
    if n <= queries:
        every = [list(enumerate(chosen)) for chosen in permutations(range(queries), n)]
    else:
        every = [[(i, j) for j, i in enumerate(chosen)] for chosen in permutations(range(n), queries)]
    return min(every, key=lambda pairs: sum(costs[i][j] for i, j in pairs))


def gradients(loss, layers):
    inputs = [x for each in layers for x in each[:2]]
    return torch.autograd.grad(loss, inputs, retain_graph=True)  # fails where one is not in the graph


def assert_same(found, want, layers):
    for name, value in found.items():
        if name != "loss":
            other = torch.as_tensor(want.get(name, 0.0)).double().detach()
            torch.testing.assert_close(value.double(), other, rtol=1e-5, atol=1e-6)
            assert not value.requires_grad
    torch.testing.assert_close(found["loss"].detach(), sum(v for k, v in found.items() if k != "loss"))
    total = sum(want.values()) + sum(0.0 * x.sum() for each in layers for x in each[:2])
    for mine, other in zip(gradients(found["loss"], layers), gradients(total, layers), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 2), st.integers(0, 999))
def test_the_loss_is_that_of_one_query_after_the_other(objects, queries, classes, seed) -> None:
    b = len(objects)
    layers = [layer(b, queries, classes, seed), layer(b, queries, classes, seed + 1)]
    layers.append(layer(b, 5, classes, seed + 2, usable=True))
    targets = [target(n, seed + image, classes) for image, n in enumerate(objects)]
    assert_same(judge(layers, targets), reference(layers, targets), layers)


def test_other_settings() -> None:
    loss = SetLoss(2.0, 0.25, 2.0, 3.0, 1.5, 0.5, 1.0, 4.0)
    layers, targets = [layer(2, 4), layer(2, 5, seed=1)], [target(2), target(3, 1)]
    assert_same(judge(layers, targets, loss), reference(layers, targets, loss), layers)


def test_loss_by_hand() -> None:
    # one object, the whole patch but for half of z; the query says all of the patch at p = 1/2, the other p = 1/5
    truth = {"boxes": torch.tensor([[0.0, 0, 0, 8, 24, 32]]), "labels": torch.tensor([0])}
    logits = torch.tensor([[[0.0], [-math.log(4.0)]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 1, 1, 1], [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]]])
    found = judge([LayerOutput(logits, boxes)], [truth])
    classification = 0.75 * 0.5 * math.log(2) + 0.25 * 0.2 * math.log(1.25)
    assert found["classification"].item() == pytest.approx(classification)
    assert found["l1"].item() == pytest.approx(5 * (0.25 + 0.5))
    assert found["giou"].item() == pytest.approx(2 * (1 - 0.5))
    assert set(found) == {"loss", "classification", "l1", "giou"}


def test_derivative_against_differences() -> None:  # the loss computes in float32: coarse steps
    layers, targets = [layer(2, 4), layer(2, 6, seed=1, usable=True)], [target(2), target(1, 1)]
    inputs = [x.detach().double().requires_grad_() for each in layers for x in each[:2]]

    def total(*parts):
        again = [LayerOutput(parts[0], parts[1]), LayerOutput(parts[2], parts[3], layers[1].usable)]
        return judge(again, targets)["loss"].double()

    assert torch.autograd.gradcheck(total, inputs, eps=1e-4, atol=2e-2, rtol=1e-2)


def test_the_order_of_objects_and_of_queries_does_not_matter() -> None:
    layers, targets = [layer(2, 7), layer(2, 9, seed=1, usable=True)], [target(4), target(3, 1)]
    want = judge(layers, targets)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        turned = []
        for truth in targets:
            order = torch.randperm(len(truth["labels"]), generator=generator)
            turned.append({name: rows[order] for name, rows in truth.items()})
        orders = [torch.randperm(each.logits.shape[1], generator=generator) for each in layers]
        mixed = [
            LayerOutput(*(part if part is None else part[:, order] for part in each))
            for each, order in zip(layers, orders, strict=True)
        ]
        found = judge(mixed, turned)
        for name in want:
            torch.testing.assert_close(found[name], want[name])


def test_an_image_without_objects_adds_its_background_only() -> None:
    layers, targets = [layer(2, 4), layer(2, 6, seed=1, usable=True)], [target(2), target(1, 1)]
    more = [LayerOutput(*(None if x is None else x[:1] for x in each)) for each in layers]
    joined = [
        LayerOutput(*(None if a is None else torch.cat([a, b]) for a, b in zip(each, extra, strict=True)))
        for each, extra in zip(layers, more, strict=True)
    ]
    alone = judge(layers, targets)
    with_empty = judge(joined, [*targets, target(0)])
    background = judge(more, [target(0)])  # over 1, not over the 3 objects of the others
    for name in alone:
        if name.endswith("classification"):
            torch.testing.assert_close(with_empty[name], alone[name] + background[name] / 3)
        elif name != "loss":
            torch.testing.assert_close(with_empty[name], alone[name])
            assert background[name] == 0


def test_an_object_told_twice_takes_a_second_query() -> None:
    layers, truth = [layer(1, 5)], target(1)
    twice = {name: torch.cat([rows, rows]) for name, rows in truth.items()}
    assert_same(judge(layers, [twice]), reference(layers, [twice]), layers)


def test_all_twice_is_the_same_loss() -> None:  # queries too: then each copy has a query as good as the first's
    layers, targets = [layer(2, 5), layer(2, 6, seed=1, usable=True)], [target(2), target(3, 1)]
    twice = [LayerOutput(*(None if x is None else torch.cat([x, x], 1) for x in each)) for each in layers]
    truth = [{name: torch.cat([rows, rows]) for name, rows in each.items()} for each in targets]
    want, found = judge(layers, targets), judge(twice, truth)
    for name in want:
        torch.testing.assert_close(found[name], want[name])


def test_without_objects_every_output_has_a_gradient() -> None:
    layers = [layer(2, 4), layer(2, 6, seed=1, usable=True)]
    found = judge(layers, [target(0), target(0)])
    (logits, boxes, proposals, sides) = gradients(found["loss"], layers)
    assert (logits > 0).all()
    assert torch.equal(proposals > 0, layers[1].usable[..., None].expand_as(proposals))
    assert not boxes.any()
    assert not sides.any()


def test_what_is_not_usable_may_be_anything() -> None:
    usable = torch.tensor([[True, False, True]])
    spoilt, sound = layer(1, 3, seed=3), layer(1, 3, seed=3)
    with torch.no_grad():
        spoilt.logits[0, 1] = math.inf
        spoilt.boxes[0, 1] = math.nan
    decoder, truth = layer(1, 2), [target(2)]
    found = judge([decoder, spoilt._replace(usable=usable)], truth)
    want = judge([decoder, sound._replace(usable=usable)], truth)
    assert found["loss"] == want["loss"]
    for gradient in gradients(found["loss"], [spoilt]):
        assert gradient.isfinite().all()
        assert not gradient[0, 1].any()


def test_more_objects_than_queries() -> None:
    # the query fits the second object exactly and the others badly: that is the one it learns
    truth = {
        "boxes": torch.tensor([[0.0, 0, 0, 2, 3, 4], [4, 6, 8, 12, 18, 24], [14, 21, 28, 16, 24, 32]]),
        "labels": torch.tensor([0, 1, 0]),
    }
    logits, boxes = torch.zeros(1, 1, 2, requires_grad=True), torch.tensor([[[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]])
    found = judge([LayerOutput(logits, boxes)], [truth])
    assert found["l1"] == 0
    assert found["giou"].item() == pytest.approx(0)
    # alpha (1 - p) log 2 of the right class, (1 - alpha) p log 2 of the other, over three objects
    assert found["classification"].item() == pytest.approx((0.75 + 0.25) * 0.5 * math.log(2) / 3)
    found["loss"].backward()
    assert logits.grad[0, 0, 1] < 0 < logits.grad[0, 0, 0]


def test_the_warning_names_the_numbers_and_the_field() -> None:
    targets = [target(2), {**target(5, 1), "case_id": "lung_3"}, target(4, 2)]
    assert too_many_objects(targets, 5, 5) is None
    message = too_many_objects(targets, 3, 3)
    assert "target 1 (case 'lung_3') has 5 objects, the detector 3 queries" in message
    assert "`queries` should be at least 5" in message
    message = too_many_objects(targets, 3, 12)  # more queries would not help
    assert "should have at least 5 usable voxels of memory" in message
    assert "no room for `queries` = 12" in message


@pytest.mark.parametrize("counts", [(3, 1, 0, 2), (0, 0, 1, 0), (0, 0, 0, 0)])
def test_two_processes_equal_one(counts, monkeypatch) -> None:
    layers = [layer(4, 5), layer(4, 7, seed=1, usable=True)]
    targets = [target(n, image) for image, n in enumerate(counts)]
    joined = judge(layers, targets)["loss"]
    monkeypatch.setattr(set_loss, "world_size", lambda: 2)
    told = []
    monkeypatch.setattr(set_loss, "mean_over_ranks", lambda x: told.append(x.item()) or torch.tensor(sum(counts) / 2))
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        mine = [LayerOutput(*(None if x is None else x[half] for x in each)) for each in layers]
        halves.append(judge(mine, targets[half])["loss"])
    assert told == [sum(counts[:2]), sum(counts[2:])]
    both = (halves[0] + halves[1]) / 2  # DistributedDataParallel's mean
    torch.testing.assert_close(both, joined)
    for found, want in zip(gradients(both, layers), gradients(joined, layers), strict=True):
        torch.testing.assert_close(found, want)


def test_float32_under_autocast() -> None:
    layers, targets = [layer(1, 4), layer(1, 6, seed=1, usable=True)], [target(2)]
    half = [LayerOutput(x.logits.bfloat16(), x.boxes.bfloat16(), x.usable) for x in layers]
    exact = [LayerOutput(x.logits.float(), x.boxes.float(), x.usable) for x in half]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = judge(half, targets)
    want = judge(exact, targets)
    assert {value.dtype for value in found.values()} == {torch.float32}
    for name in want:
        assert torch.equal(found[name], want[name])


@pytest.mark.parametrize("objects", [(1, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["logits", "boxes"])
def test_outputs_that_are_not_finite_are_named(what, value, objects) -> None:  # also a class that no object has
    sound, broken = layer(2, 3), layer(2, 5, usable=True)
    query = int(broken.usable[1].nonzero()[0])
    with torch.no_grad():
        getattr(broken, what)[1, query, 1] = value
    targets = [{**target(n), "labels": torch.zeros(n).long(), "case_id": f"c{n}"} for n in objects]
    with pytest.raises(ValueError, match=rf"target 1 \(case 'c{objects[1]}'\), layer 1: .*not finite"):
        judge([sound, broken], targets)


def test_nothing_is_taught_where_nobody_knows_what_there_is() -> None:
    """By hand: three queries on a patch whose last half along x is not valid, one there answers for the object."""
    valid = torch.ones(PATCH, dtype=torch.bool)
    valid[:, :, 16:] = False
    truth = {"boxes": torch.tensor([[4.0, 6, 20, 12, 18, 28]]), "labels": torch.tensor([0]), "valid": valid}
    logits = torch.tensor([[[0.0], [0.0], [0.0]]], requires_grad=True)
    rows = [[0.5, 0.5, 0.75, 0.5, 0.5, 0.25], [0.5, 0.5, 15.9 / 32, 1, 1, 1], [0.5, 0.5, 16.1 / 32, 1, 1, 1]]
    found = judge([LayerOutput(logits, torch.tensor([rows]))], [truth])
    assert found["classification"].item() == pytest.approx((0.75 + 0.25) * 0.5 * math.log(2))
    found["loss"].backward()
    assert (logits.grad != 0).flatten().tolist() == [True, True, False]


def test_a_layer_may_say_itself_what_is_background() -> None:
    logits = torch.zeros(1, 3, 1, requires_grad=True)
    truth = {**target(0), "valid": torch.zeros(PATCH, dtype=torch.bool)}
    told = LayerOutput(logits, torch.full((1, 3, 6), 0.5), background=torch.tensor([[True, False, True]]))
    judge([told], [truth])["loss"].backward()
    assert (logits.grad != 0).flatten().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("field", "value"), [("gamma", -1.0), ("alpha", 1.5), ("l1", math.nan), ("cost_giou", math.inf), ("giou", -0.1)]
)
def test_settings_that_make_no_sense_are_refused(field, value) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        SetLoss(**{field: value})
