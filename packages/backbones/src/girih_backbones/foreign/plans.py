"""What a checkpoint says about itself: the adaptation plan of nnssl, or the plans of nnU-Net v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from girih_backbones.foreign.architectures import (
    Architecture,
    from_arch_kwargs,
    from_flat_plan,
    from_preset,
    known_name,
)
from girih_backbones.header import is_count, is_number, list_of, short

MOST_ENTRIES, DEEPEST = 100_000, 20  # of a plan; those of nnU-Net have about a thousand, in eight levels
_MOST_ANCESTORS = 10  # of a configuration that inherits from others; nnU-Net has one


@dataclass(frozen=True)
class Plan:
    """The fields of a plan that are used here; what it does not say is None.

    Attributes:
        where: name of the plan in messages.
        architecture: of the encoder.
        patch_zyx, spacing_zyx_mm, normalisation, modality: as in `WeightsHeader`.
        in_channels, stages: of the pre-training.
        key_to_encoder, key_to_stem: prefixes of the encoder's and the stem's keys.
        keys_to_in_proj: modules whose weights depend on the number of channels.
        notes: what could not be kept.
    """

    where: str
    architecture: Architecture | None = None
    patch_zyx: list[int] | None = None
    spacing_zyx_mm: list[float] | None = None
    normalisation: dict[str, Any] | None = None
    modality: str | None = None
    in_channels: int | None = None
    stages: int | None = None
    key_to_encoder: str | None = None
    key_to_stem: str | None = None
    keys_to_in_proj: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def read_adaptation_plan(plan: object, where: str) -> Plan:
    """Return the fields of the plan that nnssl writes into, or beside, a checkpoint.

    nnDetection's fine-tuning writes a shorter one, which names the encoder's keys and not its architecture.

    Raises:
        ValueError: the plan is no object, names an architecture that is not known here, or neither one nor the
            encoder's keys, or a field is of another kind.
    """
    plan = _object(plain(plan, where), where)
    architecture = None
    if "architecture_plans" in plan:
        architecture = _architecture(_object(plan["architecture_plans"], f"{where}.architecture_plans"), where)
    elif "key_to_encoder" not in plan:
        raise ValueError(f"{where}.architecture_plans: not found, nor key_to_encoder; wanted one of them")
    counts = {name: plan.get(name) for name in ("pretrain_num_input_channels", "pretrained_n_stages")}
    for name, number in counts.items():
        if number is not None and not is_count(number):
            raise ValueError(f"{where}.{name}: found {short(number)}, wanted a whole number")
    projections = plan.get("keys_to_in_proj")
    if projections is None:
        projections = ()
    if not (isinstance(projections, list | tuple) and all(isinstance(key, str) for key in projections)):
        raise ValueError(f"{where}.keys_to_in_proj: found {short(projections)}, wanted a list of text")
    pretrain = plan.get("pretrain_plan")
    notes: list[str] = []
    settings: dict[str, Any] = {}
    if pretrain is not None:
        pretrain = _object(pretrain, f"{where}.pretrain_plan")
        configurations = _object(pretrain.get("configurations"), f"{where}.pretrain_plan.configurations")
        if len(configurations) != 1:
            raise ValueError(f"{where}.pretrain_plan.configurations: found {sorted(configurations)}, wanted one")
        (label, configuration), *_ = configurations.items()
        at = f"{where}.pretrain_plan.configurations.{label}"
        settings = _settings(_object(configuration, at), {**plan, **pretrain}, notes)
    return Plan(
        where,
        architecture,
        in_channels=counts["pretrain_num_input_channels"],
        stages=counts["pretrained_n_stages"],
        key_to_encoder=_text(plan, "key_to_encoder", where),
        key_to_stem=_text(plan, "key_to_stem", where),
        keys_to_in_proj=tuple(projections),
        notes=notes,
        **settings,
    )


def read_nnunet_plan(init_args: Mapping[str, Any], where: str) -> Plan:
    """Return the fields of `init_args` of an nnU-Net v2 checkpoint: its plans and the configuration trained.

    Raises:
        ValueError: the configuration is not in the plans, its network is not known here, or a field is of another kind.
    """
    plans = _object(plain(init_args.get("plans"), f"{where}.plans"), f"{where}.plans")
    configurations = _object(plans.get("configurations"), f"{where}.plans.configurations")
    label = plain(init_args.get("configuration"), f"{where}.configuration")
    configuration = _inherited(configurations, label, f"{where}.plans.configurations")
    at = f"{where}.plans.configurations.{label}"
    if "architecture" in configuration:
        network = _object(configuration["architecture"], f"{at}.architecture")
        name = known_name(network.get("network_class_name"), f"{at}.architecture.network_class_name")
        kwargs = _object(network.get("arch_kwargs"), f"{at}.architecture.arch_kwargs")
        architecture = from_arch_kwargs(name, kwargs, f"{at}.architecture.arch_kwargs")
    else:
        name = known_name(configuration.get("UNet_class_name"), f"{at}.UNet_class_name")
        architecture = from_flat_plan(name, configuration, at)
    notes: list[str] = []
    settings = _settings(configuration, plans, notes)
    described = init_args.get("dataset_json")
    channels = described.get("channel_names") if isinstance(described, Mapping) else None
    channels = plain(channels, f"{where}.dataset_json.channel_names")
    modalities = list(channels.values()) if isinstance(channels, dict) else []
    one = modalities[0] if modalities and all(modality == modalities[0] for modality in modalities) else None
    if modalities and one is None:
        notes.append(f"modality not kept: {short(modalities)}")
    return Plan(
        f"{where}.plans",
        architecture,
        modality=one if isinstance(one, str) and one else None,
        notes=notes,
        **settings,
    )


def _architecture(architecture_plans: Mapping[str, Any], where: str) -> Architecture:
    """Return the encoder that an adaptation plan names."""
    at = f"{where}.architecture_plans.arch_class_name"
    name = known_name(architecture_plans.get("arch_class_name"), at)
    kwargs = architecture_plans.get("arch_kwargs")
    if kwargs is None:  # the name is the whole description
        return from_preset(name, at)
    at = f"{where}.architecture_plans.arch_kwargs"
    return from_arch_kwargs(name, _object(kwargs, at), at)


def _inherited(configurations: Mapping[str, Any], label: object, where: str) -> dict[str, Any]:
    """Return a configuration with what it inherits from others."""
    merged: dict[str, Any] = {}
    for _ in range(_MOST_ANCESTORS):
        if not isinstance(label, str) or label not in configurations:
            raise ValueError(f"{where}: found {sorted(map(str, configurations))}, wanted {short(label)}")
        merged = {**_object(configurations[label], f"{where}.{label}"), **merged}
        if "inherits_from" not in merged:
            return merged
        label = merged.pop("inherits_from")
    raise ValueError(f"{where}.{label}: found configurations that inherit in a circle")


def _settings(configuration: Mapping[str, Any], plans: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return patch, spacing and normalisation; what is not of the header's kind is None, and noted."""
    patch, spacing = _listed(configuration.get("patch_size")), _listed(configuration.get("spacing"))
    patch = [int(size) if isinstance(size, float) and size.is_integer() else size for size in patch or []]
    transpose = plans.get("transpose_forward")
    if transpose is not None and _listed(transpose) != [0, 1, 2]:
        notes.append(f"axes were transposed to {_listed(transpose)}: patch, spacing and kernels are in that order")
    has_patch = list_of(is_count, 3)(patch)
    has_spacing = list_of(lambda s: is_number(s) and s > 0, 3)(spacing)
    for kept, what, told in ((has_patch, "patch", "patch_size"), (has_spacing, "spacing", "spacing")):
        if not kept and configuration.get(told) is not None:
            notes.append(f"{what} not kept: {short(configuration[told])}")
    return {
        "patch_zyx": patch if has_patch else None,
        "spacing_zyx_mm": [float(s) for s in spacing or ()] if has_spacing else None,
        "normalisation": _normalisation(configuration, plans, notes),
    }


def _normalisation(
    configuration: Mapping[str, Any], plans: Mapping[str, Any], notes: list[str]
) -> dict[str, Any] | None:
    """Return the one scheme of all channels in this package's terms, or None."""
    schemes = _listed(configuration.get("normalization_schemes")) or []
    masked = configuration.get("use_mask_for_norm")
    masks = {bool(mask) for mask in _listed(masked) or ([] if masked is None else [masked])}
    nothing: dict[str, Any] = {"clip": None, "mean": None, "std": None}
    kinds = {str(scheme) for scheme in schemes}
    if kinds == {"ZScoreNormalization"} and len(masks) == 1:
        return {"scheme": "zscore_mask" if masks == {True} else "zscore", **nothing}
    if kinds == {"NoNormalization"}:
        return {"scheme": "none", **nothing}
    if kinds == {"CTNormalization"}:
        measured = plans.get("foreground_intensity_properties_per_channel")
        channels: list[Any] = []
        if isinstance(measured, Mapping):
            channels = [measured.get(str(i)) for i in range(len(schemes))]
        wanted = ("percentile_00_5", "percentile_99_5", "mean", "std")
        if channels and all(isinstance(c, Mapping) and all(is_number(c.get(key)) for key in wanted) for c in channels):
            low, high, mean, std = ([float(c[key]) for c in channels] for key in wanted)
            if len(set(low)) == len(set(high)) == 1:
                return {"scheme": "ct", "clip": [low[0], high[0]], "mean": mean, "std": std}
    if schemes:
        notes.append(f"normalisation not kept: {', '.join(sorted(kinds))}, mask {sorted(masks)}")
    return None


def plain(value: object, where: str) -> Any:
    """Return a copy of plain data; what is not plain is None in it.

    A pickle may hold a list in a list in a list, each of them many times, which is small only until it is walked.

    Raises:
        ValueError: there are more than `MOST_ENTRIES` entries, or they lie too deep.
    """
    left = MOST_ENTRIES

    def copy(part: object, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ValueError(f"{where}: found more than {MOST_ENTRIES} entries, or deeper ones than {DEEPEST} levels")
        if isinstance(part, Mapping):
            return {key: copy(item, depth + 1) for key, item in part.items() if isinstance(key, str)}
        if isinstance(part, list | tuple):
            return [copy(item, depth + 1) for item in part]
        return part if isinstance(part, str | int | float) else None

    return copy(value, 0)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: found {type(value).__name__}, wanted an object")
    return dict(value)


def _text(plan: Mapping[str, Any], name: str, where: str) -> str | None:
    value = plan.get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError(f"{where}.{name}: found {short(value)}, wanted text")
    return value


def _listed(value: object) -> list[Any] | None:
    return list(value) if isinstance(value, list | tuple) else None
