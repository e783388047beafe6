"""What asks a model, in preparation and in evaluation, against vLLM itself: `make vllm` installs it, and CI does.

The model has random weights; a grammar makes it say what has the form of an answer.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import transformers
from chat_models import write_qwen2_5
from ranks import free_port
from teacher import until
from tiny_models import write_tiny_model

from skytrain.errors import UserError
from skytrain.eval.results import Evaluation
from skytrain.eval.run import rescore
from skytrain.prep.asking import Model, Sampling
from skytrain.prep.client import Asking
from skytrain.prep.generate import generate
from skytrain.prep.prompts import Prompts, messages
from skytrain.prep.stage import read_finished

VLLM = Path(os.environ.get("SKYTRAIN_VLLM") or os.path.expanduser("~/.cache/skytrain/vllm"))
ANSWER = r"I try [a-z ]{5,40}, no, [a-z ]{5,40}\.\n\n\*\*Final Answer\*\*\n\n\\boxed\{[0-9]\}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, folder) of a tiny Qwen2."""
    if not (VLLM / "bin" / "vllm").exists():
        if os.environ.get("SKYTRAIN_NEEDS_VLLM"):
            pytest.fail("vLLM is not installed, and this run may not go without it: make vllm")
        pytest.skip("vLLM is not installed here; make vllm does (3.4 GB)")
    folder = tmp_path_factory.mktemp("served")
    write_tiny_model(folder / "model", hidden_size=128, max_position_embeddings=2048)
    port = free_port()
    options = ["--max-model-len", "2048", "--enforce-eager", "--dtype", "float32", "--served-model-name", "tiny"]
    # On a CPU vLLM 0.32's engine dies of a seeded request whose prompt comes in parts: its generators have no offset.
    options += ["--max-num-batched-tokens", "65536"]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    own["VLLM_SERVER_DEV_MODE"] = "1"  # so that it tells its dtype and parallelism
    own["HOME"] = own["XDG_CACHE_HOME"] = str(folder)
    with open(folder / "log.txt", "wb") as log:
        command = [
            VLLM / "bin" / "vllm",
            "serve",
            folder / "model",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *options,
        ]
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True)

    def ready():
        assert server.poll() is None, (folder / "log.txt").read_text()[-3000:]
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        except OSError:
            return False

    try:
        until(ready, 400)
        yield f"http://127.0.0.1:{port}/v1", folder / "model"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def model(address, name="tiny", temperature=1.0, max_tokens=200, **extra):
    return Model(name, Sampling(temperature, 1.0, max_tokens, extra), Asking([address]), Prompts())


def problems(folder, count):
    path = folder / "problems.jsonl"
    asked = [{"question": f"What is {i} modulo 10?", "answer": str(i % 10)} for i in range(count)]
    rows = [row | {"domain": "math"} for row in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    imported = [
        {"id": f"p{i}", "source": "s", "domain": "math", "prompt": row["question"], "gold": row["answer"]}
        for i, row in enumerate(rows)
    ]
    forms = folder / "forms.jsonl"
    forms.write_text("".join(json.dumps(row) + "\n" for row in imported), encoding="utf-8")
    return path, forms


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_greedy_answers_are_transformers_own(served, tmp_path):
    address, folder = served
    _, forms = problems(tmp_path, 4)
    asked = model(address, temperature=0.0, max_tokens=12)
    generate([forms], tmp_path / "out.jsonl", asked)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    logged = rows(tmp_path / "out.answers.jsonl")
    told = {row["key"]: row for row in logged}
    prompts = asked.prompts
    for row in rows(forms):
        talk = messages(prompts.render("teacher.system"), prompts.render("teacher.math", prompt=row["prompt"]))
        request = asked.request(talk, prompts.version("teacher.system", "teacher.math"))
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        expected = reference.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        answer = told[request.key]
        # Bytes that are no character yet are left out at the end by vLLM alone.
        decoded = tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
        assert answer["answer"].rstrip("\ufffd") == decoded.strip()
        assert answer["prompt_tokens"] == ids.shape[1] and answer["completion_tokens"] == len(expected)
        assert answer["engine"].startswith("vllm-")


def test_answers_at_the_limit_are_unfinished(served, tmp_path):
    _, forms = problems(tmp_path, 6)
    generate([forms], tmp_path / "out.jsonl", model(served[0], temperature=0.0, max_tokens=5, ignore_eos=True))
    assert read_finished(tmp_path / "out.jsonl").account.dropped == {"unfinished": 6}
    assert {row["finish_reason"] for row in rows(tmp_path / "out.answers.jsonl")} == {"length"}


def test_what_vllm_refuses_is_told(served, tmp_path):
    _, forms = problems(tmp_path, 6)
    generate([forms], tmp_path / "long.jsonl", model(served[0], max_tokens=20000))
    assert read_finished(tmp_path / "long.jsonl").account.dropped == {"refused": 6}
    assert all("max_model_len" in row["detail"] for row in rows(tmp_path / "long.dropped.jsonl"))
    with pytest.raises(UserError, match=r"status 404 .*does not exist.*--model"):
        generate([forms], tmp_path / "other.jsonl", model(served[0], name="other"))


def test_each_sample_has_a_seed_that_vllm_looks_at(served, tmp_path, capsys):
    _, forms = problems(tmp_path, 4)
    generate([forms], tmp_path / "out.jsonl", model(served[0], structured_outputs={"regex": ANSWER}), samples=4)
    found = rows(tmp_path / "out.jsonl")
    assert len(found) == 16 and len({row["answer"] for row in found}) == 16
    assert "warning" not in capsys.readouterr().err


def test_thoughts_within_the_content_are_told_apart(served, tmp_path):
    _, forms = problems(tmp_path, 3)
    regex = r"[a-z ]{5,20}</think>\n\n\\boxed\{[0-9]\}"
    generate([forms], tmp_path / "out.jsonl", model(served[0], structured_outputs={"regex": regex}))
    for row in rows(tmp_path / "out.jsonl"):
        assert re.fullmatch(r"[a-z ]{1,20}", row["reasoning"]) and re.fullmatch(r"\\boxed\{[0-9]\}", row["answer"])


def test_ctrl_c_ends_the_requests_in_vllm_too(served, tmp_path):
    _, forms = problems(tmp_path, 40)
    address = served[0]

    def running():
        with urllib.request.urlopen(f"{address.removesuffix('/v1')}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))

    # A shell's background jobs ignore the signal, and so would what they start.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom skytrain.cli import main; main()"
    )
    words = ["prep", "generate", forms, "--out", tmp_path / "out.jsonl", "--server", address, "--model", "tiny"]
    words += ["--max-tokens", "1500", "--extra", "ignore_eos=true", "--in-flight", "8"]
    process = subprocess.Popen([sys.executable, "-P", "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True)
    until(lambda: running() >= 8, 60)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "run again to go on" in told and "Traceback" not in told
    until(lambda: running() == 0, 60)


def test_a_recipe_from_questions_to_tokens(served, tmp_path):
    """Of ten random digits one is right: rejection by the true answer, all else as in a real run."""
    problems(tmp_path, 10)
    tokenizer = write_qwen2_5(tmp_path / "tokenizer")
    recipe = tmp_path / "recipe.toml"
    grammar = json.dumps({"regex": ANSWER})
    labels = json.dumps({"choice": ["It is easy. [[2]]", "It is hard. [[9]]", "I cannot tell."]})
    asking = f'server = ["{served[0]}"]\nmodel = "tiny"\nmax_tokens = 300\nin_flight = 32\n'
    recipe.write_text(
        f"""folder = "made"
[[stage]]
do = "import"
inputs = ["problems.jsonl"]
format = "plain"
domain = "math"
source = "modulo"
[[stage]]
do = "label"
{asking}temperature = 1.0
extra = ['structured_outputs={labels}']
[[stage]]
do = "generate"
{asking}samples = 12
temperature = 1.0
extra = ['structured_outputs={json.dumps(json.loads(grammar))}']
[[stage]]
do = "rewrite"
by = "rules"
[[stage]]
do = "grade"
[[stage]]
do = "filter"
[[stage]]
do = "tokenize"
model = "{tokenizer}"
""",
        encoding="utf-8",
    )
    code = "from skytrain.cli import main; main()"
    words = [sys.executable, "-P", "-c", code, "prep", "run", recipe]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "adds up: 10 rows read" in done.stdout
    made = read_finished(tmp_path / "made" / "grade.jsonl").account
    assert made.read == 120 and made.kept > 0 and made.dropped["wrong"] > 0
    label = read_finished(tmp_path / "made" / "label.jsonl").account
    assert label.notes["labelled"] + label.notes["unlabelled"] == 10


def test_an_evaluation_that_is_killed_and_goes_on(served, tmp_path):
    """Digits by chance against the right ones: 20 problems, 8 samples each, killed by -9 in the middle."""
    path, _ = problems(tmp_path, 20)
    out = tmp_path / "out"
    grammar = json.dumps({"regex": r"[a-z ]{5,40}\n\n\\boxed\{[0-9]\}"})
    words = ["eval", "--tasks", f"digits={path}", "--server", served[0], "--model", "tiny", "--samples", "8"]
    words += ["--max-tokens", "300", "--temperature", "1.0", "--extra", f"structured_outputs={grammar}"]
    words += ["--in-flight", "4", "--no-thinks", "--out", out]
    command = [sys.executable, "-P", "-c", "from skytrain.cli import main; main()", *map(str, words)]
    log = out / "answers.jsonl"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def half_way():
        assert first.poll() is None
        return log.exists() and log.read_bytes().count(b"\n") >= 40

    until(half_way, 120)
    first.kill()
    first.wait()
    assert log.read_bytes().count(b"\n") < 160 and not (out / "results.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    keys = [json.loads(line)["key"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(keys) == len(set(keys)) == 160

    found = Evaluation(out)
    (task,), (row,) = found.results.tasks, found.results.servers
    gold = {item["id"]: item["gold"] for item in found.items("digits")}
    right = 0
    with found.answers() as answers:
        for sample in found.samples("digits"):
            said = re.search(r"\\boxed\{(\d)\}$", answers.get(sample.key)["answer"])[1]
            assert sample.answer == said and sample.verdict == ("correct" if said == gold[sample.id] else "wrong")
            right += said == gold[sample.id]
    assert task.verdicts == {"wrong": 160 - right, "correct": right} and task.score.mean == pytest.approx(right / 160)
    assert task.score.low < 0.1 < task.score.high and task.truncated == 0 and task.tokens > 5
    assert row["engine"] == "vllm" and row["version"].startswith("0.32") and row["dtype"] == "float32"
    assert row["parallelism"]["tensor"] == 1 and row["max_model_len"] == 2048
    assert row["fingerprints"][0].startswith("vllm-0.32")
    assert f"{100 * right / 160:.1f}" in done.stdout
    again = rescore(out)
    assert again.tasks == found.results.tasks
