"""Model folders that are forged or damaged: one error, and no waiting."""

import json
import os
import pickle

import pytest
import torch

from decdpo.errors import PolicyError
from decdpo.policies.lm import hub

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")


def load(folder):
    return hub.load(folder, torch.float32, False)


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"7", b"null", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}",
     b'{"a": "\\ud800"}', b'{"a": ' * 100 + b"1" + b"}" * 100],
)  # fmt: skip
def test_a_configuration_that_is_no_object_is_named(make_model, file, content):
    folder = make_model()
    (folder / file).write_bytes(content)
    with pytest.raises(PolicyError, match=file):
        load(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_position_embeddings": "many"}, {"max_position_embeddings": 0},
        {"max_position_embeddings": 10**30}, {"max_position_embeddings": [4]},
        {"vocab_size": -1}, {"vocab_size": "x"}, {"vocab_size": 10**15}, {"model_type": 3},
        {"model_type": "no such"}, {"quantization_config": "yes"}, {"hidden_size": "wide"},
        {"hidden_size": -8}, {"num_attention_heads": 0}, {"rms_norm_eps": "small"},
        {"rope_parameters": 5}, {"hidden_act": "none such"}, {"num_hidden_layers": "two"},
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_kind_is_one_error(make_model, fields):
    folder = make_model()
    change(folder, **fields)
    with pytest.raises(PolicyError, match="cannot be loaded") as caught:
        load(folder)
    assert str(folder) in caught.value.what and "\n" not in caught.value.what


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]
)
def test_a_pipe_in_place_of_a_file_does_not_hang(make_model, file):
    folder = make_model()
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(PolicyError, match=file):
        load(folder)


def test_weights_that_are_pickles_are_never_read(make_model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = make_model()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PolicyError, match="cannot be loaded"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_digest_of_a_configuration_is_of_what_computes(make_model):
    folder = make_model()
    before = hub.config_digest(folder, False)
    change(folder, transformers_version="9.9", dtype="bfloat16", torch_dtype="float16")
    change(folder, _name_or_path="elsewhere", use_cache=False)
    assert hub.config_digest(folder, False) == before
    change(folder, rms_norm_eps=0.1)
    assert hub.config_digest(folder, False) != before
