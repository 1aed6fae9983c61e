"""Hugging Face folders: loading and saving a causal language model, quietly and from disk alone."""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta

from decdpo.errors import EnvironmentFault, PolicyError
from decdpo.files import WRITING, checked, os_fault, parse_json, read_bytes, reason, sync
from decdpo.policies.lm.foreign import foreign

_NOT_COMPUTED = {
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "use_cache",
    "transformers.js_config",
}
"""Keys of a configuration that change no log-probability."""

LARGEST_CONFIG = 1 << 24
"""Bytes of the largest config.json or tokenizer_config.json that is read."""


Size = Annotated[int, Meta(ge=1, le=2**40)]


@dataclass(frozen=True)
class ModelConfig:
    """What of a config.json this project relies on, where it is there; models name the rest."""

    model_type: str | None = None
    vocab_size: Size | None = None
    max_position_embeddings: Size | None = None
    quantization_config: dict[str, Any] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and the advice of transformers inside the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load(
    folder: str | os.PathLike[str], dtype: torch.dtype, allow_hub: bool
) -> tuple[Any, Any, Any]:
    """Load a causal language model; returns the module, its tokenizer and its configuration.

    Weights are stored as ``dtype``, whatever the folder's type. Dropout and jitter are off in the
    module, so that a log-probability depends on nothing but parameters and tokens; the
    configuration returned is the folder's own. Only safetensors are read, nothing is unpickled, and
    no code of the folder is run.

    Raises ``EnvironmentFault`` without transformers, ``PolicyError`` for a folder that is missing,
    incomplete, quantised or not a causal language model.
    """
    name, where = _find(folder, allow_hub)
    from transformers import AutoModelForCausalLM

    with quiet():
        original = load_config(folder, allow_hub)
        if getattr(original, "quantization_config", None) is not None:
            raise PolicyError(
                f"the model {name!r} is quantised: steps as small as those of training are lost in "
                "its weights",
                "give the folder of the model before it was quantised",
            )
        config = copy.deepcopy(original)
        _without_noise(config)
        with _readable(name):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                **where,
                use_safetensors=True,
                output_loading_info=True,
            )
        tokenizer = load_tokenizer(folder, allow_hub)
    module, info = loaded
    if info["missing_keys"]:
        raise PolicyError(
            f"the model {name!r} lacks weights, first {sorted(info['missing_keys'])[0]!r}",
            "complete its *.safetensors",
        )
    for part in module.modules():
        # Whatever its configuration calls it.
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.p = 0.0
    return module, tokenizer, original


def load_tokenizer(folder: str | os.PathLike[str], allow_hub: bool) -> Any:
    """Load a model folder's tokenizer; raises as ``load`` does."""
    name, where = _find(folder, allow_hub)
    from transformers import AutoTokenizer

    with quiet(), _readable(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **where)
    inner: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(inner, "dropout", None):
        inner.dropout = None  # Tokens are not drawn.
    return tokenizer


def load_config(folder: str | os.PathLike[str], allow_hub: bool) -> Any:
    """Load a model folder's configuration; raises as ``load`` does."""
    name, where = _find(folder, allow_hub)
    from transformers import AutoConfig

    with quiet(), _readable(name):
        return AutoConfig.from_pretrained(name, **where)


def config_digest(folder: str | os.PathLike[str], allow_hub: bool) -> str:
    """Return the SHA-256 of what a model folder's config.json says of the arithmetic.

    The file's own keys are taken, not what a version of transformers adds to them. Where the model
    came from, and in which type its weights are stored, is not in it. Raises as ``load`` does.
    """
    name, where = _find(folder, allow_hub)
    from transformers import PretrainedConfig

    with quiet(), _readable(name):
        known, _ = PretrainedConfig.get_config_dict(name, **where)
    return hashlib.sha256(json.dumps(_essence(known), sort_keys=True).encode()).hexdigest()


def _essence(value: Any) -> Any:
    """Return a configuration, and those inside it, without what no log-probability depends on."""
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if k not in _NOT_COMPUTED and not k.startswith("_")}
    return {key: _essence(item) for key, item in kept.items()}


def context(config: Any) -> int | None:
    """Return the most tokens that a model was made for, None if its configuration does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def _find(folder: str | os.PathLike[str], allow_hub: bool) -> tuple[str, dict[str, Any]]:
    """Return a model's name and how transformers shall load it."""
    # One thread a process: ranks share the cores of a node.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import_module("transformers")
    except ImportError as error:
        raise EnvironmentFault(
            f"a causal language model needs transformers: {error}",
            "pip install 'decdpo[lm]'",
        ) from error
    name, local = os.fspath(folder), not allow_hub
    if not name or local and not (Path(name) / "config.json").exists():
        missing = "is missing" if not name or not Path(name).is_dir() else "has no config.json"
        raise PolicyError(
            f"the model folder {name!r} {missing}",
            "set policy.model to a Hugging Face folder on disk, or allow_hub to download it",
        )
    if Path(name).is_dir():
        _require_plain(Path(name))
    return name, {"local_files_only": local, "trust_remote_code": False}


def _require_plain(folder: Path) -> None:
    """Raise ``PolicyError`` for a configuration that is no file, or no JSON object of such a kind.

    Foreign code would wait for a named pipe, and take a list or a number for whatever it pleases.
    """
    for file in ("config.json", "tokenizer_config.json"):
        path = folder / file
        if not path.exists():
            continue
        try:
            value = parse_json(read_bytes(path, LARGEST_CONFIG))
            if not isinstance(value, dict):
                raise ValueError("it is not a JSON object")
            if file == "config.json":
                checked(value, ModelConfig)
        except (OSError, ValueError) as fault:
            raise PolicyError(
                f"the model {str(folder)!r} cannot be loaded: {path} cannot be used: "
                + reason(fault),
                "fetch the model again",
            ) from None
    for path in folder.iterdir():
        # Devices, sockets and pipes, in the place of weights or of a tokenizer's files.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise PolicyError(f"the model {str(folder)!r} cannot be loaded: {path} is no file",
                              "fetch the model again")  # fmt: skip


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what a broken folder makes transformers raise, of a dozen kinds, into one error."""
    remedy = "check that the folder holds config.json, *.safetensors and the tokenizer's files"
    with foreign(f"the model {name!r} cannot be loaded", remedy):
        yield


def _without_noise(config: Any) -> None:
    """Set every rate of dropout or jitter of a configuration, and of those inside it, to zero."""
    for name, value in vars(config).items():
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)
        elif hasattr(value, "to_dict") and hasattr(value, "model_type"):
            _without_noise(value)


def save(module: Any, tokenizer: Any, config: Any, out: str | os.PathLike[str]) -> Path:
    """Write a Hugging Face folder that transformers loads; it appears as a whole or not at all.

    Raises ``PolicyError`` if ``out`` exists and is not an empty folder.
    """
    path = new_folder(out)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with quiet():
            module.save_pretrained(partial)
            config.dtype = module.dtype
            config.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        publish(partial, path)
    except OSError as error:
        raise os_fault(error, f"cannot write {path}", remedy=WRITING) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def new_folder(out: str | os.PathLike[str]) -> Path:
    """Return ``out`` as a path. Raises ``PolicyError`` if it is there and no empty folder."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise PolicyError(f"{path} exists already", "give a new folder")
    return path


def publish(partial: Path, path: Path) -> None:
    """Give a folder that is complete its name, once its files are on disk. Raises ``OSError``."""
    for file in partial.iterdir():
        sync(file)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)
