"""Small language models for tests: a real one that lies beside the repository, or random ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from random_model import SMALL, byte_tokenizer, write_random

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260K-hf"
"""A model of 260,032 parameters that writes children's stories; it may be absent."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSING = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '[' + m['role'] + '] ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
REWRITING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "refusing": REFUSING, "rewriting": REWRITING, "broken": "{% if %}"}


def real_or_random(folder: Path, texts: list[str]) -> Path:
    """Return the folder of the real model if it is there, else of a random one of two layers.

    texts : the random one spells them in few tokens, as the real one does.
    """
    if STORIES.is_dir():
        return STORIES
    return write_model(folder, layers=2, context=512, merges=learned_merges(texts))


def learned_merges(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the merges of a byte-pair encoding of ``texts``."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra lm)")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    merges = json.loads(inner.to_str())["model"]["merges"]
    return tuple((left, right) for left, right in merges)


def write_model(
    folder: Path,
    template: str | None = None,
    *,
    layers: int = 1,
    dtype: str = "float32",
    context: int = 256,
    merges: tuple[tuple[str, str], ...] = (),
    **settings: Any,
) -> Path:
    """Write a random language model that spells text byte by byte; return its folder.

    template : a name of ``TEMPLATES``. settings : they go into tokenizer_config.json.
    """
    pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
    sizes = {**SMALL, "num_hidden_layers": layers, "max_position_embeddings": context}
    write_random(folder, byte_tokenizer(merges), dtype, **sizes)
    path = folder / "tokenizer_config.json"
    saved = {**json.loads(path.read_text()), **settings}
    if template is not None:
        saved["chat_template"] = TEMPLATES[template]
    path.write_text(json.dumps(saved))
    return folder
