"""What the tests and `benchmarks/detection.py` hold the package against, loaded by path, and boxes to do it with."""

import torch
from torch import Tensor

from girih_detectors import AnchorGrid, iou, pairwise_iou


def greedy_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """NMS as it is written down: the best box stays, all of its class that it overlaps fall, then the next."""
    rest, kept = scores.argsort(descending=True, stable=True), []
    while len(rest) > 0:
        best, rest = int(rest[0]), rest[1:]
        kept.append(best)
        falls = (iou(boxes[best], boxes[rest]) > threshold) & (labels[rest] == labels[best])
        rest = rest[~falls]
    return torch.tensor(kept, dtype=torch.int64)


def atss(boxes: Tensor, grid: AnchorGrid, anchors: Tensor, k: int = 4) -> tuple[Tensor, Tensor]:
    """ATSS as it is written down, by every distance and every IoU: anchors, ascending, and the object of each.

    Ties and orphans as `girih_detectors.atss` says. `anchors` are all boxes of the grid, in the precision of `boxes`.
    """
    overlap = pairwise_iou(boxes, anchors)
    middle, centre = (0.5 * (b[:, :3] + b[:, 3:]) for b in (boxes, anchors))
    distance = (middle[:, None] - centre[None]).pow(2).sum(-1)
    owner, best = torch.full((len(anchors),), -1), torch.zeros(len(anchors), dtype=overlap.dtype)
    candidates = []
    for row in range(len(boxes)):
        index, start = [], 0
        for of_level in distance[row].split(list(grid.level_lengths)):
            farthest = of_level.topk(min(k * grid.per_cell, len(of_level)), largest=False).values.max()
            near = (of_level <= farthest).nonzero()[:, 0]
            index.append(start + near[of_level[near].argsort(stable=True)][: k * grid.per_cell])
            start += len(of_level)
        mine = torch.cat(index)
        candidates.append(mine)
        values = overlap[row, mine]
        threshold = values.mean() + (values.std() if len(mine) > 1 else 0)
        claimed = mine[(values >= threshold) & (values > best[mine])]  # 0 claims nothing; the first of equals has it
        owner[claimed], best[claimed] = row, overlap[row, claimed]
    for row in sorted(set(range(len(boxes))) - set(owner.tolist())):
        free = [i for i in candidates[row].tolist() if owner[i] < 0]
        side, sides = (torch.nn.functional.pad(b[:, 3:] - b[:, :3], (3, 0)) for b in (boxes[row, None], anchors[free]))
        shape = dict(zip(free, iou(side, sides).tolist(), strict=True))
        rank = {i: (-overlap[row, i].item(), distance[row, i].item(), -shape[i], i) for i in free}
        if free:
            owner[min(free, key=rank.__getitem__)] = row
    found = (owner >= 0).nonzero()[:, 0]
    return found, owner[found]


def crowd(n: int, seed: int, spread: float, classes: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes with sides of 2 to 10 that start within `spread`, scores with many ties, labels."""
    generator = torch.Generator().manual_seed(seed)
    low = spread * torch.rand(n, 3, generator=generator)
    boxes = torch.cat([low, low + 2 + 8 * torch.rand(n, 3, generator=generator)], dim=1)
    scores = torch.randint(0, 50, (n,), generator=generator) / 50
    return boxes, scores, torch.randint(0, classes, (n,), generator=generator)


def weighted_clusters(
    boxes: Tensor, scores: Tensor, labels: Tensor, weights: Tensor, threshold: float, expected: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted box clustering as it is written down, in float64: boxes, scores and labels, by descending score."""
    points, given, trust = boxes.double(), scores.double(), weights.double()
    rest, found = scores.argsort(descending=True, stable=True), []
    while len(rest) > 0:
        overlap = iou(points[rest[0]], points[rest])
        overlap[0] = 1.0
        inside = (overlap > threshold) & (labels[rest] == labels[rest[0]])
        inside[0] = True
        members, a = rest[inside], overlap[inside] * trust[rest[inside]]
        missing = max(0, expected - len(members))
        score = (a * given[members]).sum() / (a.sum() + missing * a.mean())
        box = ((a * given[members])[:, None] * points[members]).sum(0) / (a * given[members]).sum()
        found.append((score, box, labels[rest[0]]))
        rest = rest[~inside]
    found.sort(key=lambda cluster: -float(cluster[0]))  # stable
    if not found:
        return points, given, labels
    scores, boxes, labels = (torch.stack(column) for column in zip(*found, strict=True))
    return boxes, scores, labels
