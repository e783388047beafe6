"""`skytrain plan`: what a person types, on a machine with neither GPU nor model nor data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import cli
from skytrain.errors import UserError
from skytrain.plan import hardware

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
SKY, SEVEN = str(RECIPES / "sky_t1_32b.toml"), str(RECIPES / "sky_t1_7b.toml")
SELECTIVE = ["activations.checkpoint=selective", 'activations.keep=["attention"]']


@pytest.fixture(autouse=True)
def no_rows_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def plan(*arguments: str) -> None:
    parsed = cli.parse(["plan", *arguments])
    parsed.run(parsed)


def as_json(capsys, *arguments: str) -> dict:
    capsys.readouterr()  # what made the model may have talked: deepspeed does, where it is installed
    plan(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("settings", [[], [*SELECTIVE, "activations.offload=[]"]], ids=["as it is", "keep attention"])
def test_the_32b_recipe_fits_8_gpus_of_80_gb_with_4_gb_to_spare(capsys, settings):
    found = as_json(capsys, SKY, *settings)
    assert found["format"] == "fp32_8bit"
    assert settings or found["time"]["hours"] < 3.5
    assert found["rows"] == 16384
    assert found["memory"]["fits"] is True
    assert found["memory"]["spare"] >= 4e9
    assert found["memory"]["total"] == sum(found["memory"]["bytes"].values())
    assert found["tokens"] == pytest.approx(230e6, rel=0.01)
    assert found["time"]["money"] == pytest.approx(found["time"]["hours"] * 8 * 2.96)
    assert sum(found["time"]["seconds"].values()) == pytest.approx(found["time"]["seconds_a_step"])


def test_what_layers_hold_chosen_for_the_node_the_32b_takes_under_3_and_a_half_hours(capsys):
    found = as_json(capsys, SKY, SELECTIVE[0], "activations.offload=[]", "activations.budget_gib=auto")
    assert found["memory"]["spare"] >= 4e9
    assert found["time"]["hours"] < 3.5
    (best,) = [other for other in found["alternatives"] if other["best"]]
    assert best["gpus"] == 8
    assert best["format"] == "fp32_8bit"  # split_8bit is a little faster, and less exact
    assert best["time"]["hours"] <= found["time"]["hours"] * 1.0001


def test_in_float8_the_32b_takes_under_2_and_a_half_hours(capsys):
    found = as_json(capsys, SKY, "train.float8=tensorwise")
    assert found["memory"]["spare"] >= 4e9
    assert found["time"]["hours"] < 2.5
    wide = as_json(capsys, SKY)
    assert found["memory"]["total"] == wide["memory"]["total"]
    assert (
        found["time"]["hours"] < as_json(capsys, SKY, "train.float8=rowwise")["time"]["hours"] < wide["time"]["hours"]
    )


def test_the_32b_fits_4_gpus_of_80_gb_with_its_optimizer_on_the_host(capsys):
    found = as_json(capsys, SKY, "--gpus", "4", "optim.format=auto")
    assert found["format"] == "host"
    assert found["memory"]["spare"] >= 4e9
    # fp32 weights and two moments of a quarter of the parameters, and what the recipe moves there.
    assert found["memory"]["host"] > 12 * 32.76e9 / 4


def test_the_32b_fits_8_gpus_of_40_gb_with_its_optimizer_on_the_host(capsys):
    chosen = (SELECTIVE[0], "activations.offload=[]", "activations.budget_gib=auto", "optim.format=host")
    found = as_json(capsys, SKY, "--gpu", "a100-40gb", *chosen)
    assert found["memory"]["spare"] >= 4e9


def test_the_7b_fits_one_gpu_of_80_gb_in_split_weights_alone(capsys):
    found = as_json(capsys, SEVEN, "--gpus", "1")
    assert found["format"] == "split_8bit"
    assert as_json(capsys, SEVEN, "--gpus", "2")["format"] == "fp32"
    assert found["memory"]["spare"] >= 4e9
    assert as_json(capsys, SEVEN, "--gpus", "1", "optim.format=fp32_8bit")["memory"]["fits"] is False


def test_fp32_states_do_not_fit_and_that_is_no_failure(capsys):
    plan(SKY, "optim.format=fp32")
    assert "does not fit: " in capsys.readouterr().out
    assert as_json(capsys, SKY, "optim.format=fp32")["memory"]["fits"] is False


def test_tables_are_told_on_a_console(capsys):
    plan(SKY, "--gpus", "4", "--gpu", "h200-141gb", "--price", "3.5")
    told = capsys.readouterr().out
    for part in ("4 x h200-141gb", "in flight", "recomputation", "Alternatives", "best", "money"):
        assert part in told
    assert all(len(line) <= 130 for line in told.splitlines())


def test_a_model_folder_and_a_data_set_are_used_where_they_are(tmp_path, capsys):
    model = write_tiny_model(tmp_path / "model")
    documents = runs.random_documents(40, vocab=VOCAB_SIZE)
    data = runs.write_data(tmp_path / "data", documents, model)
    arguments = (SKY, f"model.path={model}", "batch.documents=8", "batch.max_tokens=64", "--data", str(data))
    found = as_json(capsys, *arguments, "--gpus", "2")
    assert found["model"] == str(model)
    assert found["tokens"] == 3 * sum(len(tokens) for tokens, _ in documents)
    assert found["steps"] == 15


def test_a_trace_agrees(tmp_path, capsys):
    model = write_tiny_model(tmp_path / "model", hidden_size=512, intermediate_size=2048, vocab_size=4096)
    small = ("activations.offload=[]", "batch.max_tokens=2048", "plan.mean_tokens=1000")
    found = as_json(capsys, SKY, f"model.path={model}", *small, "--trace")
    live = found["memory"]["total"] - found["memory"]["bytes"]["buffers"]
    assert live == pytest.approx(found["traced_bytes"], rel=0.05)


def test_settings_may_stand_anywhere_and_other_words_nowhere(capsys):
    words = ["plan", "--gpus", "4", SKY, "optim.format=fp32", "--json", "train.epochs=1"]
    assert cli.parse(words).overrides == ["optim.format=fp32", "train.epochs=1"]
    for wrong in (["plan", SKY, "--gpus", "4", "word"], ["plan", SKY, "--word=1"], ["export", "a", "b", "x.y=1"]):
        with pytest.raises(SystemExit):
            cli.parse(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe"),
        (["nowhere.toml"], r"recipe nowhere\.toml"),
        ([SKY, "optim.form=fp32"], "optim"),
        ([SKY, "--gpu", "abacus"], "gpu 'abacus': not in the hardware table; give one of .*h100-80gb"),
        ([SKY, "--gpus", "0"], "--gpus 0"),
        ([SKY, "--gpus=3", "parallel.nodes=2"], r"parallel\.nodes = 2"),
        ([SKY, "--price", "-1"], "--price"),
        ([SKY, "--data", "nowhere"], "nowhere"),
        ([SKY, "plan.model=none"], r"set plan\.model to one of"),
        ([SKY, "plan.documents=none"], r"set plan\.documents and plan\.mean_tokens"),
        ([SKY, "plan.documents=4"], "4 documents for 8 ranks"),
        (
            [SKY, SELECTIVE[0], "activations.offload=[]", "activations.budget_gib=20"],
            r"budget_gib = 20\.0: .*GiB with layer inputs alone kept",
        ),
        ([SEVEN, "activations.budget_gib=60"], r"setting activations\.budget_gib=60: needs activations\.checkpoint"),
        ([SKY, "activations.budget_gib=60"], r"take out activations\.keep"),
        ([SKY, "activations.offload=[]", "activations.budget_gib=0"], "above 0"),
        ([SKY, "train.float8=rowwise", "--gpu", "a100-80gb"], r"knows no such products of a100-80gb"),
        ([SKY, "train.float8=rowwise", "--trace"], r"--trace .*add train\.float8=none"),
        ([SKY, "--out", "x"], "--calibrate"),
        ([SKY, "--calibrate"], "takes no recipe"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as problem:
        plan(*arguments)
    assert "\n" not in str(problem.value)


def test_the_command_exits_with_2_for_a_mistake():
    code = "import sys; from skytrain import cli; sys.argv = ['skytrain', 'plan', 'nowhere.toml']; cli.main()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_every_row_of_the_table_is_whole_and_names_its_source():
    rows = hardware.devices()
    assert len({row.id for row in rows}) == len(rows) >= 11
    for row in rows:
        assert row.source and row.efficiency.source
        assert row.memory_gib > 20 and row.memory_rate < row.memory_gbs * 1e9
        assert 0 < row.attention_rate < row.matmul_rate < row.bf16_tflops * 1e12
        assert row.fp8_tflops == 0 or row.fp8_tflops == pytest.approx(2 * row.bf16_tflops, rel=0.02)
        assert row.link_rate(8) > 0 and row.link_rate(16) == row.network_rate
    h100 = hardware.find("h100-80gb")
    assert h100.matmul_rate == pytest.approx(640e12, rel=0.001)
    assert h100.attention_rate == pytest.approx(450e12, rel=0.001)
    assert h100.memory == int(79.1 * 2**30)


def test_a_row_is_found_by_the_device_s_own_name():
    names = {
        "NVIDIA H100 80GB HBM3": "h100-80gb",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200-141gb",
        "NVIDIA A100-SXM4-80GB": "a100-80gb",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
        "NVIDIA GeForce RTX 4090": "rtx-4090",
        "NVIDIA GH200 480GB": None,
    }
    for name, row in names.items():
        found = hardware.of_name(name)
        assert (found.id if found else None) == row, name
