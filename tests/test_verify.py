"""`skytrain verify`: right on a right trainer, and each check fails where its fault is planted.

But for one test its processes are forked from a server that has imported torch: ranks and trainer are real, and what
is left out is torchrun.
"""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import ranks
import runs
import torch
from tiny_models import write_tiny_model

from skytrain import attention, cli, config, model, optim, verify, verify_worker
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.export import ExportTensor


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, a data set and a recipe."""
    folder = tmp_path_factory.mktemp("verify")
    source = write_tiny_model(folder / "model", "qwen3", tied=True)
    documents = runs.random_documents(16, vocab=256, seed=3)
    data = runs.write_data(folder / "data", documents, source)
    (folder / "recipe.toml").write_text(config.dumps(runs.settings(source, data, folder / "run")))
    return folder


@pytest.fixture
def settings(place, tmp_path) -> config.Config:
    return verify.within(config.load(place / "recipe.toml"), tmp_path)


@pytest.fixture
def data(place, tmp_path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(place / "data", tmp_path / "data"))


def command(*words: object) -> int:
    arguments = cli.parse(["verify", *map(str, words)])
    return arguments.run(arguments)


def scaled_gradient():
    """Rank 1's gradients are 1% too large, and its losses right."""
    forward = model.CausalLM.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        return 1.01 * out - 0.01 * out.detach() if os.environ["RANK"] == "1" else out

    model.CausalLM.forward = scaled


def lost_moment():
    """One parameter's first moment is 0 after a checkpoint was loaded."""
    loaded = optim.Optimizer.loaded

    def forgetful(self):
        loaded(self)
        optim.local(self.states["exp_avg"]["model.layers.1.mlp.up_proj.weight"]).zero_()

    optim.Optimizer.loaded = forgetful


FAULTS = {"none": lambda: None, "scaled gradient": scaled_gradient, "lost moment": lost_moment}


def rank_main(fault, mode, settings, out):
    FAULTS[fault]()
    verify_worker.work(mode, settings, *out)


@pytest.fixture
def forked(monkeypatch):
    """Called with the name of a fault: the checks' processes have it."""

    def use(fault: str) -> None:
        def processes(mode, settings, folder, count, *out):
            ranks.run_ranks(count, rank_main, fault, mode, settings, out, process_group=False)

        monkeypatch.setattr(verify, "_processes", processes)

    return use


def test_every_check_passes_and_nothing_is_left_behind(place, forked, capsys):
    forked("none")
    # A run of this recipe is no obstacle, nor are more nodes than this one.
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "config.toml").touch()
    before = sorted(os.listdir(place))
    assert command(place / "recipe.toml", "--examples", "1", "parallel.nodes=8") == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if " ok " in line] == list(verify.CHECKS)
    assert "16 rows read = 16 kept + 0 dropped" in said
    assert "all tensors as the source" in said
    assert "4 steps, and resumed after 2: 74 tensors, 0 differ; the same losses" in said
    assert sorted(os.listdir(place)) == before
    # What is trained stands in brackets, and is what the data set says.
    _, trained = TokenDataset.open(place / "data").document(0)
    shown = said.split("context\n", 1)[1].split("\nexport ")[0]
    assert shown.count("[[") == int((np.diff(np.concatenate([[0], trained])) == 1).sum())


def test_torchrun_starts_what_the_other_tests_fork(settings, forked, tmp_path):
    verify._processes("steps", settings, tmp_path, 2, tmp_path / "torchrun")
    forked("none")
    verify._processes("steps", settings, tmp_path, 2, tmp_path / "forked")
    assert (tmp_path / "torchrun").read_text() == (tmp_path / "forked").read_text()
    assert len(json.loads((tmp_path / "forked").read_text())) == verify_worker.FIRST_STEPS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_documents_that_see_each_other_fail_packing(dtype, settings, tmp_path, monkeypatch):
    settings = verify.with_settings(settings, train={"dtype": dtype})
    assert verify.check_packing(settings, tmp_path, 2, 2).good

    def one_document(q, k, v, cu_seqlens, max_seqlen, **options):
        ends = torch.tensor([0, len(q)], dtype=torch.int32)
        return attention.packed_attention(q, k, v, ends, len(q), **options)

    monkeypatch.setattr(model, "packed_attention", one_document)
    verdict = verify.check_packing(settings, tmp_path, 2, 2)
    assert verdict.good is False
    assert "loss differs by" in verdict.figure


@pytest.mark.parametrize("what", ["a tensor", "a norm"])
def test_an_export_that_is_not_the_model_fails(what, settings, tmp_path, monkeypatch):
    """A tensor that was changed on its way, and a model that computes otherwise than transformers."""
    tensors = verify.model_tensors

    def changed(model, dtype, master=None):
        first, *others = tensors(model, dtype, master)
        yield ExportTensor(first.name, first.shape, lambda: first.fetch() + 2**-7)
        yield from others

    def other_epsilon(norm, x, residual=None):
        stream = x if residual is None else x + residual
        normalised = stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + 1e-2) * norm.weight
        return normalised if residual is None else (normalised, stream)

    if what == "a tensor":
        monkeypatch.setattr(verify, "model_tensors", changed)
        expected = "1 tensors differ from the source, model.embed_tokens.weight first"
    else:
        monkeypatch.setattr(model.RMSNorm, "forward", other_epsilon)
        expected = "all tensors as the source"
    verdict = verify.check_export(settings, tmp_path, 2, 2)
    assert verdict.good is False
    assert expected in verdict.figure


def test_a_bf16_export_of_an_fp32_model_is_its_rounding(settings, tmp_path):
    settings = verify.with_settings(settings, export={"dtype": "bfloat16"}, train={"dtype": "bfloat16"})
    verdict = verify.check_export(settings, tmp_path, 2, 2)
    assert verdict.good, verdict.figure


def test_without_transformers_export_is_not_run(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(verify, "CHECKS", {**verify.CHECKS, **dict.fromkeys(("packing", "ranks", "resume"), passing)})
    assert command(place / "recipe.toml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["export"] == {"good": None, "figure": "needs transformers as the other side: pip install transformers"}
    assert [found[name]["good"] for name in ("data", "packing", "ranks", "resume")] == [True] * 4
    with pytest.raises(UserError, match="verify export: needs transformers"):
        command(place / "recipe.toml", "--only", "export")


def passing(settings, folder, ranks, steps):
    return verify.Verdict(True, "as it is")


def test_a_rank_whose_gradient_is_scaled_fails_ranks(settings, forked, tmp_path):
    forked("scaled gradient")
    verdict = verify.check_ranks(settings, tmp_path, 2, 2)
    assert verdict.good is False
    assert "gradient norm by" in verdict.figure


@pytest.mark.parametrize("wrong", [(1.0001, 1.0), (1.0, 1.01), (float("nan"), 1.0), (1.0, float("nan"))])
def test_a_number_beyond_its_bound_or_not_finite_fails(wrong, settings):
    right = [(5.0, 2.0), (4.0, 2.0)]
    off = [right[0], (4.0 * wrong[0], 2.0 * wrong[1])]
    assert verify._close(right, right, settings, "").good
    assert verify._close(off, right, settings, "").good is False


def test_a_resume_that_loses_a_moment_fails(settings, forked, tmp_path):
    forked("lost moment")
    verdict = verify.check_resume(settings, tmp_path, 2, 4)
    assert verdict.good is False
    assert "74 tensors" in verdict.figure
    assert "0 differ" not in verdict.figure
    assert "other losses" in verdict.figure


def test_a_run_that_ends_before_its_middle_is_refused(settings, forked, tmp_path):
    forked("none")
    settings = verify.with_settings(settings, batch={"documents": 16})
    with pytest.raises(UserError, match=r"--steps 4: the data set makes 1 step\(s\)"):
        verify.check_resume(settings, tmp_path, 1, 4)


def test_a_data_set_that_is_not_right_fails_and_ends_the_checks(place, data, capsys):
    info = json.loads((data / "dataset.json").read_text())
    info["ledger"]["rows"]["read"] += 1
    (data / "dataset.json").write_text(json.dumps(info))
    assert command(place / "recipe.toml", f"data.path={data}") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:2]] == [["data", "FAILED"], ["export", "not"]]
    assert "rows read 17 != kept 16 + dropped 0" in said[0]
    assert len(said) == len(verify.CHECKS)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ("a count", "the shards hold 169 trained tokens and dataset.json says 170"),
        ("a mark", "its sha256 differs"),
    ],
)
def test_shards_that_are_not_what_the_data_set_says_fail(spoil, expected, settings, data, tmp_path):
    settings = verify.with_settings(settings, data={"path": str(data)})
    assert verify.check_data(settings, tmp_path, 2, 2).good
    if spoil == "a count":
        info = json.loads((data / "dataset.json").read_text())
        # Consistent in itself, so that only the shards can tell.
        info["n_trained"] += 1
        info["ledger"]["tokens"]["trained"] += 1
        info["ledger"]["tokens"]["context"] -= 1
        (data / "dataset.json").write_text(json.dumps(info))
    else:
        shard = next(data.glob("tokens-*.safetensors"))
        raw = bytearray(shard.read_bytes())
        raw[-1] ^= 1
        shard.write_bytes(raw)
    verdict = verify.check_data(settings, tmp_path, 2, 2)
    assert verdict.good is False
    assert expected in verdict.figure


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "export,nothing"], "'nothing' is none of"),
        (["--ranks", "1"], "--ranks 1"),
        (["--steps", "1"], "--steps 1"),
        (["--examples", "-1"], "--examples -1"),
        (["--only", "data", "data.path=nowhere"], "verify data: nowhere: no such folder"),
        (["--only", "data", "model.path=nowhere"], "nowhere"),
        (["--only", "packing", "model.path=nowhere"], "verify packing: .*nowhere"),
    ],
)
def test_what_cannot_be_checked_is_refused(words, message, place):
    with pytest.raises(UserError, match=message) as error:
        command(place / "recipe.toml", *words)
    assert "\n" not in str(error.value)


def test_what_processes_say_is_told(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "run_command", lambda words: (1, "torchrun\nerror: data.path: gone\ntorchrun"))
    with pytest.raises(UserError, match=r"^data\.path: gone$"):
        verify._processes("steps", settings, tmp_path, 2)
    monkeypatch.setattr(verify, "run_command", lambda words: (1, "Traceback\nAssertionError: ours"))
    with pytest.raises(RuntimeError, match="AssertionError: ours"):
        verify._processes("steps", settings, tmp_path, 2)


def test_a_machine_of_one_gpu_has_no_ranks_to_compare(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    auto = verify.with_settings(settings, train={"device": "auto"})
    with pytest.raises(verify.NotRun, match="one GPU"):
        verify.check_ranks(auto, tmp_path, 8, 2)
    # fp32 has one back end on a GPU.
    assert verify._plain(auto).attention.backend == "reference"
    assert verify._plain(settings).attention.backend == "auto"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert verify._count(auto, 8) == 4
    assert verify._count(settings, 8) == 8


def test_sigterm_ends_the_processes_and_removes_the_folder(place, tmp_path, monkeypatch):
    """What a check started is asked to end, so that torchrun can end its ranks."""
    ready, asked = tmp_path / "ready", tmp_path / "asked"

    def waiting(settings, folder, ranks, steps):
        (folder / "large").touch()
        verify.run_command(
            ["sh", "-c", f"trap 'touch {asked}; exit' TERM; touch {ready}; while :; do sleep 0.05; done"]
        )

    def signalled():
        while not ready.exists():
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(verify.CHECKS, "data", waiting)
    before = sorted(os.listdir(place)), signal.getsignal(signal.SIGTERM)
    threading.Thread(target=signalled, daemon=True).start()
    with pytest.raises(SystemExit) as end:
        command(place / "recipe.toml", "--only", "data")
    assert end.value.code == 128 + signal.SIGTERM
    assert asked.exists()
    assert (sorted(os.listdir(place)), signal.getsignal(signal.SIGTERM)) == before
