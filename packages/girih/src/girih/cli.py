"""The `girih` command. Only the chosen command's module is imported, so that `girih --help` needs no torch."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "demo": "The whole way on real scans in minutes: prepare, pre-train, fine-tune, predict, score, report.",
    "samples": "Fetch real sample scans into the cache.",
    "plan": "Measure a folder of scans: choose voxel size, normalisation, patch, network and anchors.",
    "prepare": "Turn a folder of scans into a zarr dataset: crop, resample, normalise.",
    "pretrain": "Pre-train an encoder on a prepared dataset.",
    "finetune": "Train a detector on a prepared dataset, from scratch or from pre-trained weights.",
    "predict": "Find objects in scans with a trained detector, or several together.",
    "sweep": "Search how the boxes of a detector are best merged, on labelled cases.",
    "evaluate": "Score predicted boxes against the truth: AP and FROC with intervals.",
    "look": "See predicted boxes on their scans: a page to scroll through, and pictures.",
}
USAGE = "usage: girih COMMAND [OPTIONS]\n\n3D medical object detection with pre-training.\n\ncommands:\n{}\n\n{}"
HINT = "girih COMMAND --help tells the options of one command. GIRIH_TRACEBACK=1 shows where an error came from."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0; 2 for bad input, with a message on stderr; 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from girih import __version__

        print(f"girih {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"girih: unknown command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        refuse_repeated(rest)
        run(name, rest)
    except (ValueError, OSError) as error:
        if os.environ.get("GIRIH_TRACEBACK"):
            raise
        print(f"girih {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"girih {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def run(name: str, arguments: list[str]) -> None:
    """Parse the options of the command `name` and run it."""
    import tyro

    module: Any = importlib.import_module(f"girih.commands.{name}")
    command, program = getattr(module, name.capitalize()), f"girih {name}"
    if name == "pretrain":
        chosen = module.choose_objective(arguments)
        if chosen is None:
            return
        objective, arguments = chosen
        command, program = command[objective[1]], f"{program} {objective[0]}"
    elif name == "finetune":
        command, arguments = module.choose_schedule(arguments)
    tyro.cli(command, prog=program, args=arguments).run()


def refuse_repeated(arguments: Sequence[str]) -> None:
    """Raise ValueError if an option is given twice: the parser would keep the last, and drop a dataset silently."""
    options = [argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise ValueError(f"{option} is given {options.count(option)} times, wanted once; several values follow one")


def usage() -> str:
    """Return the text of `girih --help`."""
    width = max(map(len, COMMANDS))
    return USAGE.format("\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()), HINT)


if __name__ == "__main__":
    sys.exit(main())
