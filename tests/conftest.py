"""What all tests share: under mpirun, every rank passes a test or every rank fails it."""

import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from decdpo.comm.mpi.launch import launched_by_mpi

WAIT = 60.0
"""Seconds that ranks wait for one another at the end of a test."""


class Agreement:
    """Compares on all ranks together; alone, it only compares.

    ``agree(ok, what)`` fails everywhere if it fails anywhere. ``with agree:`` does so for a block.
    """

    def __init__(self) -> None:
        self.texts: Callable[[str], list[str]] = lambda text: [text]
        self.rank = 0
        if launched_by_mpi() is not None:
            from decdpo.comm.mpi import boot
            from decdpo.comm.mpi.collectives import Collectives
            from decdpo.comm.waiting import Deadline

            boot.start()
            comm = boot.library().COMM_WORLD.Dup()
            self.rank = comm.Get_rank()
            self.texts = Collectives(comm, Deadline(WAIT)).texts

    def __call__(self, ok: bool, what: str = "") -> None:
        """Fail on every rank unless ``ok`` is true on every rank. Collective."""
        self.judge("" if ok else what or "not so")

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType
    ) -> None:
        text = "" if fault is None else "".join(traceback.format_exception(fault))
        self.judge(text, fault)

    def judge(self, text: str, fault: BaseException | None = None) -> None:
        """Raise on every rank if any rank passes a text. Collective."""
        texts = self.texts(text)
        for rank, other in enumerate(texts):
            if other and (rank != self.rank or fault is None):
                raise AssertionError(f"rank {rank}: {other}") from fault


AGREEMENT = pytest.StashKey[Agreement]()


def pytest_configure(config: pytest.Config) -> None:
    """Bring MPI up the way the program does, before a plugin does it another way."""
    if config.getoption("--with-mpi", False):
        config.stash[AGREEMENT] = Agreement()


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Agreement:
    """Compare on all ranks together, so that a failing rank never leaves the others waiting."""
    return request.config.stash.get(AGREEMENT, None) or Agreement()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[Any]:
    """Under mpirun, let a test that failed on one rank fail on all, at the same test."""
    agreement = pyfuncitem.config.stash.get(AGREEMENT, None)
    if agreement is None:
        return (yield)
    with agreement:
        return (yield)


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
TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with a language model of one tiny layer that spells text byte by byte."""

    def make(
        name: str = "model",
        template: str | None = None,
        *,
        dtype: str = "float32",
        context: int = 256,
        merges: tuple[tuple[str, str], ...] = (),
        **settings: Any,
    ) -> Path:
        """``template`` is a name of ``TEMPLATES``; ``settings`` go into tokenizer_config.json."""
        pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
        import torch
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        words = [*TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
        vocabulary = {word: i for i, word in enumerate(words)}
        inner = Tokenizer(models.BPE(vocabulary, list(merges)))
        inner.add_special_tokens([AddedToken(token, special=True) for token in TOKENS])
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
        )
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=context, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        folder = tmp_path / name
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        told = {**json.loads(path.read_text()), **settings}
        if template is not None:
            told["chat_template"] = TEMPLATES[template]
        path.write_text(json.dumps(told))
        return folder

    return make
