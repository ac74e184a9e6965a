"""Greedy NMS of ranked boxes in Triton; `nms.py` is its reference and imports it when first wanted.

    bit j of word w of row i = (64 w + j > i) and (label_i == label_j) and (IoU(i, 64 w + j) > threshold)
    box i stays = no box before it that stays has its bit

64 ranks make a word, `panel_words` words a panel. Panel after panel goes through three kernels: `_compare` writes the
bits of its rows, `_decide` runs the greedy loop inside it, `_spread` strikes out what it suppresses behind it. The bits
take 256 n bytes instead of n^2 / 8 (25 MB for 100,000 boxes), one set of compiled kernels serves all n, and nothing
goes through the host.

The IoU is rounded as torch rounds it: no fused multiply-add (`enable_fp_fusion=False`), division to nearest.
"""

# Triton takes annotations of a kernel's parameters for its own
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from .boxes import TINY

ROWS = 16  # rows of one program of `_compare`
WIDTH = 32  # words of one program of `_spread`: one a thread
PANEL_WORDS = 32  # one word a thread of `_decide`, whose single warp needs no barrier
LIMIT = 2**26  # with as many boxes a panel has 2**31 words of bits, and the kernels count in 32 bits

INTERPRETED: bool = triton.knobs.runtime.interpret  # what the decorators below obey, as it was at this import


@triton.jit(do_not_specialize=["n", "words", "first_word"])
def _compare(corners, labels, bits, n, words, first_word, threshold, tiny: tl.constexpr, rows: tl.constexpr):
    word = first_word + tl.program_id(0)
    local = tl.program_id(1) * rows + tl.arange(0, rows)
    row = first_word * 64 + local
    bit = tl.arange(0, 64)
    column = word * 64 + bit
    shared = tl.full([rows, 64], 1.0, tl.float32)
    row_volume = tl.full([rows], 1.0, tl.float32)
    column_volume = tl.full([64], 1.0, tl.float32)
    for axis in tl.static_range(3):
        row_low = tl.load(corners + axis * n + row, mask=row < n, other=0.0)
        row_high = tl.load(corners + (axis + 3) * n + row, mask=row < n, other=0.0)
        column_low = tl.load(corners + axis * n + column, mask=column < n, other=0.0)
        column_high = tl.load(corners + (axis + 3) * n + column, mask=column < n, other=0.0)
        side = tl.minimum(row_high[:, None], column_high[None, :]) - tl.maximum(row_low[:, None], column_low[None, :])
        shared = shared * tl.maximum(side, 0.0)
        row_volume = row_volume * (row_high - row_low)
        column_volume = column_volume * (column_high - column_low)
    union = row_volume[:, None] + column_volume[None, :] - shared
    union = tl.where(union < tiny, tiny, union)  # unlike maximum() it leaves NaN alone, and NaN suppresses nothing
    row_label = tl.load(labels + row, mask=row < n, other=0)
    column_label = tl.load(labels + column, mask=column < n, other=0)
    hit = (tl.div_rn(shared, union) > threshold) & (row_label[:, None] == column_label[None, :])
    hit = hit & (column[None, :] > row[:, None]) & (column[None, :] < n)
    single = tl.full([64], 1, tl.int64) << bit.to(tl.int64)
    packed = tl.sum(tl.where(hit, single[None, :], tl.zeros([rows, 64], tl.int64)), axis=1)
    tl.store(bits + local * words + word, packed)


@triton.jit(do_not_specialize=["words", "first_word", "steps"])
def _decide(bits, removed, kept, words, first_word, steps, panel_words: tl.constexpr):
    lane = tl.arange(0, panel_words)
    gone = tl.load(removed + first_word + lane, mask=lane < steps, other=-1)
    one = tl.full([], 1, tl.int64)
    step = 0
    while step < steps:  # range(steps) fails in the interpreter of Triton 3.6 beside NumPy 2.4
        fallen = tl.sum(tl.where(lane == step, gone, tl.zeros_like(gone)))
        stays = tl.full([], 0, tl.int64)
        for start in range(0, 64, 16):
            for offset in tl.static_range(16):
                i = start + offset
                # loaded whether it is wanted or not: so no load waits for the decision before it
                at = bits + (step * 64 + i) * words + first_word
                strikes = tl.load(at + lane, mask=(lane >= step) & (lane < steps), other=0)
                own = tl.load(at + step)
                chosen = ((fallen >> i) & 1) - 1  # all bits set if the box stays, none if it has fallen
                stays = stays | (chosen & (one << i))
                fallen = fallen | (chosen & own)
                gone = gone | (chosen & strikes)
        tl.store(kept + first_word + step, stays)
        step += 1


@triton.jit(do_not_specialize=["words", "first_word", "behind"])
def _spread(bits, removed, kept, words, first_word, behind, width: tl.constexpr):
    step = tl.program_id(0)
    word = behind + tl.program_id(1) * width + tl.arange(0, width)
    stays = tl.load(kept + first_word + step)
    strikes = tl.zeros([width], tl.int64)
    for start in range(0, 64, 16):
        for offset in tl.static_range(16):
            i = start + offset
            wanted = ((stays >> i) & 1) != 0
            strikes = strikes | tl.load(bits + (step * 64 + i) * words + word, mask=(word < words) & wanted, other=0)
    tl.atomic_or(removed + word, strikes, mask=word < words, sem="relaxed")


def greedy_stays(
    corners: Float32[Tensor, "6 n"], labels: Int64[Tensor, " n"], threshold: float, panel_words: int = PANEL_WORDS
) -> Bool[Tensor, " n"]:
    """Return which of the boxes stay; column i of `corners` ranks before column i + 1.

    Args:
        corners: contiguous (z0, y0, x0, z1, y1, x1), on a CUDA device or, under the interpreter, anywhere.
        labels: class of each box.
        threshold: a float32 number in [0, 1]; a box falls at IoU > threshold.
        panel_words: words per panel, a power of two up to 32; changes the speed, never the answer.

    Raises:
        ValueError: 2**26 boxes or more.
    """
    n = len(labels)
    if n >= LIMIT:
        raise ValueError(f"{n} boxes, the Triton NMS takes fewer than {LIMIT}; backend 'torch' takes any number")
    if n == 0:
        return torch.zeros(0, dtype=torch.bool, device=corners.device)
    words = triton.cdiv(n, 64)
    removed = torch.zeros(words, dtype=torch.int64, device=corners.device)
    kept = torch.empty_like(removed)
    bits = torch.empty((min(panel_words, words) * 64, words), dtype=torch.int64, device=corners.device)
    with torch.cuda.device(corners.get_device()):  # a launch goes to the current device; -1, the CPU, changes nothing
        for first in range(0, words, panel_words):
            steps = min(panel_words, words - first)
            behind = first + steps
            _compare[(words - first, steps * 64 // ROWS)](
                corners, labels, bits, n, words, first, threshold, TINY, ROWS, num_warps=4, enable_fp_fusion=False
            )
            _decide[(1,)](bits, removed, kept, words, first, steps, panel_words, num_warps=1)
            if behind < words:
                _spread[(steps, triton.cdiv(words - behind, WIDTH))](
                    bits, removed, kept, words, first, behind, WIDTH, num_warps=1
                )
    every = torch.arange(64, device=corners.device)
    return ((kept[:, None] >> every) & 1).bool().flatten()[:n]
