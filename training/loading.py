"""How models and tokenizers are loaded, from a folder or the hub, and what is refused before or while it happens."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import find_adapter_config_file, logging

from selfplay_gym.errors import InvalidConfig, SelfPlayError


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a checkpoint folder or a model of the hub.

    Raises:
        InvalidConfig: There is none.
    """
    with _explained(source):
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    # Without its files transformers makes one up, which knows the special tokens of the model type and no letter.
    if tokenizer("a")["input_ids"] == tokenizer("b")["input_ids"]:
        raise InvalidConfig(
            f"{source!r} lacks its tokenizer: expected tokenizer.json, or the vocabulary files of its kind, beside the "
            "weights; copy them from where the model comes from"
        )
    return tokenizer


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot write chats.

    Raises:
        InvalidConfig: It has no chat template.
    """
    if not tokenizer.chat_template:
        raise InvalidConfig(
            "style chat needs a tokenizer with a chat template, and the model's has none: choose the style azr, or "
            "compact for the nano policy"
        )


def load_model(source: str, *, dtype: str = "auto", device: str = "auto") -> Any:
    """Return the causal language model of a checkpoint folder or the hub, in eval mode; adapters are merged into it.

    Raises:
        InvalidConfig: Nothing loadable there, weights that are missing or do not fit, or an impossible dtype or device.
    """
    where, precision = find_device(device), _dtype(dtype)
    with _explained(source):
        model = _load(source, precision)
    return model.to(where).eval()


@dataclass(frozen=True)
class Described:
    """What is to be known of a model whose weights are elsewhere, under the names that a loaded one has for it."""

    name_or_path: str
    config: Any
    generation_config: Any


def describe(source: str) -> Described:
    """Return what a checkpoint folder or the hub says of a model, without its weights.

    Raises:
        InvalidConfig: Nothing there, or adapters.
    """
    with _explained(source):
        if find_adapter_config_file(source) is not None:
            raise InvalidConfig(
                f"{source!r} holds adapters, and vLLM is given whole models here: use another backend, or merge them "
                "into their base model (peft's merge_and_unload) and save that"
            )
        config = AutoConfig.from_pretrained(source)
        try:
            generation = GenerationConfig.from_pretrained(source)
        except OSError:  # there need be none
            generation = GenerationConfig.from_model_config(config)
    return Described(source, config, generation)


def fingerprint(source: str) -> str:
    """Return what changes when a model's files do: a hash of their names, sizes and times, or the hub's revision."""
    folder = Path(source)
    if not folder.is_dir():
        cached = (try_to_load_from_cache(source, name) for name in ("config.json", "adapter_config.json"))
        return next((Path(path).parent.name for path in cached if isinstance(path, str)), "unknown")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def _load(source: str, dtype: torch.dtype | str) -> Any:
    """Load a causal language model; where there are adapters, load what they adapt and merge them into it."""
    if find_adapter_config_file(source) is None:
        # Sizes that do not fit are then told with the rest, not as a table on the terminal.
        model, found = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
        )
        _refuse_parts(source, model, found)
        return model
    from peft import PeftConfig, PeftModel  # slow to import

    base = _load(PeftConfig.from_pretrained(source).base_model_name_or_path, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what peft calls by an old name of transformers
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be zeros
        model = PeftModel.from_pretrained(base, source).merge_and_unload()
    # Adapters that are trained on top of it name it as their base.
    model.name_or_path = model.config._name_or_path = source
    return model


def _refuse_parts(source: str, model: Any, found: Mapping[str, Any]) -> None:
    """Refuse a model of which a part is random; tied weights count as there when one of them is.

    Raises:
        InvalidConfig: Weights are missing from the checkpoint, or have other sizes than its configuration says.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        parts = f"{len(missing)} of its {len(model.state_dict())} weights are missing, {missing[0]} among them"
    elif found["mismatched_keys"]:
        name, stored, expected = sorted(found["mismatched_keys"])[0]
        parts = f"its {name} has the size {list(stored)}, where its configuration asks for {list(expected)}"
    else:
        return
    raise InvalidConfig(
        f"the model {source!r} is not whole: {parts}; get the checkpoint again, or mend model_type and sizes in its "
        "config.json"
    )


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Say in one line why a model or its tokenizer cannot be loaded."""
    try:
        with silent():
            yield
    except SelfPlayError:
        raise
    except Exception as error:  # hub, file and parser errors share no base
        raise InvalidConfig(_cannot_load(source, f"{type(error).__name__}: {error}")) from error


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers from bars, reports and warnings around files of models."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def find_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where there is one, the process's own GPU of several.

    Raises:
        InvalidConfig: No device has that name, or there is no GPU.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # Of several processes each its own: on plain `cuda` all would load their weights into the first one's memory.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidConfig(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0', got {name!r}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig(f"device {name!r} was asked for, but torch sees no GPU; use 'cpu' or 'auto'")
    return device


def _dtype(name: str) -> torch.dtype | str:
    if name not in ("auto", "float32", "bfloat16", "float16"):
        raise InvalidConfig(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got {name!r}")
    dtype: torch.dtype | str = name if name == "auto" else getattr(torch, name)
    return dtype


def check_source(source: str) -> None:
    """Refuse what is plainly no model before the hub is asked for it."""
    path = Path(source)
    if path.is_dir():
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            found = sorted(entry.name for entry in path.iterdir())
            listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") or "nothing"
            inside = f" (perhaps {path / 'model'} is meant)" if (path / "model" / "config.json").is_file() else ""
            raise InvalidConfig(_cannot_load(source, f"a folder without config.json that holds {listed}{inside}"))
    elif path.exists():
        raise InvalidConfig(_cannot_load(source, "a file"))
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InvalidConfig(_cannot_load(source, "the path of no folder"))
    else:
        _check_hub(source)


def _check_hub(source: str) -> None:
    """Ask the hub once: a wrong name or a missing network is told at once, where downloads retry for a minute."""
    try:
        cached = (try_to_load_from_cache(source, name) for name in ("config.json", "adapter_config.json"))
        if not any(isinstance(path, str) for path in cached):
            HfApi().model_info(source, timeout=10)
    except Exception as error:  # the hub's own errors and those of its HTTP library share no base
        raise InvalidConfig(_cannot_load(source, f"{type(error).__name__}: {error}")) from error


def _cannot_load(source: str, found: str) -> str:
    """Say on one line what was expected, what came and what to do."""
    return (
        f"cannot load a model from {source!r}: expected a folder with config.json, weights and tokenizer (as "
        "save_pretrained writes), or the id of a causal language model on the hub, but got "
        f"{' '.join(found.split())[:300]}; check the path, or download the model first where there is no network"
    )
