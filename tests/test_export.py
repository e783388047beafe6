"""Model folders out: read back with safetensors and transformers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import transformers
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file
from sharded_model import build, rank_export, rank_train_and_export
from tiny_models import CHATML, FAMILIES, write_tiny_model, write_tiny_tokenizer

from skytrain.errors import UserError
from skytrain.export import ExportTensor, default_system, export, model_tensors

IM_END, END_OF_TEXT = 258, 256
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
STEPS = [[[7, 3, 9, 12, 200], [5, 6, 7]], [[1, 2, 3, 4, 320, 0]], [[9, 9, 8], [2, 4]]]
# Qwen's way: a system turn of its own where none is given.
QWEN_LIKE = """{%- if messages[0]['role'] == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' -}}
{%- else -%}
    {{- '<|im_start|>system\\nYou are a tiny model.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if not loop.first or message['role'] != 'system' -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# Starts with what is output, and with white space that block trimming would take.
LLAMA_LIKE = """
  {{ '<|im_start|>' }}{% if messages[0]['role'] == 'system' %}
 {% set system = messages[0]['content'] %}{% set messages = messages[1:] %}
{% else %}{% set system = 'none' %}
{% endif %}
 {{ system }}
  {% for message in messages %}
 [{{ message['role'] }}] {{ message['content'] }}<|im_end|>
{% endfor %}
"""
TEMPLATES = {"chatml": CHATML, "qwen": QWEN_LIKE, "llama": LLAMA_LIKE}
SYSTEM = "Think first.\nUse \"quotes\", 'single' ones, \\ and \\n, {{ braces }}, {% raw %}, %} 🙂 é\u2028\x7f end\n"


def reference_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def plain_export(source: Path, out: Path, **settings) -> Path:
    """Without training, in bf16, on this process."""
    return export(model_tensors(build(source), torch.bfloat16), source, out, **settings)


def render(folder: Path, messages: list[dict], **settings) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, tokenize=False, **settings)


def change_json(path: Path, *dropped: str, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value[key] for key in value if key not in dropped} | changes))


# --- weights ---


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3"])
def test_b51_load_then_save_without_a_step_gives_equal_bytes(tmp_path, family, dtype, world):
    """B51: every key, bit for bit, through fp32 shards and back, in the source's dtype."""
    source = write_tiny_model(tmp_path / "in", family, dtype=dtype, tied=family == "llama3")
    run_ranks(world, rank_export, source, tmp_path / "out", dtype, 100_000)
    before, after = stored(source), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(tensor.contiguous().view(torch.uint8), after[name].view(torch.uint8)), name


@pytest.mark.parametrize("tied", [False, True])
def test_b48_a_trained_head_is_exported_tied_or_untied(tmp_path, tied):
    """B48: 3 steps on 2 ranks, exported, reloaded in transformers: equal logits, also to transformers' own training."""
    source = write_tiny_model(tmp_path / "in", "qwen2", tied=tied)
    out = tmp_path / "out"
    row = STEPS[0]
    results = run_ranks(2, rank_train_and_export, source, out, STEPS, 0.05)
    reloaded = torch.cat([reference_logits(out, ids) for ids in row])
    for found in results:
        torch.testing.assert_close(found, reloaded, rtol=0, atol=1e-5)

    oracle = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for documents in STEPS:
        oracle.zero_grad()
        for ids in documents:
            scores = oracle(torch.tensor([ids])).logits[0, :-1]
            torch.nn.functional.cross_entropy(scores, torch.tensor(ids[1:]), reduction="sum").backward()
        count = sum(len(ids) - 1 for ids in documents)
        with torch.no_grad():
            for parameter in oracle.parameters():
                parameter -= 0.05 / count * parameter.grad
    with torch.no_grad():
        expected = torch.cat([oracle(torch.tensor([ids])).logits[0] for ids in row])
    torch.testing.assert_close(results[0], expected, rtol=0, atol=1e-5)
    assert (expected - torch.cat([reference_logits(source, ids) for ids in row])).abs().max() > 0.1

    assert (HEAD in stored(out)) == (not tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied


def test_b48_a_tied_head_is_one_parameter_from_the_start(tmp_path):
    """B48: there is no second name that meta initialisation or sharding could part from the first."""
    names = [name for name, _ in build(write_tiny_model(tmp_path, tied=True)).named_parameters(remove_duplicate=False)]
    assert EMBEDDING in names and HEAD not in names


@pytest.mark.parametrize("tied", [False, True])
def test_b49_the_index_is_what_the_files_hold(tmp_path, tied):
    """B49: keys, sizes and names of the shards; a header that safetensors accepts; no file above the limit."""
    source = write_tiny_model(tmp_path / "in", "qwen2", tied=tied)
    out = plain_export(source, tmp_path / "out", shard_bytes=60_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 2
    total = 0
    for shard in shards:
        with safe_open(out / shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert sorted(tensors) == sorted(name for name, place in index["weight_map"].items() if place == shard)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        assert size <= 60_000
        total += size
        content = (out / shard).read_bytes()
        assert len(content) == 8 + struct.unpack("<Q", content[:8])[0] + size
        assert struct.unpack("<Q", content[:8])[0] % 8 == 0
    assert index["metadata"]["total_size"] == total
    assert (HEAD in index["weight_map"]) == (not tied)


def test_b49_one_shard_has_no_index_and_nothing_of_the_source_is_left(tmp_path):
    """B49: the source's shards and index, its code and other weights stay behind."""
    source = write_tiny_model(tmp_path / "in", "qwen2", shard_bytes=100_000)
    for name in ("modeling_own.py", "pytorch_model.bin", "pytorch_model.bin.index.json", "optimizer.pt"):
        (source / name).write_text("{}")
    out = plain_export(source, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not list(tmp_path.glob(".*"))


def test_a_tensor_above_the_limit_has_a_shard_of_its_own(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    out = plain_export(source, tmp_path / "out", shard_bytes=1)
    assert len(list(out.glob("*.safetensors"))) == len(stored(source))
    assert stored(out).keys() == stored(source).keys()


def test_one_tensor_is_held_at_a_time(tmp_path):
    """Each tensor is dead before the next is fetched, whatever the shards."""
    source = write_tiny_model(tmp_path / "in", "qwen2")
    storages: list[torch.multiprocessing.reductions.StorageWeakRef] = []

    def fetch(shape):
        assert all(storage.expired() for storage in storages)
        tensor = torch.ones(shape)
        storages.append(torch.multiprocessing.reductions.StorageWeakRef(tensor.untyped_storage()))
        return tensor

    tensors = [
        (name, tuple(tensor.shape), lambda shape=tensor.shape: fetch(shape)) for name, tensor in stored(source).items()
    ]
    export(tensors, source, tmp_path / "out", dtype=torch.float32, shard_bytes=90_000)
    assert len(storages) == len(tensors)


# --- config.json, generation_config.json, tokenizer ---


@pytest.mark.parametrize("keys", [{"torch_dtype": "float32"}, {"dtype": "float32"}, {}])
def test_config_says_the_dtype_of_the_weights(tmp_path, keys):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    change_json(source / "config.json", "dtype", "architectures", **keys)
    out = plain_export(source, tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(out).dtype == torch.bfloat16
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert after["architectures"] == ["Qwen2ForCausalLM"]
    for key in ("torch_dtype", "dtype", "architectures"):
        before.pop(key, None), after.pop(key, None)
    assert before == after


@pytest.mark.parametrize("stops", [None, END_OF_TEXT, [END_OF_TEXT, 5]])
def test_b33_the_end_of_turn_is_among_the_stop_tokens(tmp_path, stops):
    """B33: a base model stops at <|endoftext|>; its export stops at <|im_end|> too, and generates so."""
    source = write_tiny_model(tmp_path / "in", "qwen2")
    path = source / "generation_config.json"
    path.unlink()
    if stops is not None:
        path.write_text(json.dumps({"eos_token_id": stops, "temperature": 0.7, "do_sample": True}))
    out = plain_export(source, tmp_path / "out")
    found = transformers.GenerationConfig.from_pretrained(out)
    others = stops if isinstance(stops, list) else [END_OF_TEXT]
    assert sorted(found.eos_token_id) == sorted([IM_END, *others])
    assert stops is None or (found.temperature == 0.7 and found.do_sample)
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template


def test_b33_a_model_that_says_end_of_turn_stops_there(tmp_path):
    """B33: in transformers, and without the mark on which version 4 makes the settings anew from config.json."""
    source = write_tiny_model(tmp_path / "in", "qwen2")
    mark = "_from_model_config"
    assert mark in json.loads((source / "generation_config.json").read_text())
    model = build(source)
    with torch.no_grad():
        # A constant stream, which the head turns into <|im_end|> always.
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name == EMBEDDING or "norm" in name else 0.0)
        model.lm_head.weight[IM_END] = 1.0
    out = export(model_tensors(model, torch.bfloat16), source, tmp_path / "out")
    assert mark not in json.loads((out / "generation_config.json").read_text())
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    answer = reloaded.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False, pad_token_id=END_OF_TEXT)
    assert answer[0].tolist() == [1, 2, 3, IM_END]


def test_files_that_need_no_change_are_copied_as_bytes(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    # Formatting that a round trip through JSON would not keep.
    (source / "generation_config.json").write_text('{"eos_token_id":   [258, 256], "top_p": 0.80}')
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"):
        (source / name).write_bytes(b" {} \r\n\xff")
    (source / "chat_template.jinja").write_text(CHATML + "\n\n")
    plain_export(source, tmp_path / "out")
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("stops", ['"258"', "[258, null]", "true", "[1.5]", "{}"])
def test_stop_tokens_that_are_no_ids_are_refused(tmp_path, stops):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    (source / "generation_config.json").write_text(f'{{"eos_token_id": {stops}}}')
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id"):
        plain_export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_tokenizer_is_exported_with_its_own_stop_tokens(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    out = plain_export(source, tmp_path / "out")
    assert (out / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()


# --- the default system turn ---


@pytest.mark.parametrize("place", ["tokenizer_config", "jinja", "both", "named"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_default_system_turn_renders_as_if_it_were_given(tmp_path, template, place):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    text = TEMPLATES[template]
    if place == "named":
        text = [{"name": "default", "template": text}, {"name": "tool_use", "template": "tools " + text}]
    write_tiny_tokenizer(source, text)
    if place in ("jinja", "both"):
        (source / "chat_template.jinja").write_text(text)
    if place == "jinja":
        change_json(source / "tokenizer_config.json", "chat_template")
    out = plain_export(source, tmp_path / "out", default_system=SYSTEM)
    user = [{"role": "user", "content": "hi"}]
    talk = [*user, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "so?"}]
    system = [{"role": "system", "content": SYSTEM}]
    for messages in (user, talk):
        for settings in ({}, {"add_generation_prompt": True}):
            expected = render(source, system + messages, **settings)
            assert render(out, messages, **settings) == expected
            assert SYSTEM in expected
        # A system turn of the user's is kept, an empty one too.
        for content in ("Mine.", ""):
            given = [{"role": "system", "content": content}, *messages]
            assert render(out, given) == render(source, given)
    if place == "both":
        settings = json.loads((out / "tokenizer_config.json").read_text())
        assert settings["chat_template"] == (out / "chat_template.jinja").read_text()
    if place == "named":
        assert render(out, user, chat_template="tool_use") == render(source, system + user, chat_template="tool_use")


def test_a_default_system_turn_changes_nothing_else(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    out = plain_export(source, tmp_path / "out", default_system="Be brief.")
    before, after = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in (source, out))
    assert before.pop("chat_template") != after.pop("chat_template")
    assert before == after
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_default_system_turn_needs_a_chat_template(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    change_json(source / "tokenizer_config.json", "chat_template")
    with pytest.raises(UserError, match="default_system"):
        plain_export(source, tmp_path / "out", default_system="Be brief.")
    assert not (tmp_path / "out").exists()


def test_the_default_system_setting(tmp_path):
    (tmp_path / "system.txt").write_text("Think.\nThen answer.\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    assert default_system("none", "of the rows") is None
    assert default_system("dataset", "of the rows") == "of the rows"
    assert default_system("dataset", "") == ""
    assert default_system(str(tmp_path / "system.txt"), None) == "Think.\nThen answer."
    for setting in ("dataset", str(tmp_path / "absent.txt"), str(tmp_path / "latin.txt"), str(tmp_path)):
        with pytest.raises(UserError, match=r"export\.default_system"):
            default_system(setting, None)


# --- all or nothing ---


def test_a_place_that_is_taken_is_refused_untouched(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    out = tmp_path / "out"
    out.mkdir()
    plain_export(source, out)  # an empty folder is no obstacle
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for place in (out, source, out / "config.json"):
        with pytest.raises(UserError, match="not empty"):
            plain_export(source, place)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_an_export_that_fails_leaves_nothing(tmp_path):
    source = write_tiny_model(tmp_path / "in", "qwen2")

    def fail():
        raise RuntimeError("lost")

    tensors = model_tensors(build(source), torch.bfloat16)
    tensors[5] = ExportTensor(tensors[5].name, tensors[5].shape, fail)
    with pytest.raises(RuntimeError, match="lost"):
        export(tensors, source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    # What a killed process left behind is no obstacle either.
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model-00009-of-00009.safetensors").write_text("")
    out = plain_export(source, tmp_path / "out")
    assert len(list(out.glob("*.safetensors"))) == 1


def test_a_full_disk_is_said_beforehand(tmp_path, monkeypatch):
    source = write_tiny_model(tmp_path / "in", "qwen2")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="GB"):
        plain_export(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_export_loads_in_transformers(tmp_path, family):
    source = write_tiny_model(tmp_path / "in", family, dtype=torch.bfloat16)
    out = plain_export(source, tmp_path / "out", shard_bytes=50_000)
    assert torch.equal(reference_logits(out, [1, 2, 3]), reference_logits(source, [1, 2, 3]))


def test_a_folder_that_cannot_be_made_is_not_called_full(tmp_path):
    (tmp_path / "file").touch()
    source = write_tiny_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"export to .*file/out: cannot be written \(Not a directory\); name one in a"):
        export([], source, tmp_path / "file" / "out")
