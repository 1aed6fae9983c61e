"""Tokens and reference values that are kept: what finds them, and what is computed again."""

import gc
import shutil

import numpy as np
import pytest
import torch

from decdpo.data.shard import Pair, PreferenceShard
from decdpo.errors import DataError, PolicyError
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm import reference
from decdpo.policies.lm.pace import Pace
from decdpo.policies.lm.text.speller import Speller, TextRules
from decdpo.policies.objective import Objective, check_start
from tests.unit.test_policies_causal_lm import MODEL, PAIRS

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason=f"no test model {MODEL}")

CHECK = 1
"""Pairs that are scored again at every start, to compare the bits."""


def model(folder=MODEL, **more):
    return CausalLM(folder, **{"max_length": 64, **more})


@pytest.fixture(scope="module")
def policy():
    return model()


def saved(folder, pairs=PAIRS, num_train=None, agent=2):
    path = folder / f"agent_{agent:06d}.h5"
    PreferenceShard.from_pairs(pairs, num_train, agent=agent).save(path)
    return path


@pytest.fixture
def path(tmp_path):
    return saved(tmp_path)


@pytest.fixture
def work(monkeypatch):
    """Return what was done since the last call: pairs scored, and texts that a tokenizer read."""
    done = [0, 0]
    score, spell = CausalLM._scored, Speller.spell

    def scoring(self, data, rows):
        done[0] += len(rows)
        return score(self, data, rows)

    def spelling(self, texts, *rest):
        done[1] += len(texts)
        return spell(self, texts, *rest)

    monkeypatch.setattr(CausalLM, "_scored", scoring)
    monkeypatch.setattr(Speller, "spell", spelling)

    def since():
        found = tuple(done)
        done[:] = [0, 0]
        return found

    return since


def encode(policy, path):
    return policy.encode(PreferenceShard.open(path))


def test_a_second_start_computes_and_tokenizes_nothing_again(policy, path, work):
    first = encode(policy, path)
    assert work() == (6, 30)
    again = encode(model(), path)
    assert work() == (CHECK, 0)
    assert torch.equal(first.reference, again.reference)
    assert again.tokens.digest == first.tokens.digest and again.tallies == first.tallies
    assert again.notes == ()


def test_pairs_dealt_and_held_out_otherwise_are_found(policy, path, work, tmp_path):
    values = encode(policy, path).reference
    saved(tmp_path, PAIRS[::-1], num_train=2)
    other = encode(policy, path)
    assert work() == (6 + CHECK, 30) and other.num_heldout == 4
    assert torch.equal(other.reference.flip(1), values)
    # The values belong to the folder, the tokens to the agent.
    assert torch.equal(encode(policy, saved(tmp_path, PAIRS[:3], agent=0)).reference, values[:, :3])
    assert work() == (CHECK, 15)


def test_only_missing_pairs_are_computed(policy, path, work, tmp_path):
    encode(policy, path)
    saved(tmp_path, [PAIRS[0], Pair("A new", " pair.", " one."), *PAIRS[1:]])
    work()
    encode(policy, path)
    assert work() == (1 + CHECK, 5)


def test_a_repeated_pair_is_computed_once(policy, tmp_path, work):
    encode(policy, saved(tmp_path, PAIRS * 3))
    assert work()[0] == 6


def test_a_length_limit_that_cuts_nothing_finds_everything(policy, path, work):
    encode(policy, path)
    work()
    encode(model(max_length=60), path)
    assert work() == (CHECK, 0)
    encode(model(max_length=16), path)
    scored, spelled = work()
    assert scored > CHECK and spelled == 0


def test_other_weights_do_not_hit(policy, path, work, tmp_path):
    from safetensors.torch import load_file, save_file

    first = encode(policy, path).reference
    folder = shutil.copytree(MODEL, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    work()
    other = model(folder)
    assert other.digest != policy.digest
    assert not torch.equal(encode(other, path).reference, first)
    assert work() == (6, 0)


def test_another_configuration_does_not_hit(policy, path, work, tmp_path):
    encode(policy, path)
    folder = shutil.copytree(MODEL, tmp_path / "other")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-04'))
    work()
    assert model(folder).digest != policy.digest
    encode(model(folder), path)
    assert work()[0] == 6


def test_another_precision_or_way_of_scoring_does_not_hit(policy, path, work):
    encode(policy, path)
    for way in ({"dtype": "bfloat16"}, {"plain": True}):
        work()
        encode(model(**way), path)
        assert work() == (6, 0)


def test_packing_several_pairs_into_a_row_finds_the_same_values(policy, path, work):
    first = encode(policy, path).reference
    packing = model(tokens_at_once=10**6)
    work()
    data = encode(packing, path)
    assert work() == (CHECK, 0) and torch.equal(data.reference, first)
    check_start(packing, data)


def test_another_tokenizer_or_end_reads_the_texts_again(policy, path, work, tmp_path):
    first = encode(policy, path)
    work()
    other = encode(model(rules=TextRules(eos="<s>")), path)
    assert work() == (6, 30) and other.tokens.digest != first.tokens.digest
    folder = shutil.copytree(MODEL, tmp_path / "other")
    tokenizer = folder / "tokenizer.json"
    text = tokenizer.read_text()
    assert '"lower"' not in text
    tokenizer.write_text(text.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))
    if tokenizer.read_text() != text:
        work()
        encode(model(folder), path)
        assert work()[1] == 30


def test_what_is_found_of_tokens_counts_what_was_met_when_they_were_made(policy, tmp_path):
    pairs = [("Tom", " ran</s> away", "<s> ran"), ("", "", "x"), ("a", "b", "b")] * 100
    path = saved(tmp_path, pairs)
    first, again = encode(policy, path), encode(policy, path)
    assert first.tallies == again.tallies and any(t.count for t in first.tallies)
    assert first.tokens.truncation == again.tokens.truncation
    for one, other in zip((first.tokens.ids, first.tokens.edges),
                          (again.tokens.ids, again.tokens.edges)):  # fmt: skip
        assert one.dtype == other.dtype and np.array_equal(one, other)


def test_a_kill_keeps_what_was_computed_before(policy, path, work, monkeypatch):
    monkeypatch.setattr(reference, "KEEP_SECONDS", 0.0)
    score, calls = CausalLM._scored, []

    def interrupted(self, data, rows):
        calls.append(rows)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(self, data, rows)

    monkeypatch.setattr(CausalLM, "_scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(policy, path)
    monkeypatch.setattr(CausalLM, "_scored", score)
    calls.clear()
    monkeypatch.setattr(CausalLM, "_scored", lambda s, d, r: calls.append(r) or score(s, d, r))
    encode(policy, path)
    assert len(calls) == 3 + CHECK


def test_a_torn_file_costs_the_values_in_it_and_is_said(policy, path, work):
    first = encode(policy, path).reference
    store = path.with_name("reference.cache")
    store.write_bytes(store.read_bytes()[:-50])
    work()
    data = encode(policy, path)
    assert work() == (1 + CHECK, 0) and torch.equal(data.reference, first)
    assert any("reference.cache was torn" in note for note in data.notes)
    assert encode(policy, path).notes == ()


def test_another_file_in_the_place_of_the_values_is_one_error(policy, path):
    path.with_name("reference.cache").write_text("my own notes")
    with pytest.raises(DataError, match="reference.cache cannot be used"):
        encode(policy, path)
    assert path.with_name("reference.cache").read_text() == "my own notes"


def test_a_machine_that_rounds_otherwise_computes_its_own_and_both_are_kept(path, work):
    here, there = model(), model()
    there.reference._rounding = b"elsewher"
    encode(here, path)
    work()
    data = encode(there, path)
    assert work()[0] == 6 and any("rounds differently" in note for note in data.notes)
    for one in (here, there):
        again = encode(one, path)
        assert work()[0] == CHECK and again.notes == ()


def test_a_value_with_other_bits_is_computed_again(policy, path, work, monkeypatch):
    first = encode(policy, path).reference
    path.with_name("reference.cache").unlink()
    score = CausalLM._scored
    monkeypatch.setattr(CausalLM, "_scored", lambda s, d, r: score(s, d, r) * (1 + 1e-6))
    assert not torch.equal(encode(policy, path).reference, first)
    monkeypatch.setattr(CausalLM, "_scored", score)
    data = encode(policy, path)
    assert torch.equal(data.reference, first)
    assert any("rounds differently" in note for note in data.notes)
    check_start(policy, data)
    assert encode(policy, path).notes == ()


def test_a_folder_that_cannot_be_written_is_said_and_training_goes_on(policy, path, monkeypatch):
    from decdpo.data import cache

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache.os, "pwrite", refuse)
    shard = PreferenceShard.open(path)
    data = policy.encode(shard)
    check_start(policy, data)
    said = [note for note in data.notes if "Read-only" in note]
    assert len(said) == 2 and all("are not kept for the next run" in note for note in said)
    assert torch.equal(policy.encode(shard).reference, data.reference)


def test_a_value_that_is_not_finite_is_refused_and_not_kept(policy, path, monkeypatch):
    score = CausalLM._scored
    monkeypatch.setattr(CausalLM, "_scored", lambda s, d, r: score(s, d, r) * float("nan"))
    with pytest.raises(DataError, match="agent 2: the reference's log-probabilities of source row"):
        encode(policy, path)
    monkeypatch.setattr(CausalLM, "_scored", score)
    check_start(policy, encode(policy, path))


def test_progress_counts_what_is_missing(path, tmp_path):
    pace = Pace(None, total=7)
    policy = model(pace=pace)
    encode(policy, path)
    saved(tmp_path, [Pair("A new", " pair.", " one."), *PAIRS])
    pace = policy._pace = Pace(None, total=7)
    encode(policy, path)
    assert pace.line().startswith("reference log-probabilities: 1 of 1 pairs")


def test_the_reference_stays_what_it_was_while_the_policy_moves(path):
    policy = model()
    first = encode(policy, path).reference
    params = FlatParams(policy.layout, policy.initial())
    params.data.mul_(1.5)
    data = policy.encode(PreferenceShard.from_pairs(PAIRS))
    assert torch.equal(data.reference, first)
    # The module is the agent's again, not that of the reference.
    assert policy._bound is None or policy.weights.taken
    moved = policy.forward(params, data, np.arange(2), need_grad=False).scores
    assert (moved.chosen != moved.ref_chosen).all()


def test_weights_that_changed_on_the_disk_are_not_taken_for_the_reference(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    policy = model(folder)
    policy.initial()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PolicyError, match="other weights than it did when"):
        policy.initial()


def vectors(policy):
    """Return how many vectors as long as the parameters are alive, whoever holds them."""
    gc.collect()
    seen = {}
    for thing in gc.get_objects():
        # What torch.compile has left behind is no memory.
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(nbytes >= policy.layout.size * 4 for nbytes in seen.values())


def test_the_policy_keeps_no_copy_of_the_weights(path):
    gc.collect()
    policy = model()
    before = vectors(policy) - 1
    data = encode(policy, path)
    assert vectors(policy) - before == 1
    params = FlatParams(policy.layout, policy.initial())
    check_start(policy, data, start=params)
    assert vectors(policy) - before == 1
    Objective(policy, DPO()).evaluate(params, data, np.arange(3))
    assert vectors(policy) - before == 1, "a model that is only measured has no gradient"
    Objective(policy, DPO()).gradient(params, data, np.arange(3))
    assert vectors(policy) - before == 2
    del params
    policy.encode(PreferenceShard.from_pairs(PAIRS))
    assert vectors(policy) - before <= 2


def test_in_bfloat16_there_is_one_narrow_copy_and_it_follows_what_it_is_given(path):
    policy = model(dtype="bfloat16")
    data, rows = encode(policy, path), np.arange(3)
    first = FlatParams(policy.layout, policy.initial())
    start = policy.forward(first, data, rows, need_grad=False).scores.chosen
    for _ in range(3):
        # Freed and made again, often at the same address, and never changed in place.
        other = FlatParams(policy.layout, first.data * 1.25)
        moved = policy.forward(other, data, rows, need_grad=False).scores.chosen
        del other
        same = FlatParams(policy.layout, first.data * 1.0)
        assert torch.equal(policy.forward(same, data, rows, need_grad=False).scores.chosen, start)
        assert not torch.equal(moved, start)
        del same
