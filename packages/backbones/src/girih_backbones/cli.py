"""The command line: girih-backbones inspect | convert | describe."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from girih_backbones.counting import count
from girih_backbones.described import PRESETS
from girih_backbones.descriptions import make_encoder, make_neck, preset
from girih_backbones.export import export_nnunet
from girih_backbones.pyramid import FeaturePyramid
from girih_backbones.report import short_description
from girih_backbones.weights import Weights, read_weights, write_weights

SUFFIXES = (".safetensors", ".pth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line about what is wrong with the input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"girih-backbones: {error}\n")
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="girih-backbones", description="Encoders and their weights.")
    commands = parser.add_subparsers(required=True, metavar="inspect | convert | describe")
    look = commands.add_parser("inspect", help="say what is in a weights file or checkpoint")
    look.add_argument("file", help="path, or hf://owner/name@revision/file")
    look.add_argument("--json", action="store_true", help="print the header as JSON")
    look.set_defaults(run=_inspect)
    other = commands.add_parser("convert", help="write a weights file or checkpoint in another structure")
    other.add_argument("file", help="path, or hf://owner/name@revision/file")
    other.add_argument("out", type=Path, help=".safetensors, or .pth for nnU-Net's structure")
    other.add_argument("--stem", help="for .pth: the dataset whose stem is loaded by default")
    other.set_defaults(run=_convert)
    about = commands.add_parser("describe", help="say what a published encoder is and costs")
    about.add_argument("preset", choices=PRESETS)
    about.add_argument("--patch", type=int, nargs=3, default=(128, 128, 128), metavar=("Z", "Y", "X"), help="voxels")
    about.add_argument("--channels", type=int, default=1, help="of the image; default: 1")
    about.add_argument("--neck", choices=("UNetDecoder", "UFPN"), help="count this neck too")
    about.set_defaults(run=_describe)
    return parser


def _inspect(options: argparse.Namespace) -> int:
    weights = read_weights(options.file)
    sys.stdout.write(json.dumps(weights.header, indent=1) + "\n" if options.json else _summary(weights))
    return 0


def _convert(options: argparse.Namespace) -> int:
    if options.out.suffix not in SUFFIXES:
        raise ValueError(f"{options.out}: suffix is {options.out.suffix!r}; wanted one of {', '.join(SUFFIXES)}")
    if options.stem is not None and options.out.suffix != ".pth":
        raise ValueError("--stem: found with .safetensors, which keeps every stem; wanted with .pth")
    weights = read_weights(options.file)
    left: tuple[str, ...] = ()
    if options.out.suffix == ".pth":
        left = export_nnunet(options.out, weights, stem=options.stem)
    else:
        write_weights(options.out, weights)
    sys.stdout.write(f"{options.out}: {len(weights.tensors.keys() - set(left))} tensors\n")
    sys.stdout.write("".join(f"note: {line}\n" for line in weights.header.get("notes", ())))
    if left:
        sys.stdout.write(f"left out, as nnU-Net's structure has no place for them: {', '.join(left)}\n")
    return 0


def _describe(options: argparse.Namespace) -> int:
    description = preset(options.preset)
    with torch.device("meta"):
        encoder = make_encoder(description, options.channels)
        necks = [] if options.neck is None else [make_neck({"class": options.neck, "kwargs": {}}, encoder)]
    counts = count(FeaturePyramid(encoder, *necks) if necks else encoder, options.patch)
    kwargs = description["kwargs"]
    depth = kwargs["blocks" if "blocks" in kwargs else "convs"]
    patch = " x ".join(str(size) for size in options.patch)
    lines = [
        f"{options.preset}: {description['class']}{' + ' + options.neck if options.neck else ''}",
        f"channels              {', '.join(map(str, encoder.channels))}",
        f"strides (z, y, x)     {', '.join('x'.join(map(str, stride)) for stride in encoder.strides)}",
        f"{'blocks' if 'blocks' in kwargs else 'convolutions':<21} {', '.join(map(str, depth))}",
        f"parameters            {counts.parameters:,}",
        f"for one image of {options.channels} channel(s), {patch} voxels, forward:",
        f"activations           {counts.activations:,}",
        f"multiply-accumulates  {counts.multiply_accumulates / 1e9:,.1f} G",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _summary(weights: Weights) -> str:
    header = weights.header
    lines = [
        f"file             {weights.path}",
        f"encoder          {short_description(header['encoder'])}, for {header['in_channels']} channels",
        f"neck             {short_description(header['neck']) if header['neck'] else 'none'}",
        f"stems            {', '.join(f'{name} ({n})' for name, n in header['stems'].items()) or 'none'}",
        f"parameters       {sum(t.numel() for t in weights.tensors.values()):,} in {len(weights.tensors)} tensors",
    ]
    for field in ("patch_zyx", "spacing_zyx_mm", "normalisation", "modality", "objective", "steps", "source"):
        value = header[field]
        lines.append(f"{field:<16} {'unknown' if value is None else value}")
    lines.append(f"versions         {', '.join(f'{name} {v}' for name, v in header['versions'].items()) or 'unknown'}")
    lines += [f"note             {line}" for line in header.get("notes", ())]
    return "\n".join(lines) + "\n"
