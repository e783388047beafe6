"""The kinds of filters that the recipe's table of data asks for, and what rules cannot say."""

import json
import random

import pytest

from skytrain import cli
from skytrain.errors import UserError
from skytrain.prep.importing import import_problems
from skytrain.prep.select import parse_rule, select


def problem(id, source="s", difficulty=None, domain="math", **provenance):
    gold = None if domain == "code" else "1"
    row = {"id": str(id), "source": source, "domain": domain, "difficulty": difficulty, "prompt": f"Question {id}"}
    return {**row, "gold": gold, "tests": None, "starter": None, "solution": None, "provenance": provenance}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def selected(tmp_path, rows, *rules, **arguments):
    """(ids kept, reasons of drops by id, account)."""
    path, out = written(tmp_path / "in.jsonl", rows), tmp_path / "selected.jsonl"
    account = select([path], out, list(rules), overwrite=True, **arguments)
    assert account.problem() is None and account.read == len(rows)
    drops = {row["id"]: row["reason"] for row in lines(tmp_path / "selected.dropped.jsonl")}
    return [row["id"] for row in lines(out)], drops, account


def test_the_filters_of_the_recipe(tmp_path):
    rows = [problem(f"amc{d}", "numina_amc_aime", d) for d in (1, 9, 9.5, 10, None)]
    rows += [problem(f"math{level}", "numina_math", level=level) for level in (1, 4, 5, "Level 5", "Level ?", None)]
    rows += [problem(f"oly{i}", "numina_olympiads", 9 if i % 2 else 8, row_of_source=3 * i + 1) for i in range(6)]
    rows += [problem(f"taco{level}", "taco", domain="code", level=level) for level in ("EASY", "MEDIUM", "MEDIUM_HARD")]
    rows += [problem("apps", "apps", domain="code"), problem("still", "still2_physics", domain="other")]
    kept, drops, account = selected(
        tmp_path,
        rows,
        "source=apps",
        "source=taco level=MEDIUM",
        "source=numina_amc_aime difficulty=1..9 count=4070",
        "source=numina_math level=4,5",
        "source=numina_olympiads first=13 difficulty=9",
        "source=still2_physics,still2_puzzle",
    )
    expected = ["amc1", "amc9", "math4", "math5", "mathLevel 5", "oly1", "oly3", "tacoMEDIUM", "apps", "still"]
    assert kept == expected, "in the order of the inputs"
    assert {id for id, reason in drops.items() if reason == "unlabelled"} == {"amcNone", "mathNone"}
    assert {id for id, reason in drops.items() if reason == "not_selected"} == {
        *("amc9.5", "amc10", "math1", "mathLevel ?", "oly0", "oly2", "oly4", "oly5", "tacoEASY", "tacoMEDIUM_HARD")
    }
    assert account.notes == {"fewer than asked by 'source=numina_amc_aime difficulty=1..9 count=4070'": 4068}


def test_from_the_published_forms_to_a_selection(tmp_path):
    numina = [
        {"source": source, "problem": f"{source} {i}", "solution": solution, "messages": []}
        for source in ("olympiads", "math")
        for i, solution in enumerate(["\\boxed{1}", "no box", "\\boxed{2}", "\\boxed{3}"])
    ]
    math = [
        {"problem": f"math\n {i}", "level": f"Level {i + 2}", "type": "x", "solution": "\\boxed{1}"} for i in range(4)
    ]
    import_problems([written(tmp_path / "numina.jsonl", numina)], tmp_path / "in.jsonl")
    import_problems([written(tmp_path / "math.jsonl", math)], tmp_path / "levels.jsonl")
    rules = ["source=numina_olympiads first=3", "source=numina_math level=4,5"]
    select([tmp_path / "in.jsonl"], tmp_path / "out.jsonl", rules, levels=tmp_path / "levels.jsonl")
    # The row without a box is one of the first three of its source.
    assert [(row["prompt"], row["provenance"].get("level")) for row in lines(tmp_path / "out.jsonl")] == [
        *(("olympiads 0", None), ("olympiads 2", None), ("math 2", 4), ("math 3", 5))
    ]
    with pytest.raises(UserError, match="lack the label"):
        select([tmp_path / "in.jsonl"], tmp_path / "other.jsonl", rules)
    for data in ('{"a": 1}\n', "[1]\n", "7\n", "{\n", json.dumps(problem(1)) + "\n"):
        (tmp_path / "bad.jsonl").write_text(data)
        with pytest.raises(UserError, match="--levels"):
            select([tmp_path / "in.jsonl"], tmp_path / "other.jsonl", rules, levels=tmp_path / "bad.jsonl")


def test_first_counts_the_rows_of_each_source_before_other_filters(tmp_path):
    rows = [problem(f"{source}{i}", source, i + 1) for i in range(4) for source in "ab"]
    assert selected(tmp_path, rows, "first=2 difficulty=2..9")[0] == ["a1", "b1"]
    assert selected(tmp_path, rows, "source=b first=3 difficulty=2..9")[0] == ["b1", "b2"]
    # A rule that takes the rows before does not change what is first.
    assert selected(tmp_path, rows, "source=a difficulty=1", "source=a first=2")[0] == ["a0", "a1"]


def test_a_count_is_a_sample_by_the_seed_in_the_order_of_the_inputs(tmp_path):
    rows = [problem(i, "ab"[i % 2]) for i in range(200)]
    kept, drops, account = selected(tmp_path, rows, "source=a count=20", "source=b count=100")
    numbers = [int(id) for id in kept]
    assert numbers == sorted(numbers) and sum(i % 2 == 0 for i in numbers) == 20 and len(numbers) == 120
    assert set(drops.values()) == {"over_count"} and account.notes == {}
    sampled = [i for i in numbers if i % 2 == 0]
    assert sampled != list(range(0, 40, 2)) and max(sampled) > 100, "a sample is not the first ones"
    assert selected(tmp_path, rows, "source=a count=20", "source=b count=100")[0] == kept
    assert selected(tmp_path, rows, "source=a count=20", "source=b count=100", seed=1)[0] != kept
    assert selected(tmp_path, rows, "source=a count=20", first=True)[0] == [str(i) for i in range(0, 40, 2)]


def test_every_row_is_as_likely_to_be_sampled(tmp_path):
    rows = [problem(i) for i in range(10)]
    path = written(tmp_path / "in.jsonl", rows)
    counts = dict.fromkeys(map(str, range(10)), 0)
    for seed in range(60):
        select([path], tmp_path / "out.jsonl", ["count=5"], seed=seed, overwrite=True)
        for row in lines(tmp_path / "out.jsonl"):
            counts[row["id"]] += 1
    # 30 each with a deviation of 4.
    assert sum(counts.values()) == 300 and all(10 < count < 50 for count in counts.values())


def test_a_row_belongs_to_the_first_rule_that_takes_it(tmp_path):
    rows = [problem(i, difficulty=i) for i in range(1, 7)]
    kept, drops, _ = selected(tmp_path, rows, "difficulty=1..4 count=2", "source=s", first=True)
    assert kept == ["1", "2", "5", "6"] and drops == {"3": "over_count", "4": "over_count"}


def test_a_row_without_its_label_is_taken_by_a_rule_that_needs_none(tmp_path):
    rows = [problem("a"), problem("b", difficulty=3), problem("c", "t")]
    assert selected(tmp_path, rows, "difficulty=3", "source=t")[:2] == (["b", "c"], {"a": "unlabelled"})


@pytest.mark.parametrize(
    "rule, ids",
    [
        ("domain=code", ["code"]),
        ("domain=code,other", ["code", "other"]),
        ("difficulty=2,5..6.5", ["2", "5", "6.5"]),
        ("level=2..4", ["l3", "l4"]),
        ("level=hard", ["hard"]),
        ("level='very hard'", ["very hard"]),
        ("source='two words'", ["words"]),
    ],
)
def test_the_values_of_rules(tmp_path, rule, ids):
    rows = [problem("code", domain="code"), problem("other", domain="other"), problem("words", "two words")]
    rows += [problem(d, difficulty=d) for d in (1, 2, 5, 6.5, 7)]
    rows += [problem("l1", level="1"), problem("l3", level=3), problem("l4", level="Level 4")]
    rows += [problem("hard", level="HARD"), problem("very hard", level="Very hard"), problem("odd", level=[1])]
    assert selected(tmp_path, rows, rule)[0] == ids


@pytest.mark.parametrize(
    "rule, told",
    [
        ("", "empty"),
        ("   ", "empty"),
        ("colour=red", "'colour=red'"),
        ("source", "'source'"),
        ("source=", "empty"),
        ("source=a,,b", "empty"),
        ("source='a", "words"),
        ("source=a source=b", "twice"),
        ("domain=physics", "physics"),
        ("difficulty=hard", "no number"),
        ("difficulty=9..1", "empty"),
        ("difficulty=1..", "no span"),
        ("difficulty=nan", "empty"),
        ("level=1..x", "no span"),
        ("count=0", "above 0"),
        ("count=-1", "above 0"),
        ("count=1.5", "above 0"),
        ("first=many", "above 0"),
        ("count=" + "9" * 50, "above 0"),
        ("count=²", "above 0"),
        ("source=b", "takes no row"),
        ("difficulty=10", "lack the label"),
    ],
)
def test_what_a_rule_cannot_say_is_a_mistake_that_leaves_no_output(tmp_path, rule, told):
    path, out = written(tmp_path / "in.jsonl", [problem(1), problem(2)]), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="--rule") as error:
        select([path], out, ["source=s", rule])
    assert told in str(error.value) and not list(tmp_path.glob("out*"))


def test_a_fuzz_of_rules_is_read_or_is_a_mistake():
    rng, outcomes = random.Random(2), {True: 0, False: 0}
    for _ in range(2000):
        text = "".join(
            rng.choice(["source", "level", "count", "=", "=", ",", "..", " ", "1", "9", "a", "'", "\\"])
            for _ in range(6)
        )
        try:
            parse_rule(text)
            outcomes[True] += 1
        except UserError as error:
            outcomes[False] += 1
            assert "--rule" in str(error)
    assert min(outcomes.values()) > 0


def test_rows_that_are_no_problems_are_dropped(tmp_path):
    bad = [{}, {**problem(1), "prompt": ""}, {**problem(2), "difficulty": "3"}, {**problem(3), "provenance": [1]}]
    kept, _, account = selected(tmp_path, [problem(0), *bad, {**problem(4), "provenance": {}}], "source=s")
    assert kept == ["0", "4"] and account.dropped == {"malformed": 4}
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(problem(0)) + "\n{\n")
    with pytest.raises(UserError, match=r"broken.jsonl:2"):
        select([path], tmp_path / "out.jsonl", ["source=s"])
    assert select([path], tmp_path / "out.jsonl", ["source=s"], on_error="drop").kept == 1


def test_ids_stay_unique_over_several_inputs(tmp_path):
    paths = [written(tmp_path / name, [problem("a"), problem("b")]) for name in ("x.jsonl", "y.jsonl")]
    account = select(paths, tmp_path / "out.jsonl", ["source=s"])
    assert [row["id"] for row in lines(tmp_path / "out.jsonl")] == ["a", "b", "a#2", "b#2"]
    assert account.notes == {"ids made unique": 2}


def test_tests_in_a_file_are_found_from_the_folder_of_the_selection(tmp_path):
    (tmp_path / "tests.jsonl").write_text('["1","2"]\n')
    row = {**problem("a", domain="code"), "tests": {"file": "tests.jsonl", "count": 1, "fn_name": None}}
    path = written(tmp_path / "in.jsonl", [row])
    select([path], tmp_path / "deep" / "er" / "out.jsonl", ["source=s"])
    (found,) = lines(tmp_path / "deep" / "er" / "out.jsonl")
    assert found["tests"]["file"] == "../../tests.jsonl"


def test_ctrl_c_leaves_the_selection_as_it_was(tmp_path, monkeypatch, capsys):
    path, out = written(tmp_path / "in.jsonl", [problem(1), problem(2)]), tmp_path / "out.jsonl"
    select([path], out, ["source=s"])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("skytrain.prep.select._write", interrupted)
    arguments = cli.parse(["prep", "select", str(path), "--out", str(out), "--rule", "count=1", "--overwrite"])
    assert arguments.run(arguments) == 130
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "as it was before" in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    path = written(tmp_path / "in.jsonl", [problem(i, difficulty=i) for i in range(1, 9)])
    words = ["prep", "select", str(path), "--out", str(tmp_path / "out.jsonl"), "--first", "--seed", "3"]
    arguments = cli.parse([*words, "--rule", "difficulty=1..2", "--rule", "difficulty=5..8 count=3"])
    assert arguments.run(arguments) == 0
    assert [row["id"] for row in lines(tmp_path / "out.jsonl")] == ["1", "2", "5", "6", "7"]
    assert (
        capsys.readouterr().out.splitlines(True)[-1]
        == "select: read 8 = kept 5 + dropped 3 (not_selected 2, over_count 1)\n"
    )
    assert arguments.run(arguments) == 0 and "(done before)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.parse(words)
