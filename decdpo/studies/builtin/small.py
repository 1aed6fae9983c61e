"""What a study of language models takes if it is given none: a small model, and users with tastes.

Both follow from a seed. The model is random: it knows no language, and can be trained all the same.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from decdpo.data.index import ShardIndex
from decdpo.data.sharding import Plan, make_shards
from decdpo.errors import EnvironmentFault
from decdpo.files import replacing
from decdpo.rng import Stream, generator

PROMPTS = ("One day", "The dog", "Tom and Lily", "In the park", "The old cat", "It was late and")
SUBJECTS = ("he", "she", "they", "the bird", "a friend", "mom")
DEEDS = ("ran home", "sang a song", "ate a cake", "told a lie", "saw the sea", "was sad", "slept")
ENDS = ("", " and was happy", " again and again", " with a big smile", " in the rain", " all alone")


@dataclass(frozen=True)
class Tastes:
    """Users who choose between sentences by a taste that is part common, part their own.

    agents : users. pairs : of each. own : weight of a user's own taste beside the common one.
    """

    agents: int
    pairs: int = 48
    own: float = 1.0
    text = True

    def describe(self) -> str:
        """Return the numbers of the users."""
        return f"{self.agents} users who choose between sentences, {self.pairs} pairs each"

    def shards(self, seed: int, room: Path) -> ShardIndex:
        """Return the shards of the users of ``seed``, made if they are not there."""
        folder = room / f"tastes-{self.agents}-{self.pairs}-{self.own:g}-{seed}"
        if not (folder / "index.json").exists():
            source = folder.with_suffix(".jsonl")
            source.parent.mkdir(parents=True, exist_ok=True)
            with replacing(source, mode=0o644) as partial:
                partial.write_text("".join(self._rows(seed)), encoding="utf-8")
            make_shards((source,), folder, Plan("by:user", None, 1 / 6, seed=seed))
        return ShardIndex.load(folder)

    def _rows(self, seed: int) -> list[str]:
        """Return the pairs as lines of JSON: the better sentence by the user's taste is chosen."""
        parts = (SUBJECTS, DEEDS, ENDS)
        common = [generator(seed, Stream.SYNTHETIC).normal(size=len(words)) for words in parts]
        rows = []
        for user in range(self.agents):
            rng = generator(seed, Stream.SYNTHETIC, agent=user, round=1)
            taste = [shared + self.own * rng.normal(size=shared.size) for shared in common]
            for _ in range(self.pairs):
                drawn = [[rng.choice(len(words), 2)[i] for words in parts] for i in range(2)]
                liking = [sum(t[p] for t, p in zip(taste, places)) for places in drawn]
                first, second = (
                    " " + " ".join(w[p] for w, p in zip(parts[:2], places)) + ENDS[places[2]] + "."
                    for places in (drawn if liking[0] > liking[1] else drawn[::-1])
                )
                if first != second:
                    row = {"prompt": str(rng.choice(PROMPTS)), "chosen": first, "rejected": second}
                    rows.append(json.dumps({**row, "user": user}) + "\n")
        return rows


def small_model(folder: Path) -> Path:
    """Write a random language model of one layer that reads bytes, if it is not there.

    Raises ``EnvironmentFault`` without transformers.
    """
    if (folder / "tokenizer.json").exists():
        return folder
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    except ImportError as error:
        raise EnvironmentFault(
            f"a causal language model needs transformers: {error}", "pip install 'decdpo[lm]'"
        ) from None
    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LlamaForCausalLM(config)
    from decdpo.policies.lm.hub import quiet

    with quiet():
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
