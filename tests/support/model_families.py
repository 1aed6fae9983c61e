"""Random models of families that differ in what they do to positions, scores, biases and logits."""

import pytest
import torch

FAMILIES = (
    "grouped heads",
    "biased projections",
    "absolute positions",
    "soft caps",
    "biased head",
)


def family_config(family, vocabulary=97, context=128):
    """Return the configuration of a small model for sequences of ``context`` tokens."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": context,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    grouped = {**sizes, "num_key_value_heads": 2}
    if family == "grouped heads":
        return transformers.LlamaConfig(**grouped)
    if family == "biased projections":
        return transformers.Qwen2Config(**grouped)
    if family == "soft caps":
        return transformers.Gemma2Config(
            **grouped, head_dim=8, query_pre_attn_scalar=8, sliding_window=context,
            attn_logit_softcapping=3.0, final_logit_softcapping=2.0,
        )  # fmt: skip
    if family == "biased head":
        return transformers.PhiConfig(**sizes)
    assert family == "absolute positions"
    return transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=context, vocab_size=vocabulary,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def random_model(family, vocabulary=97, context=128):
    """Return a model without dropout, its weights large enough that every part of it matters."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = family_config(family, vocabulary, context)
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3 if p.dim() > 1 else 0.1)
    return model
