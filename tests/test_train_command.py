"""What a user can get wrong before step 0: one clear line, exit status 2, nothing written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import config
from skytrain.errors import UserError
from skytrain.kernels import backend
from skytrain.locks import lock
from skytrain.trainer import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """(model, data): right ones, to be copied and spoilt."""
    root = tmp_path_factory.mktemp("inputs")
    model = write_tiny_model(root / "model", "qwen2")
    return model, runs.write_data(root / "data", runs.random_documents(6, vocab=VOCAB_SIZE), model)


@pytest.fixture
def model(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders[0], tmp_path / "model"))


@pytest.fixture
def data(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders[1], tmp_path / "data"))


def shard(data: Path) -> Path:
    return next(data.glob("tokens-*.safetensors"))


def refused(model: Path, data: Path, tmp_path: Path, **overrides) -> str:
    """The one line that `train` refuses with; the run folder must not have come into being."""
    with pytest.raises(UserError) as error:
        train(runs.settings(model, data, tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_right_inputs_train(model, data, tmp_path, capsys, monkeypatch):
    """So that the refusals below are of what each test spoils. What is made is told last, and what to do with it."""
    vllm = tmp_path / "an environment" / "bin" / "vllm"
    vllm.parent.mkdir(parents=True)
    vllm.touch(0o755)
    monkeypatch.setenv("PATH", f"{vllm.parent}:{os.environ['PATH']}")
    train(runs.settings(model, data, tmp_path / "run"))
    (exported,) = (tmp_path / "run" / "export").iterdir()
    last = capsys.readouterr().out.splitlines()[-1]
    command = f"'{vllm}' serve {exported} --gpu-memory-utilization 0.5"
    assert last == f"exported to {exported}; serve it: {command}"
    assert config.load(tmp_path / "run" / "config.toml").model.path == str(model)


def test_a_missing_shard(model, data, tmp_path):
    name = shard(data).name
    shard(data).unlink()
    assert name in refused(model, data, tmp_path)


def test_a_truncated_shard(model, data, tmp_path):
    path = shard(data)
    path.write_bytes(path.read_bytes()[:-5])
    assert path.name in refused(model, data, tmp_path)


def test_a_shard_with_a_corrupt_header(model, data, tmp_path):
    path = shard(data)
    raw = bytearray(path.read_bytes())
    raw[8:40] = b"\xff" * 32
    path.write_bytes(raw)
    assert path.name in refused(model, data, tmp_path)


@pytest.mark.parametrize("place", [-1, -400, 200])
def test_a_byte_that_nobody_wrote(model, data, tmp_path, place):
    """A mark, a token, a document's number: each is a valid value, so that only the checksum can tell."""
    path = shard(data)
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    assert path.name in refused(model, data, tmp_path)


def test_an_unfinished_data_set(model, data, tmp_path):
    (data / "dataset.json").unlink()
    assert "dataset.json" in refused(model, data, tmp_path)


def test_a_data_set_that_is_not_there(model, tmp_path):
    assert "nowhere" in refused(model, tmp_path / "nowhere", tmp_path)


def test_another_tokenizer(model, data, tmp_path):
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    message = refused(model, data, tmp_path)
    assert "tokenizer" in message
    assert "data.path" in message


def test_another_chat_template(model, data, tmp_path):
    changed = False
    for path in (model / "chat_template.jinja", model / "tokenizer_config.json"):
        if path.exists() and "im_end" in path.read_text():
            path.write_text(path.read_text().replace("im_end", "im_stop"))
            changed = True
    assert changed
    assert "chat template" in refused(model, data, tmp_path)


def test_labels_outside_the_vocabulary(model, tmp_path):
    documents = [([1, 2, VOCAB_SIZE + 7], [0, 1, 1])] * 3
    data = runs.write_data(tmp_path / "data", documents, model)
    message = refused(model, data, tmp_path)
    assert str(VOCAB_SIZE + 7) in message
    assert str(VOCAB_SIZE) in message


def test_an_empty_data_set(model, data, tmp_path):
    info = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(info | {"n_docs": 0, "n_tokens": 0, "n_trained": 0, "shards": []}))
    assert "empty" in refused(model, data, tmp_path)


def test_a_document_longer_than_a_row(model, data, tmp_path):
    message = refused(model, data, tmp_path, batch__max_tokens=2)
    assert "batch.max_tokens" in message


def test_a_held_out_document_longer_than_a_row(model, tmp_path):
    data = runs.write_data(tmp_path / "data", [([1, 2, 3], [0, 1, 1])] * 2, model)
    held_out = runs.write_data(tmp_path / "held_out", [([1] * 9, [0] * 8 + [1])] * 2, model)
    message = refused(model, data, tmp_path, data__validation=str(held_out), batch__max_tokens=5)
    assert "data.validation" in message


def test_a_model_that_is_not_there(model, data, tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere", data, tmp_path)


def test_a_model_with_a_missing_tensor(model, data, tmp_path):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors")
    assert "model.layers.1.mlp.up_proj.weight" in refused(model, data, tmp_path)


def test_no_default_system_to_take_from_the_data_set(model, data, tmp_path):
    assert "export.default_system" in refused(model, data, tmp_path, export__default_system="dataset")
    assert "prompt.txt" in refused(model, data, tmp_path, export__default_system=str(tmp_path / "prompt.txt"))


def test_a_run_that_ended_before_its_export_makes_it_when_it_resumes(model, data, tmp_path):
    settings = runs.settings(model, data, tmp_path / "run")
    train(settings)
    shutil.rmtree(tmp_path / "run" / "export")
    train(settings, resume=True)
    assert len(list((tmp_path / "run" / "export").glob("step-*/model.safetensors"))) == 1


@pytest.mark.parametrize("change", [{"run__seed": 1}, {"batch__documents": 3}, {"data__path": "another"}])
def test_resuming_with_other_steps_than_those_done_is_refused(model, data, tmp_path, change):
    if "data__path" in change:
        other = runs.write_data(tmp_path / "other", runs.random_documents(6, vocab=VOCAB_SIZE, seed=1), model)
        change = {"data__path": str(other)}
    train(runs.settings(model, data, tmp_path / "run"))
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(UserError, match=next(iter(change)).replace("__", r"\.")):
        train(runs.settings(model, data, tmp_path / "run", **change), resume=True)
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_resuming_with_a_model_that_computes_otherwise_is_refused(model, data, tmp_path):
    train(runs.settings(model, data, tmp_path / "run"))
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"model\.path.*config\.json was another"):
        train(runs.settings(model, data, tmp_path / "run"), resume=True)


def test_a_run_folder_in_which_another_run_is_at_work(model, data, tmp_path):
    (tmp_path / "run").mkdir()
    held = lock(tmp_path / "run")
    with pytest.raises(UserError, match="another run is at work"):
        train(runs.settings(model, data, tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []
    os.close(held)
    train(runs.settings(model, data, tmp_path / "run"))
    train(runs.settings(model, data, tmp_path / "run", train__epochs=2), resume=True)


def test_checkpoints_of_a_run_whose_recipe_was_deleted_are_not_mixed_with_new_ones(model, data, tmp_path):
    train(runs.settings(model, data, tmp_path / "run"))
    (tmp_path / "run" / "config.toml").unlink()
    with pytest.raises(UserError, match=r"run\.dir.*holds a run already"):
        train(runs.settings(model, data, tmp_path / "run"))


def test_an_empty_folder_is_not_taken_for_an_export(model, data, tmp_path):
    (tmp_path / "run" / "export" / "step-00000002").mkdir(parents=True)
    train(runs.settings(model, data, tmp_path / "run"))
    assert (tmp_path / "run" / "export" / "step-00000002" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_what_the_export_will_need_is_read_before_the_first_step(model, data, tmp_path, name):
    (model / name).write_text("[")
    assert name in refused(model, data, tmp_path)


def test_a_disk_that_will_be_full_is_said_before_the_first_step(model, data, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    needs = {}

    def free(count: int):
        monkeypatch.setattr("skytrain.preflight.shutil.disk_usage", lambda folder: usage._replace(free=count))

    for keep in (1, 3):
        free(0)
        c = runs.settings(model, data, tmp_path / f"run-{keep}", checkpoint__every=1, checkpoint__keep=keep)
        with pytest.raises(UserError, match=f"{keep + 1} checkpoint") as refused:
            train(c)
        assert not (tmp_path / f"run-{keep}" / "config.toml").exists()
        needs[keep] = float(re.search(r"needs (\S+) more", str(refused.value))[1])
    assert needs[3] > needs[1] > 0
    free(10**9)
    train(c)
    written = sum(path.stat().st_size for path in (tmp_path / "run-3" / "checkpoints").rglob("*") if path.is_file())
    free(0)
    # What is there already needs no more room.
    with pytest.raises(UserError) as refused:
        train(c, resume=True)
    left = float(re.search(r"needs (\S+) more", str(refused.value))[1])
    assert left == pytest.approx(needs[3] - written / 1e9, rel=0.01)


def test_a_run_that_learnt_nothing_is_an_error(model, tmp_path):
    data = runs.write_data(tmp_path / "data", runs.random_documents(4, vocab=VOCAB_SIZE), model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError, match="1 steps in a row were skipped"):
        train(runs.settings(model, data, tmp_path / "run"))


def test_resuming_may_move_the_data_change_the_rows_and_end_later(model, data, tmp_path):
    train(runs.settings(model, data, tmp_path / "run", train__max_steps=1))
    moved = shutil.copytree(data, tmp_path / "moved")
    run = train(runs.settings(model, moved, tmp_path / "run", batch__max_tokens=64, train__epochs=2), resume=True)
    assert run.done == run.total == 4


def test_resuming_with_fewer_steps_than_are_done_is_refused(model, data, tmp_path):
    train(runs.settings(model, data, tmp_path / "run"))
    with pytest.raises(UserError, match="2 steps are done, and this recipe ends at 1"):
        train(runs.settings(model, data, tmp_path / "run", train__max_steps=1), resume=True)


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/export", "run/metrics.jsonl", "run/tensorboard"])
def test_something_in_the_way_of_the_run_folder_is_named(model, data, tmp_path, place):
    way = tmp_path / place
    if place == "run/metrics.jsonl":
        way.mkdir(parents=True)
    else:
        way.parent.mkdir(exist_ok=True)
        way.write_text("something else")
    with pytest.raises(UserError, match=way.name):
        train(runs.settings(model, data, tmp_path / "run", log__tensorboard=True), resume=place != "run")


def test_an_attention_back_end_that_cannot_run_here(model, data, tmp_path):
    assert "flash_attn" in refused(model, data, tmp_path, attention__backend="flash_attn")


def test_a_kernel_back_end_that_cannot_run_here(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "kernels.backend = 'liger': liger-kernel" in refused(model, data, tmp_path, kernels__backend="liger")
    assert "kernels.backend = 'triton'" in refused(model, data, tmp_path, kernels__backend="triton")


def test_a_run_folder_that_holds_a_run(model, data, tmp_path):
    train(runs.settings(model, data, tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"run\.dir.*--resume auto"):
        train(runs.settings(model, data, tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def command(*arguments: str, ranks: int | None = None) -> subprocess.CompletedProcess:
    """launch/train.py as a user starts it."""
    start = [sys.executable] if ranks is None else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    return subprocess.run(
        [*start, str(ROOT / "launch" / "train.py"), *arguments],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip


@pytest.fixture
def recipe(model, data, tmp_path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(config.dumps(runs.settings(model, data, tmp_path / "run")))
    return str(path)


@pytest.mark.parametrize("words", [["optim.rate=1"], ["optim.lr=fast"], ["trian.epochs=1"], ["--resumed"]])
def test_the_command_ends_with_status_2_and_one_line(recipe, words, tmp_path):
    result = command(recipe, *words)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert words[0].split("=")[0].split(".")[0] in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_command_without_a_recipe():
    result = command()
    assert result.returncode == 2
    assert "give a recipe" in result.stderr


def test_the_command_without_torchrun(recipe, tmp_path):
    result = command(recipe, "train.max_steps=1")
    assert result.returncode == 0, result.stderr
    assert "step 1/1" in result.stdout


def test_more_ranks_than_documents(recipe, tmp_path, model):
    """B23: refused before the start. torchrun's own status is 1 whatever its workers end with, so the line counts."""
    runs.write_data(tmp_path / "single", runs.random_documents(1, vocab=VOCAB_SIZE), model)
    result = command(recipe, f"data.path={tmp_path / 'single'}", ranks=2)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1, result.stderr
    assert "2 ranks" in errors[0]
    assert result.stderr.splitlines()[-2] == errors[0], "torchrun prints it last"
    assert "exitcode: 2" in result.stderr.replace("exitcode  : 2", "exitcode: 2")
    assert not (tmp_path / "run").exists()
