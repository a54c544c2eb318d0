"""Tiny models of the kinds that people bring: random weights, a token a byte, with or without a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

ARCHITECTURES = ("qwen2", "llama")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*, chat: bool = False) -> Any:
    """A token a byte, and four special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|pad|>", "<|end|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>" if chat else "<|end|>"
    )
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer


def tiny_config(architecture: str, **settings: Any) -> Any:
    sizes = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        **settings,
    }
    return {"qwen2": Qwen2Config, "llama": LlamaConfig}[architecture](**sizes)


def tiny_model(architecture: str, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    model_class = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM}[architecture]
    return model_class(tiny_config(architecture, **settings))


def save_tiny(folder: Path, architecture: str, *, chat: bool = False, **settings: Any) -> Path:
    """Write model and tokenizer as people find them on a hub; return the folder."""
    tokenizer = byte_tokenizer(chat=chat)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    tiny_model(architecture, **ids, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
