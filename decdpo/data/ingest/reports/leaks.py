"""What is held out and trained on all the same: prompts, answers and whole pairs."""

from typing import Any

import numpy as np

from decdpo.data.ingest.reports.survey import Survey, distinct

TELLING = 20
"""Bytes of an answer from which it does not recur by chance, as Yes, No and numbers do."""

_ODD = tuple(np.uint64(k) for k in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


def pair_keys(texts: Survey) -> np.ndarray:
    """Return (n,) uint64 keys, equal for pairs of the same prompt and answers in either order."""
    low = np.minimum(texts.chosen, texts.rejected)
    high = np.maximum(texts.chosen, texts.rejected)
    return texts.prompts * _ODD[0] + low * _ODD[1] + high * _ODD[2]


def leaks(
    texts: Survey, edges: np.ndarray, owner: np.ndarray, held_out: np.ndarray
) -> dict[str, Any] | None:
    """Return how much of what is held out is also trained on, by any agent; None without any.

    edges : (n, 4) as in ``PairStore.edges``. owner : (n,) agent of each pair, -1 for none.
    held_out : (n,) bool.

    pairs, prompts, answers : of each, how many different ones are ``held_out`` and how many of
    these are ``trained_on``. pairs_with_prompt, pairs_with_answer : held-out pairs whose prompt, or
    one of whose answers of at least ``TELLING`` bytes, is trained on. several_prompts : share of
    the different answers that stand under more than one prompt.
    """
    held = (owner >= 0) & held_out
    trained = (owner >= 0) & ~held_out
    if not held.any():
        return None
    answers = np.stack([texts.chosen, texts.rejected], axis=1)
    prompt_seen = np.isin(texts.prompts[held], texts.prompts[trained])
    answer_seen = np.isin(answers[held], answers[trained])
    telling = np.diff(edges[held], axis=1)[:, 1:] >= TELLING
    keys = pair_keys(texts)
    key_seen = np.isin(keys[held], keys[trained])

    def counted(values: np.ndarray, seen: np.ndarray) -> dict[str, int]:
        return {"held_out": distinct(values), "trained_on": distinct(values[seen])}

    return {
        "held_out_pairs": int(held.sum()),
        "pairs": counted(keys[held], key_seen),
        "prompts": counted(texts.prompts[held], prompt_seen),
        "answers": counted(answers[held], answer_seen),
        "pairs_with_prompt": int(prompt_seen.sum()),
        "pairs_with_answer": int((answer_seen & telling).any(axis=1).sum()),
        "several_prompts": round(_under_several(texts), 4),
    }


def repeats(
    texts: Survey, rows: np.ndarray, users: np.ndarray, used: np.ndarray
) -> dict[str, list[int]]:
    """Return the pairs that repeat, or contradict, an earlier pair of another source row.

    rows : (n,) source rows. users : (n,) codes of who judged. used : (n,) bool, pairs that count.
    The same comparison by two people is neither; two people who differ are no oddity.
    """
    index = np.flatnonzero(used)
    keys = pair_keys(texts)[index] + users[index].astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    order = np.lexsort((index, keys))
    index, keys = index[order], keys[order]
    again = np.flatnonzero((keys[1:] == keys[:-1]) & (rows[index[1:]] != rows[index[:-1]])) + 1
    same = texts.chosen[index[again]] == texts.chosen[index[again - 1]]
    return {
        "duplicate": sorted(index[again[same]].tolist()),
        "contradicting": sorted(index[again[~same]].tolist()),
    }


def _under_several(texts: Survey) -> float:
    """Return the share of the different answers that stand under more than one prompt."""
    answers = np.concatenate([texts.chosen, texts.rejected])
    prompts = np.concatenate([texts.prompts, texts.prompts])
    both = np.unique(np.stack([answers, prompts], axis=1), axis=0)
    _, counts = np.unique(both[:, 0], return_counts=True)
    return float(np.mean(counts > 1)) if len(counts) else 0.0
