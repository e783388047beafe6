"""Model folders in: what config.json means, what is refused, and what a damaged folder says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from sharded_model import build, logits, rank_parameters
from tiny_models import FAMILIES, write_tiny_model

from skytrain.errors import UserError
from skytrain.hf import read_config

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 250, 300]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def change_config(folder: Path, *dropped: str, **changes: object) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in dropped} | changes))
    return folder


def change_tensors(folder: Path, change) -> Path:
    """`change` edits the dictionary of one file's tensors in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def reference_logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def assert_as_transformers(folder: Path) -> None:
    torch.testing.assert_close(logits(build(folder), [IDS]), reference_logits(folder), rtol=0, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path / "model", "qwen2")


# --- config.json ---


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 500000.0},
        {"rope_theta": 500000.0, "rope_scaling": None},
        {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        # Without a pretraining length in the block, max_position_embeddings is it.
        {"rope_theta": 10000.0, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        {
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            "original_max_position_embeddings": 64,
        },
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0, "rope_theta": 100.0}},
    ],
)
def test_rope_settings_in_the_form_of_transformers_4(folder, old):
    assert_as_transformers(change_config(folder, "rope_parameters", "dtype", **old, torch_dtype="float32"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3"])
def test_absent_keys_have_transformers_defaults(tmp_path, family):
    folder = write_tiny_model(tmp_path, family)
    sizes = {"hidden_size": 512, "num_attention_heads": 64}
    names = ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    change_config(folder, *names, "rope_parameters", "attention_bias", "hidden_act", **sizes)
    expected = transformers.AutoConfig.from_pretrained(folder)
    found = read_config(folder)
    for name in names:
        wanted = getattr(expected, name, 512 // 64)  # Qwen2 has no head_dim
        assert getattr(found, name) == wanted, name
    assert found.rope.theta == expected.rope_parameters["rope_theta"]
    # A null is not an absence.
    assert read_config(change_config(folder, num_key_value_heads=None)).num_key_value_heads == 64


def test_the_architecture_stands_in_for_a_missing_model_type(folder):
    assert read_config(change_config(folder, "model_type")).model_type == "qwen2"


REFUSED = {
    "model_type": {"model_type": "mistral"},
    "architectures": {"architectures": ["Qwen2ForSequenceClassification"]},
    "quantization_config": {"quantization_config": {"quant_method": "awq"}},
    "hidden_act": {"hidden_act": "gelu"},
    "mlp_bias": {"mlp_bias": True},
    "attention_dropout": {"attention_dropout": 0.1},
    "pretraining_tp": {"pretraining_tp": 2},
    "use_sliding_window": {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "layer_types": None,
    },
    "layer_types": {"layer_types": ["full_attention", "sliding_attention"]},
    "num_experts": {"num_experts": 8},
    "num_local_experts": {"num_local_experts": 8},
    "use_mrope": {"use_mrope": True},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "longrope": {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
    "mrope_section": {"rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]}},
    "factor": {"rope_scaling": {"type": "yarn"}},
    "low_freq_factor": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "num_attention_heads": {"num_attention_heads": 4, "num_key_value_heads": 3},
    "hidden_size": {"hidden_size": "64"},
    "head_dim": {"head_dim": 15},
}


@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_are_not_implemented_are_refused_by_name(folder, key):
    with pytest.raises(UserError, match=key) as caught:
        read_config(change_config(folder, **REFUSED[key]))
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_b53_a_sliding_window_that_reaches_no_layer_matches_transformers(folder):
    """B53: `use_sliding_window: true` is refused where a layer would slide, and right where none does."""
    change_config(folder, "layer_types", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    assert_as_transformers(folder)
    with pytest.raises(UserError, match="use_sliding_window"):
        read_config(change_config(folder, max_window_layers=1))


@pytest.mark.parametrize("text", [None, "{", "[]", "\udcff"])
def test_no_readable_config_is_a_user_error(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_a_number_that_is_not_finite_is_refused(folder, key, number):
    path = change_config(folder, "rope_parameters", **{key: "here"}) / "config.json"
    path.write_text(path.read_text().replace('"here"', number))
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("vocab_size", 10**13), ("num_hidden_layers", 200_000), ("head_dim", 2**40), ("rope_theta", 1.0)]
)
def test_a_size_that_no_model_has_is_named(folder, key, value):
    with pytest.raises(UserError, match=key):
        read_config(change_config(folder, "rope_parameters", **{key: value}))


def test_a_missing_size_is_named(folder):
    with pytest.raises(UserError, match="intermediate_size"):
        read_config(change_config(folder, "intermediate_size"))


# --- weights ---


def test_b52_a_missing_tensor_is_named(folder):
    """B52: one key deleted from a shard."""
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(UserError, match=r"model\.layers\.1\.self_attn\.k_proj\.bias is missing"):
        build(folder)


def test_b52_an_unknown_tensor_is_named(folder):
    """B52: one key added to a shard."""
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.2.extra": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"model\.layers\.2\.extra is unknown"):
        build(folder)


def test_b52_a_tensor_of_another_shape_is_named(folder):
    """B52: a wrong shape, with as many elements."""
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].reshape(64, 112).contiguous()}))
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is \[64, 112\].*\[112, 64\]"):
        build(folder)


def test_b52_a_tensor_in_only_one_of_index_and_shard_is_named(tmp_path):
    """B52: the index and the shards of a folder are two views that must agree."""
    folder = write_tiny_model(tmp_path, "qwen2", shard_bytes=200_000)
    index = folder / "model.safetensors.index.json"
    intact = json.loads(index.read_text())
    more = intact["weight_map"] | {"model.layers.7.ghost": "model-00001-of-00003.safetensors"}
    index.write_text(json.dumps(intact | {"weight_map": more}))
    with pytest.raises(UserError, match=r"model-00001-of-00003.*model\.layers\.7\.ghost"):
        build(folder)
    fewer = {name: file for name, file in intact["weight_map"].items() if name != "model.norm.weight"}
    index.write_text(json.dumps(intact | {"weight_map": fewer}))
    with pytest.raises(UserError, match=r"index\.json.*model\.norm\.weight"):
        build(folder)


def test_b52_two_tensors_whose_files_are_exchanged_in_the_index_are_named(tmp_path):
    folder = write_tiny_model(tmp_path, "qwen2", shard_bytes=200_000)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    one = min(places)
    other = next(name for name in sorted(places) if places[name] != places[one])
    index.write_text(json.dumps({"weight_map": places | {one: places[other], other: places[one]}}))
    with pytest.raises(
        UserError, match=rf"index\.json: says {places[other]} of tensor {one}, and the files say {places[one]}"
    ):
        build(folder)


@pytest.mark.parametrize(
    "file",
    [
        3,
        None,
        ["a"],
        "",
        "..",
        "../model/model-00001-of-00003.safetensors",
        "/etc/hosts",
        "a\0.safetensors",
        "a" * 300 + ".safetensors",
    ],
)
def test_an_index_that_names_no_file_of_its_folder_is_refused(tmp_path, file):
    folder = write_tiny_model(tmp_path, "qwen2", shard_bytes=200_000)
    index = folder / "model.safetensors.index.json"
    intact = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": intact["weight_map"] | {"model.norm.weight": file}}))
    with pytest.raises(UserError, match=r"index\.json: tensor model\.norm\.weight"):
        build(folder)


def test_a_tensor_that_is_not_floating_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD].to(torch.int8)}))
    with pytest.raises(UserError, match=r"lm_head\.weight is I8"):
        build(folder)


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone", "empty"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    folder = write_tiny_model(tmp_path, "qwen2", shard_bytes=200_000)
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    damaged = {"cut": content[:-1], "garbage": b"\xff" * len(content), "gone": None, "empty": b""}[damage]
    shard.unlink() if damaged is None else shard.write_bytes(damaged)
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors"):
        build(folder)


def test_a_folder_without_safetensors_says_so(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        build(folder)


def test_stored_rotary_tables_are_dropped(folder):
    change_tensors(
        folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    )
    assert_as_transformers(folder)


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    folder = write_tiny_model(tmp_path, "qwen2", tied=True)
    expected = logits(build(folder), [IDS])
    change_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert torch.equal(logits(build(folder), [IDS]), expected)

    def alter_last_row(tensors):
        tensors[HEAD][-1, -1] += 1

    change_tensors(folder, alter_last_row)
    with pytest.raises(UserError, match=r"lm_head\.weight differs"):
        build(folder)


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path, "qwen2", tied=True)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        build(change_config(folder, tie_word_embeddings=False))


@pytest.mark.parametrize(("world", "nodes"), [(1, 1), (3, 1), (4, 2)])
def test_sharded_parameters_are_the_stored_tensors(tmp_path, world, nodes):
    """bf16 on disk, fp32 shards; no dimension here divides by 3, and 2 nodes hold replicas."""
    folder = write_tiny_model(tmp_path, "qwen3", dtype=torch.bfloat16, shard_bytes=60_000)
    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    for found in run_ranks(world, rank_parameters, folder, nodes):
        assert found.keys() == stored.keys()
        for name, tensor in stored.items():
            assert torch.equal(found[name], tensor.float()), name


def test_a_folder_of_links_is_read(folder, tmp_path):
    """A download cache keeps a snapshot as links to blobs."""
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    assert torch.equal(logits(build(links), [IDS]), logits(build(folder), [IDS]))
    shutil.rmtree(folder)
    with pytest.raises(UserError):
        build(links)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_b51_biases_and_norms_are_loaded(tmp_path, family):
    """B51: random non-zero biases; each tensor that is zeroed on disk changes the logits, so each was read."""
    folder = write_tiny_model(tmp_path, family)
    expected = logits(build(folder), [IDS])
    torch.testing.assert_close(expected, reference_logits(folder), rtol=0, atol=1e-5)
    intact = load_file(folder / "model.safetensors")
    for name in [name for name in intact if "layers.1" in name]:
        change_tensors(folder, lambda tensors, name=name: tensors[name].zero_())
        changed = (logits(build(folder), [IDS]) - expected).abs().max()
        # A key's bias adds the same to all scores of a query before it is rotated: small, never nothing.
        assert changed > 1e-5, name
        save_file(intact, folder / "model.safetensors", metadata={"format": "pt"})
