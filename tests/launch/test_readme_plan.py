"""The pages' hours and money are what `skytrain plan` says of the recipes, and what bench/results has."""

import csv
import functools
import json
import re
from pathlib import Path

import commands
import pytest

from skytrain import config
from skytrain.plan import forecast, hardware, known, memory, workload

ROOT = Path(__file__).parents[2]
README = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "launch" / "multi_node.md").read_text(encoding="utf-8")
DATA, TRAINING, EVALUATION = (
    f"launch/recipes/{name}.toml" for name in ("prep/sky_t1", "sky_t1_32b", "eval_sky_t1")
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_rows_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(ROOT)


@functools.cache
def planned(*words: str) -> dict:
    return json.loads(commands.run("plan", *words, "--json").stdout)


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the table that begins with `heading`."""
    lines = page[page.index(f"| {heading}") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def test_each_number_of_the_table_of_stages_is_the_plan_s():
    *rows, last = table(README, "stage | what")
    stages = {
        (path, stage["name"]): stage
        for path in (DATA, EVALUATION)
        for stage in planned(path)["stages"]
        if stage["hours"]
    }
    assert {(row[4].strip("` "), row[0].strip("`")) for row in rows} == {*stages, (TRAINING, "train")}
    for name, what, hours, money, path in rows:
        if name == "train":
            run = planned(TRAINING)
            found, counts = run["time"], [run["steps"], round(run["tokens"] / 1e6, 1)]
        else:
            found = stages[path.strip("` "), name.strip("`")]
            counts = [found["requests"]] if "requests" in found else [found["answers"], found["program_runs"]]
            counts += [planned(DATA)["cores"]] if name == "`grade`" else []
        assert (hours, money) == (f"{found['hours']:.2f}", f"{found['money']:,.0f}"), name
        assert [number for number in numbers(what) if number > 2 or name != "train"] == counts, name
    runs = [planned(DATA), planned(TRAINING)["time"], planned(EVALUATION)]
    assert last[2:4] == [f"{sum(run['hours'] for run in runs):.2f}", f"{sum(run['money'] for run in runs):,.0f}"]


def test_what_the_page_says_of_the_assumptions_is_the_table_s():
    device = hardware.find(planned(DATA)["gpu"])
    assert f"{device.matmul_rate / 1e12:.0f} TFLOP/s" in README
    assert f"{planned(DATA)['serving_efficiency']:.0%}" in README
    price = config.load(TRAINING).log.price_per_gpu_hour
    assert f"At {price} USD" in README
    for path in (DATA, EVALUATION):
        found = planned(path)
        assert found["money"] == pytest.approx(found["hours"] * found["gpus"] * price)


def test_the_disk_and_the_host_hold_what_the_page_says():
    settings = config.load(TRAINING)
    model, _ = workload.model_shapes(settings)
    lengths, _ = workload.document_lengths(settings, None)
    one = forecast.forecast(settings, model, lengths, 8, hardware.find("h100-80gb"), None)
    weights = known.served("qwen2.5-32b").weight_bytes / 1e9
    checkpoint = 8 * memory.checkpoint_bytes(one.setting) / 1e9
    rows = {row[0]: numbers(row[1]) for row in table(README, "what | GB")}
    assert rows["two models"] == [pytest.approx(2 * weights, rel=0.01)]
    (checkpoints,) = (found for what, found in rows.items() if "checkpoints" in what)
    assert checkpoints == [settings.checkpoint.keep + 1, pytest.approx(checkpoint, rel=0.02)]
    (exports,) = (found for what, found in rows.items() if "export" in what)
    assert exports == [2, pytest.approx(weights, rel=0.01)]
    host = 8 * (one.memory.host + memory.checkpoint_bytes(one.setting)) / 2**30
    assert host < numbers(re.search(r"([\d,]+) GiB of memory", README)[1])[0] < 1.3 * host


def test_each_number_of_the_table_of_nodes_is_the_plan_s():
    rows = table(PAGE, "nodes | `parallel.nodes`")
    assert len(rows) == 4
    for nodes, groups, step, hours, money in rows:
        found = planned(TRAINING, "--gpus", str(8 * int(nodes)), f"parallel.nodes={groups}")["time"]
        seconds = f"{found['seconds_a_step']:.3g}"
        assert (step, hours, money) == (seconds, f"{found['hours']:.2f}", f"{found['money']:,.0f}")


def test_the_rows_are_in_the_results_too():
    with (ROOT / "bench" / "results" / "plan.csv").open(newline="", encoding="utf-8") as file:
        newest = {(row["case"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    for case, path in (("the data", DATA), ("the evaluation", EVALUATION)):
        found = planned(path)
        assert newest[case, "run"] == pytest.approx(found["hours"], rel=1e-4)
        assert newest[case, "money"] == pytest.approx(found["money"], rel=1e-4)
        for stage in found["stages"]:
            if stage["hours"]:
                assert newest[case, f"{stage['name']}, run"] == pytest.approx(stage["hours"], rel=1e-4)
