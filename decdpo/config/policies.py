"""The sections of policies: ``[policy]`` of each kind, ``[policy.lora]``, ``[policy.personal]``."""

from dataclasses import dataclass

from decdpo.config.options import option
from decdpo.policies.lm.names import ACTIVATIONS, HEADS, MIX_RULES


def _factor(part: str) -> float:
    found: float = option(1.0, f"{part} steps by so many times optim.lr", low=0.0, high=1e6)
    return found


def _decay(part: str) -> float:
    found: float = option(0.0, f"draws {part} back to where it began", low=0.0, high=1e9)
    return found


@dataclass(frozen=True)
class LogLinear:
    """The log-linear softmax policy of the theory."""

    kind: str = option("loglinear", "which policy")
    features: str = option(
        "hashed",
        "hashed word uni- and bigrams of the answers, or the shard's feature columns",
        choices=("hashed", "columns"),
    )
    dimension: int = option(
        2**16, "number of hashed features; unused by columns", low=2, high=2**40
    )
    dtype: str = option("float32", "parameter type", choices=("float32", "float64"))


@dataclass(frozen=True)
class Trajectory:
    """The log-linear softmax policy on trajectories of a task with finitely many actions."""

    kind: str = option("trajectory", "which policy")
    feature_map: str = option(
        "",
        "phi(s, u) as a .npy file (states, actions, d); empty is the one in data.shards",
        path=True,
    )
    dtype: str = option("float32", "parameter type", choices=("float32", "float64"))


@dataclass(frozen=True)
class Tabular:
    """A logit for each state and action, or a small network, on trajectories."""

    kind: str = option("tabular", "which policy")
    states: int = option(20, "number of states (prompts)", low=1, high=2**20)
    actions: int = option(20, "number of actions (responses)", low=2, high=2**20)
    hidden: int = option(0, "width of the network's hidden layer; 0 is a table", low=0, high=2**20)
    dtype: str = option("float32", "parameter type", choices=("float32", "float64"))


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters, which alone are trained where there is a rank."""

    rank: int = option(0, "r, rank of the adapters; 0 trains the whole model", low=0, high=2**16)
    alpha: float = option(
        0.0, "adapters count alpha / rank times; 0 is twice the rank", low=0.0, high=1e6
    )
    rank_stabilised: bool = option(False, "they count alpha / sqrt(rank) times")
    dropout: float = option(
        0.0, "chance of a value that an adapter sees to be left out in a step", low=0.0, below=1.0
    )
    targets: tuple[str, ...] = option(
        (), "names of the adapted layers, such as q_proj or *.mlp.*; none is all but the head"
    )
    mix: str = option("factors", "what travels, and how it is mixed", choices=MIX_RULES)
    adapter: str = option(
        "",
        "folder of PEFT with the adapter to begin from, which says the keys above but mix",
        path=True,
    )

    @property
    def on(self) -> bool:
        """Whether adapters are trained, and not the whole model."""
        return bool(self.rank or self.adapter)


@dataclass(frozen=True)
class Personal:
    """Parts of a language model that are each agent's own, beside shared adapters: FedPDPO."""

    head: str = option(
        "none", "language-model head: the base's, a full copy, or base + low_rank", choices=HEADS
    )
    head_rank: int = option(8, "rank of a low_rank head", low=1, high=2**16)
    reward: bool = option(False, "explicit reward head on an answer's last state")
    bottleneck: int = option(
        0, "width of the residual adapter before the heads; 0 is none", low=0, high=2**16
    )
    activation: str = option("gelu", "of the bottleneck", choices=ACTIVATIONS)
    head_lr_factor: float = _factor("the head")
    head_weight_decay: float = _decay("the head")
    reward_lr_factor: float = _factor("the reward head")
    reward_weight_decay: float = _decay("the reward head")
    bottleneck_lr_factor: float = _factor("the bottleneck")
    bottleneck_weight_decay: float = _decay("the bottleneck")

    @property
    def on(self) -> bool:
        """Whether any part is switched on."""
        return self.head != "none" or self.reward or self.bottleneck > 0


@dataclass(frozen=True)
class CausalLM:
    """A causal language model in a Hugging Face folder."""

    kind: str = option("causal_lm", "which policy")
    model: str = option(
        "",
        "folder with config, weights and tokenizer; training needs one",
        path=True,
        absent="download the model, or let policy.allow_hub = true do so",
    )
    dtype: str = option(
        "float32",
        "of the arithmetic, float32 or bfloat16; what is trained, sent and saved is float32",
    )
    max_length: int = option(
        0,
        "tokens of prompt and answer together, longer is cut; 0 is 512, or the model's context if "
        "that is less",
        low=0,
    )
    chat_template: str = option(
        "",
        "how a chat is written: empty is the tokenizer's template, else `none`, a name, a file",
        path=True,
    )
    eos: str = option(
        "", "token that ends an answer: empty is the tokenizer's, `template` the template's own end"
    )
    line_break: bool = option(
        True, "put a line break between a plain prompt and an answer that begins like a word"
    )
    cache_reference: bool = option(
        True, "compute reference log-probabilities once and keep them beside the shards"
    )
    tokens_at_once: int = option(
        0,
        "tokens of the pairs that are scored together in one row; 0 is pair by pair, so that the "
        "bits of a pair do not depend on its batch",
        low=0,
    )
    activation_checkpointing: bool = option(False, "recompute activations to save memory")
    compile: bool = option(
        False, "let torch compile the model's layers: a start takes a minute more, a step less"
    )
    graphs: bool = option(
        True,
        "on a GPU in bfloat16, record the operations of a step and begin them all at once, in rows "
        "filled up to few sizes; not with activation checkpointing, dropout or personal parts",
    )
    allow_hub: bool = option(False, "let transformers download the model from its hub")
    lora: Lora = option(Lora(), "adapters of the frozen model, in the section [policy.lora]")
    personal: Personal = option(
        Personal(), "parts that never leave their agent, in the section [policy.personal]"
    )
