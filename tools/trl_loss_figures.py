"""Write what TRL's own trainers compute on fixed pairs, for tests/unit/test_losses_trl.py.

Needs an environment with TRL (``pip install "trl==1.16.*" torch==2.13.0``); decdpo is not used.
TRL's loss lives inside its trainers, so their methods run here on a stand-in for the trainer and
for the model, which returns given log-probabilities of tokens; the gradients are autograd's.

    python tools/trl_loss_figures.py tests/golden/trl_losses.json
"""

import json
import sys
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import torch
import transformers
import trl
from torch import Tensor
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

PROMPT = 2
"""Prompt tokens before every answer of the stand-in model."""

COUNT = 12
"""Pairs in the figures."""

CASES: list[tuple[str, dict[str, float], str, dict[str, float]]] = [
    # our name, our options, TRL's loss_type, TRL's options
    ("dpo", {"beta": 0.1}, "sigmoid", {"beta": 0.1}),
    ("dpo", {"beta": 0.5}, "sigmoid", {"beta": 0.5}),
    # On one pair TRL's sorted loss is DPO with label smoothing, which its DPO no longer offers.
    ("dpo", {"beta": 0.3, "label_smoothing": 0.1}, "aot", {"beta": 0.3, "label_smoothing": 0.1}),
    (
        "robust",
        {"beta": 0.3, "label_smoothing": 0.2},
        "robust",
        {"beta": 0.3, "label_smoothing": 0.2},
    ),
    ("ipo", {"beta": 0.1}, "ipo", {"beta": 0.1}),
    ("hinge", {"beta": 0.1}, "hinge", {"beta": 0.1}),
]

CPO_CASES: list[tuple[str, dict[str, float], str, dict[str, float]]] = [
    ("cpo", {"beta": 0.1, "alpha": 0.0}, "sigmoid", {"beta": 0.1}),
    ("slic", {"beta": 0.5, "alpha": 0.0}, "hinge", {"beta": 0.5}),
    ("simpo", {"beta": 2.0, "gamma": 1.0}, "simpo", {"beta": 2.0, "simpo_gamma": 1.0}),
    ("simpo", {"beta": 2.5, "gamma": 0.3}, "simpo", {"beta": 2.5, "simpo_gamma": 0.3}),
]


def pairs_of_figures() -> dict[str, list[Any]]:
    """Return the pairs, as lists of float64 log-probabilities (nats) and of lengths (steps)."""
    rng = np.random.default_rng(20240501)
    lengths = {side: rng.integers(1, 60, COUNT) for side in ("chosen", "rejected")}
    pairs: dict[str, list[Any]] = {}
    for side in ("chosen", "rejected"):
        reference = -rng.gamma(4.0, 0.5, COUNT) * lengths[side]
        pairs[f"ref_{side}"] = reference.tolist()
        pairs[side] = (reference + rng.normal(0.0, 6.0, COUNT)).clip(max=-0.01).tolist()
        pairs[f"{side}_length"] = lengths[side].tolist()
    # The start of a run, and very unlikely answers that have moved far from the reference.
    for side in ("chosen", "rejected"):
        pairs[side][0] = pairs[f"ref_{side}"][0]
    pairs["chosen"][1], pairs["rejected"][1] = -10000.0, -300.0
    pairs["chosen"][2], pairs["rejected"][2] = -300.0, -10000.0
    return pairs


def stand_in(**attributes: Any) -> SimpleNamespace:
    """Return a trainer with no more than what the loss methods read."""
    same = SimpleNamespace(
        device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x
    )
    return SimpleNamespace(
        accelerator=same,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


def stand_in_model(per_token: Tensor) -> Callable[..., SimpleNamespace]:
    """Return a model whose answer tokens have the (N, T) log-probabilities ``per_token``."""
    flat = torch.zeros_like(per_token)
    outputs = SimpleNamespace(
        log_probs=per_token, entropy=flat, mean_logits=flat, is_top1=flat.bool(), logits=None
    )
    return lambda **_: outputs


def tokens_of(logps: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Spread (N,) log-probabilities over answers; return (N, T) of tokens and the (N, T+1) mask."""
    mask = torch.zeros(len(lengths), PROMPT + max(lengths), dtype=torch.long)
    for i, length in enumerate(lengths):
        mask[i, PROMPT : PROMPT + length] = 1
    shifted = mask[:, 1:].to(logps.dtype)
    return shifted * (logps / torch.tensor(lengths).to(logps.dtype))[:, None], mask


def with_derivatives(loss: Tensor, logps: Tensor) -> list[float]:
    """Return the scalar loss and its derivatives by the (N,) log-probabilities."""
    (derivatives,) = torch.autograd.grad(loss, logps)
    return [loss.item(), *derivatives.tolist()]


def dpo_figure(pair: dict[str, Any], loss_type: str, options: dict[str, float]) -> list[float]:
    """Return TRL's DPO loss of one pair and its derivatives by the two log-probabilities."""
    logps = torch.tensor([pair["chosen"], pair["rejected"]], dtype=torch.float64)
    logps.requires_grad_()
    per_token, mask = tokens_of(logps, [pair["chosen_length"], pair["rejected_length"]])
    trainer = stand_in(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
        **{"label_smoothing": 0.0, **options},
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor([pair["ref_chosen"]], dtype=torch.float64),
        "ref_rejected_logps": torch.tensor([pair["ref_rejected"]], dtype=torch.float64),
    }
    model = stand_in_model(per_token)
    loss = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return with_derivatives(loss, logps)


def cpo_figure(pair: dict[str, Any], loss_type: str, options: dict[str, float]) -> list[float]:
    """Return TRL's reference-free loss of one pair and its derivatives, as ``dpo_figure`` does."""
    logps = torch.tensor([pair["chosen"], pair["rejected"]], dtype=torch.float64)
    logps.requires_grad_()
    chosen, rejected = logps[:1], logps[1:]
    if loss_type == "simpo":  # CPOTrainer hands over mean log-probabilities for this one
        chosen, rejected = chosen / pair["chosen_length"], rejected / pair["rejected_length"]
    trainer = stand_in(alpha=0.0, label_smoothing=0.0, loss_type=loss_type, **options)
    losses, _, _ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    return with_derivatives(losses.sum(), logps)


def kto_figure(answer: dict[str, Any], options: dict[str, float], kl: float) -> list[float]:
    """Return TRL's KTO loss of one answer and its derivative by the log-probability."""
    logps = torch.tensor([answer["logp"]], dtype=torch.float64, requires_grad=True)
    per_token, mask = tokens_of(logps, [answer["length"]])
    trainer = stand_in(
        calculate_KL=True,
        loss_type="kto",
        _compute_kl_logps=lambda model, batch: torch.tensor([kl], dtype=torch.float64),
        **options,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor([answer["desirable"]]),
        "ref_logps": torch.tensor([answer["ref_logp"]], dtype=torch.float64),
        "ref_KL_logps": torch.zeros(1, dtype=torch.float64),
    }
    model = stand_in_model(per_token)
    loss = KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return with_derivatives(loss, logps)


def cases(pairs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return one record for each pair loss: name, options, losses and derivatives."""
    rows = [{key: values[i] for key, values in pairs.items()} for i in range(COUNT)]
    records = []
    for table, figure in ((CASES, dpo_figure), (CPO_CASES, cpo_figure)):
        for name, options, trl_type, trl_options in table:
            of_pair = partial(figure, loss_type=trl_type, options=trl_options)
            losses, d_chosen, d_rejected = zip(*(of_pair(row) for row in rows))
            records.append(
                {
                    "loss": name,
                    "options": options,
                    "trl": {"loss_type": trl_type, **trl_options},
                    "losses": losses,
                    "d_chosen": d_chosen,
                    "d_rejected": d_rejected,
                }
            )
    return records


def kto_cases(pairs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return one record for each KTO setting, over the answers of all pairs."""
    answers = [
        {
            "logp": pairs[side][i],
            "ref_logp": pairs[f"ref_{side}"][i],
            "length": pairs[f"{side}_length"][i],
            "desirable": side == "chosen",
        }
        for side in ("chosen", "rejected")
        for i in range(COUNT)
    ]
    records = []
    for kl, weights in ((0.0, (1.0, 1.0)), (1.7, (1.0, 1.33)), (-2.0, (0.5, 1.0))):
        options = {
            "beta": 0.1,
            "desirable_weight": weights[0],
            "undesirable_weight": weights[1],
        }
        losses, d_logp = zip(*(kto_figure(answer, options, kl) for answer in answers))
        records.append({"options": options, "kl": kl, "losses": losses, "d_logp": d_logp})
    return records


def main() -> None:
    """Write the figures to the file named on the command line."""
    pairs = pairs_of_figures()
    document = {
        "made_by": "tools/trl_loss_figures.py",
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "pairs": pairs,
        "cases": cases(pairs),
        "kto": kto_cases(pairs),
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
