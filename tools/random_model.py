"""Random language models: Llamas with arbitrary weights, and a tokenizer that spells bytes.

They stand for real models where only shapes matter, and where none is at hand.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip
LARGE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
         "tie_word_embeddings": True}  # fmt: skip
"""The shape of SmolLM2-135M."""


def byte_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> Any:
    """Return a tokenizer that spells text byte by byte, but for the ``merges`` of pairs of words.

    It puts ``<s>`` before a text and ends one with ``</s>``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    inner.add_special_tokens([AddedToken(token, special=True) for token in TOKENS])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def write_random(folder: Path, tokenizer: Any, dtype: str = "float32", **sizes: Any) -> int:
    """Write a Llama of random weights for the ids of ``tokenizer``; returns its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **sizes,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(sum(p.numel() for p in model.parameters()))
