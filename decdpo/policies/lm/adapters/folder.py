"""Folders of adapters as PEFT writes and reads them, adapter_config.json beside safetensors.

What the library may be asked for and we do not compute, such as DoRA or ranks by layer, is refused
by name. Nothing is unpickled: adapter_model.bin is not read.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from decdpo.errors import PolicyError
from decdpo.files import WRITING, checked, os_fault, parse_json, read_bytes, reason
from decdpo.policies.lm import hub
from decdpo.policies.lm.adapters import layers as adapters
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.adapters.personal import PersonalParts
from decdpo.policies.lm.foreign import foreign

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PERSONAL = "personal.safetensors"
"""Personal parts beside an adapter; PEFT does not look at them."""

_PREFIX = "base_model.model."
_PARTS = {".lora_A.weight": adapters.A, ".lora_B.weight": adapters.B}

_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout",
    "fan_in_fan_out", "bias", "use_rslora", "init_lora_weights", "layers_to_transform",
    "layers_pattern", "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
"""Keys of the configuration that are read here, or change nothing once the tensors are known."""

_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base model as it is."""


@dataclass(frozen=True)
class AdapterConfig:
    """What is read of adapter_config.json."""

    r: Annotated[int, Meta(ge=1, le=2**20)]
    lora_alpha: Annotated[float, Meta(gt=0)]
    peft_type: str = "LORA"
    lora_dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True


def read_options(folder: Path, mix: str, seed: int = 0) -> LoraOptions:
    """Return the options of the adapters in a PEFT folder, to be mixed by ``mix``.

    Raises ``PolicyError`` for a folder that cannot be read, or asks for what is not computed here.
    """
    known = _config(folder)
    names = sorted({name for name, _ in _tensors(folder)})
    return LoraOptions(
        known.r,
        known.lora_alpha,
        tuple(names),
        known.use_rslora,
        mix,
        seed,
        known.lora_dropout,
    )


def read(module: nn.Module, folder: Path) -> None:
    """Set the adapters of ``module`` to those of a PEFT folder.

    Raises ``PolicyError`` for tensors that do not fit.
    """
    found = _tensors(folder)
    for name, layer in adapters.layers(module):
        for part in _PARTS.values():
            values, target = found.pop((name, part), None), getattr(layer, part)
            if values is None or values.shape != target.shape:
                shape = "none" if values is None else tuple(values.shape)
                raise PolicyError(
                    f"{folder / WEIGHTS}: the {part} of the layer {name} has shape "
                    f"{tuple(target.shape)} in the model, in the file {shape}",
                    "give the adapter of this base model",
                )
            target.data.copy_(values)
    if found:
        name, part = next(iter(found))
        raise PolicyError(
            f"{folder / WEIGHTS} has a {part} of {name!r}, which is no linear layer of the model",
            "give the adapter of this base model",
        )


def write(
    module: nn.Module,
    options: LoraOptions,
    model: str,
    tokenizer: Any,
    out: str | os.PathLike[str],
    own: PersonalParts | None = None,
) -> Path:
    """Write the adapters of ``module`` as a PEFT folder; it appears as a whole or not at all.

    own : personal parts, which go beside the adapter as personal.safetensors. model : the name or
    folder of the base model. tokenizer : goes beside the adapter.

    Raises ``PolicyError`` if ``out`` exists and is not an empty folder.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, layer in adapters.layers(module):
        left: Tensor = layer.lora_B.detach()
        if layer.lora_core is not None:
            left = left @ layer.lora_core.detach()
        for part, values in zip(_PARTS, (layer.lora_A.detach(), left)):
            tensors[f"{_PREFIX}{name}{part}"] = values.float().cpu().contiguous()
    path = hub.new_folder(out)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        if own is not None:
            kept = {name: p.detach().float().cpu() for name, p in own.named_parameters()}
            save_file(kept, partial / PERSONAL, metadata={"format": "pt", **own.options.words})
        text = json.dumps(_described(module, options, model), indent=2, sort_keys=True)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        with hub.quiet():
            tokenizer.save_pretrained(partial)
        hub.publish(partial, path)
    except OSError as error:
        raise os_fault(error, f"cannot write {path}", remedy=WRITING) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _described(module: nn.Module, options: LoraOptions, model: str) -> dict[str, Any]:
    """Return what adapter_config.json says."""
    targets = [name for name, _ in adapters.layers(module)]
    ends = {name.rpartition(".")[2] for name in targets}
    linears = [n for n, part in module.named_modules() if adapters.is_linear(part)]
    if any(name.rpartition(".")[2] in ends for name in linears):
        # Some layers of these names have no adapter.
        ends = set(targets)
    transposed = any(layer.transposed for _, layer in adapters.layers(module))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "use_rslora": options.rank_stabilised,
        "target_modules": sorted(ends),
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }


def _config(folder: Path) -> AdapterConfig:
    path = folder / CONFIG
    try:
        value = parse_json(read_bytes(path, hub.LARGEST_CONFIG))
        if not isinstance(value, Mapping):
            raise ValueError("it is not a JSON object")
        known = checked(value, AdapterConfig)
    except (OSError, ValueError) as fault:
        raise PolicyError(
            f"the adapter {str(folder)!r} cannot be loaded: {path} cannot be used: {reason(fault)}",
            "set policy.lora.adapter to a folder that PEFT has written",
        ) from None
    odd = [key for key in sorted(value) if key not in _HARMLESS and value[key]]
    if known.peft_type != "LORA":
        odd.insert(0, "peft_type")
    if known.bias != "none":
        odd.insert(0, "bias")
    if known.init_lora_weights not in _PLAIN_STARTS:
        odd.insert(0, "init_lora_weights")
    if odd:
        raise PolicyError(
            f"{path}: {odd[0]} = {value[odd[0]]!r} is not computed here",
            "give a plain LoRA adapter, without biases and with one rank for all layers",
        )
    return known


def _tensors(folder: Path) -> dict[tuple[str, str], Tensor]:
    """Return the tensors of a PEFT folder by layer and part."""
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise PolicyError(
            f"the adapter {str(folder)!r} has no file {WEIGHTS}",
            "write it again with PEFT's save_pretrained, which writes safetensors",
        )
    with foreign(f"{path} cannot be read", "write it again with PEFT's save_pretrained"):
        loaded = load_file(path)
    found = {}
    for key, values in loaded.items():
        part = next((end for end in _PARTS if key.endswith(end)), None)
        if part is None or not key.startswith(_PREFIX) or values.dim() != 2:
            raise PolicyError(
                f"{path} holds {key!r}, which is no factor of a linear layer",
                "give a plain LoRA adapter of linear layers",
            )
        if not bool(torch.isfinite(values).all()):
            raise PolicyError(f"{path}: {key!r} has NaN or infinite values", "give a sound adapter")
        found[key[len(_PREFIX) : -len(part)], _PARTS[part]] = values
    if not found:
        raise PolicyError(f"{path} holds no adapter", "write it again with PEFT's save_pretrained")
    return found
