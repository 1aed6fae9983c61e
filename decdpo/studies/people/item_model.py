"""A small language model whose answers are items, each one token: a softmax over items.

    log pi(j | prompt) = e_j . h(prompt) - log sum_k exp e_k . h(prompt)

with the tied embedding e_j of item j, which may hold what is known of the item beforehand. It has
all that a language model has, so that adapters, personal heads and explicit rewards apply, and
costs a millisecond a pair, so that many people can be hosted on few cores.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

PROMPT = "which"
"""The prompt of every pair."""

SPECIAL = ("<unk>", "<s>", "</s>")
HIDDEN, HEADS, LAYERS = 32, 2, 1
_SPREAD = 0.02


def write_item_model(folder: Path, items: Sequence[str], known: np.ndarray, seed: int) -> Path:
    """Write the model as a Hugging Face folder, unless it is there; return the folder.

    items : their names, one token each. known : (len(items), k) columns that the embeddings begin
    with, k at most ``HIDDEN``; what is left of them is alike for all items, and drawn from ``seed``
    as the layers are. Columns drawn for each item would be a fingerprint of it: nothing is known by
    them of other items, and parts with few pairs learn those by heart.
    """
    if (folder / "config.json").exists():
        return folder
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL, PROMPT, *items]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=SPECIAL[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, max_position_embeddings=16,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=True, initializer_range=_SPREAD,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(words), HIDDEN)) / HIDDEN**0.5
    table[len(SPECIAL) + 1 :] = table[len(SPECIAL) + 1]
    table[len(SPECIAL) + 1 :, : known.shape[1]] = known
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config)
    embedding: torch.nn.Module = module.get_input_embeddings()
    for weight in embedding.parameters():
        weight.data.copy_(torch.from_numpy(table))
    folder.mkdir(parents=True, exist_ok=True)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
