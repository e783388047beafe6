"""The folder of a preparation in `skytrain report`: order, numbers, what is unfinished, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import evaluations
import pytest
from chat_models import write_qwen2_5
from evaluations import report

from skytrain import cli
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.prep.grading import grade
from skytrain.prep.importing import import_problems
from skytrain.prep.stage import Stage
from skytrain.prep.tokenize import tokenize
from skytrain.report import prepared, runs, tables
from skytrain.report.tables import NONE

RECIPE = """folder = "data"
[[stage]]
do = "rewrite"
inputs = ["data/generate.jsonl"]
by = "rules"
[[stage]]
do = "grade"
[[stage]]
do = "filter"
name = "a_kept"
loops = false
[[stage]]
do = "tokenize"
name = "verified"
model = "model"
workers = 1
[[stage]]
do = "filter"
name = "all"
inputs = ["rewrite"]
loops = false
[[stage]]
do = "tokenize"
name = "b_unverified"
inputs = ["all"]
model = "model"
workers = 1
"""
PROBLEMS = 5


def lines(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(row: dict, sample: int) -> str:
    """Sample 1 of problem 0 is wrong, and of problem 1 no place is found where its solution begins."""
    told = "0" if (row["id"], sample) == ("0", 1) else row["gold"]
    end = "so" if (row["id"], sample) == ("1", 1) else "**Final Answer**"
    return f"First I take {row['id']}, in way {sample}, and add one to it.\n\n{end}\n\n\\boxed{{{told}}}"


def generate() -> None:
    """As the stage of that name does, with two samples each of which the last has no answer."""
    with Stage("generate", ["data/import.jsonl"], "data/generate.jsonl", {}, samples=2) as stage:
        for where, row in stage.rows():
            for sample in range(2):
                if (row["id"], sample) == (f"{PROBLEMS - 1}", 1):
                    stage.drop(row, "unanswered", "timeout", where)
                    continue
                made = {"id": f"{row['id']}#{sample}", "reasoning": None, "answer": answer(row, sample)}
                stage.keep({**row, **made})
        stage.notes.update({"prompt tokens": 1_234_567, "USD": 0.00123456})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_qwen2_5(folder / "model")
    problems = [{"id": f"{i}", "question": f"What is {i} and one?", "answer": f"{i + 1}"} for i in range(PROBLEMS)]
    # So that not all documents are of one length.
    problems[2]["question"] += " Take your time, and look at it twice."
    lines(folder / "problems.jsonl", [*problems, {**problems[0], "answer": ""}])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        import_problems(["problems.jsonl"], "data/import.jsonl", form="plain", source="sums", domain="math")
        generate()
        Path("recipe.toml").write_text(RECIPE)
        parsed = cli.parse(["prep", "run", "recipe.toml"])
        assert parsed.run(parsed) == 0
    return folder


@pytest.fixture
def data(made, tmp_path, monkeypatch) -> Path:
    """A copy; the model's folder is beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "data", tmp_path / "data")
    (tmp_path / "model").symlink_to(made / "model")
    return tmp_path / "data"


def read(folder: Path) -> prepared.Prepared:
    (one,) = runs.read([folder])[2]
    return one


def stages(folder: Path) -> dict[str, tables.StageRow]:
    return {row.name: row for row in tables.stage_rows(read(folder))}


# Order and numbers


def test_a_stage_stands_behind_those_that_it_has_read(data):
    found = tables.stage_rows(read(data))
    assert [(row.name, row.do, row.sources) for row in found] == [
        ("import", "", ["problems.jsonl"]),
        ("generate", "", ["import"]),
        ("rewrite", "", ["generate"]),
        ("all", "filter", ["rewrite"]),
        ("b_unverified", "tokenize", ["all"]),
        ("grade", "", ["rewrite"]),
        ("a_kept", "filter", ["grade"]),
        ("verified", "tokenize", ["a_kept"]),
    ]


def test_every_row_is_read_and_kept_or_dropped_for_a_reason(data):
    found = {name: (row.read, row.kept, row.dropped, row.reasons, row.notes) for name, row in stages(data).items()}
    assert found == {
        "import": ("6", "5", "1", ["no_answer 1"], []),
        "generate": ("5 × 2", "9", "1", ["unanswered 1"], ["prompt tokens 1,234,567", "0.001235 USD"]),
        "rewrite": ("9", "8", "1", ["irregular 1"], ["by rules 8"]),
        "grade": ("8", "7", "1", ["wrong 1"], ["87.5% correct: 7 of 8 with a verdict"]),
        "a_kept": ("7", "7", "0", [], []),
        "verified": ("7", "7", "0", [], []),
        "all": ("8", "8", "0", [], []),
        "b_unverified": ("8", "8", "0", [], []),
    }


def test_the_commonest_reason_stands_first(tmp_path):
    with Stage("filter", [], tmp_path / "out.jsonl", {}) as stage:
        stage.account.read = 6
        for reason in ("b", "c", "a", "c", "c", "a"):
            stage.drop({}, reason)
    assert stages(tmp_path)["out"].reasons == ["c 3", "a 2", "b 1"]


def test_tokens_are_those_of_the_data_set(data):
    (name, values), (other, _) = reversed(tables.data_set_rows(read(data)))
    assert (name, other) == ("verified", "b_unverified")
    whole = TokenDataset.open(data / "verified")
    documents = [whole.document(i) for i in range(len(whole))]
    trained = sum(int(marks.sum()) for _, marks in documents)
    context = sum(len(tokens) for tokens, _ in documents) - trained
    longest = max(len(tokens) for tokens, _ in documents)
    assert values == ["7", f"{trained:,}", f"{context:,}", f"{longest:,}", "16,384"]
    assert longest > min(len(tokens) for tokens, _ in documents)


def graded(folder: Path, rows: list, **settings) -> list[str]:
    folder.mkdir()
    talk = [{"role": "user", "content": "12+30?"}]
    made = []
    for i, (told, more) in enumerate(rows):
        text = f"<think>\nIt may be {told}.\n</think>\n\n\\boxed{{{told}}}"
        row = {"id": f"{i}", "source": "s", "domain": "math", "prompt": "12+30?", "gold": "42", "form": "think"}
        made.append({**row, "messages": [*talk, {"role": "assistant", "content": text}], **more})
    lines(folder / "in.jsonl", made)
    grade([folder / "in.jsonl"], folder / "grade.jsonl", on_error="drop", **settings)
    return stages(folder)["grade"].notes


def test_rows_without_a_verdict_are_not_in_the_share(tmp_path):
    rows = [("42", {}), ("42", {}), ("41", {}), ("42", {"gold": None}), ("42", {"form": "none"})]
    told = ["66.7% correct: 2 of 3 with a verdict", "ungraded 1"]
    # Kept or not, a row that nothing was held against is no correct one.
    assert graded(tmp_path / "a", rows) == told
    assert graded(tmp_path / "b", rows, ungraded="keep") == told
    assert graded(tmp_path / "c", rows[3:]) == ["ungraded 1"]


# Kinds of folders, and what is unfinished


def test_a_data_set_alone_is_a_preparation(data, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    lines(tmp_path / "chats.jsonl", rows * 2)
    tokenize(["chats.jsonl"], "model", "made/mine", workers=1)
    row = stages(tmp_path / "made")["mine"]
    assert (row.do, row.sources, row.read, row.reasons) == ("tokenize", [NONE], "2", ["duplicate 1"])
    # Beside others it stands last, since nothing tells what it has read.
    tokenize(["chats.jsonl"], "model", "data/a", workers=1)
    assert [*stages(data)][-1] == "a"


def test_a_data_set_may_have_the_name_of_its_rows(data):
    tokenize(["data/all.jsonl"], "model", "data/all", workers=1)
    found = [(row.name, row.do) for row in tables.stage_rows(read(data)) if row.name == "all"]
    assert found == [("all", "filter"), ("all", "tokenize")]


def test_kinds_are_told_apart(data, tmp_path):
    evaluation = evaluations.write(tmp_path / "e", "m", {"t": [evaluations.Problem("p", ["correct"])]})
    (evaluation / "one.ledger.json").write_text("{}")
    run = evaluations.write_training(tmp_path / "run")
    shutil.copytree(data / "verified", run / "verified")
    training, evaluated, found = runs.read([data, evaluation, run])
    assert [[one.name for one in kind] for kind in (training, evaluated, found)] == [["run"], ["m"], ["data"]]


@pytest.mark.parametrize(
    "left", ["x.dropped.jsonl.partial", "x.dropped.jsonl", "x.answers.jsonl", "x.verdicts.jsonl", "x.unfinished/a"]
)
def test_an_unfinished_stage_is_told_as_unfinished(tmp_path, left):
    path = tmp_path / "made" / left
    path.parent.mkdir(parents=True)
    path.write_text("")
    row = stages(tmp_path / "made")["x"]
    assert (row.read, row.kept, row.notes) == (NONE, NONE, ["unfinished"])
    assert report(tmp_path / "made", out=tmp_path / "r.html") == 0
    assert "unfinished" in (tmp_path / "r.html").read_text() and "| unfinished |" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize(
    ("gone", "name"), [("grade.ledger.json", "grade"), ("grade.jsonl", "grade"), ("verified/dataset.json", "verified")]
)
def test_what_has_lost_its_end_is_unfinished_and_keeps_its_place(data, gone, name):
    names = [*stages(data)]
    os.remove(data / gone)
    found = stages(data)
    assert [one for one, row in found.items() if row.notes == ["unfinished"]] == [name]
    behind = [*found][[*found].index("a_kept") :]
    assert behind == ["a_kept", "verified"] and sorted(found) == sorted(names)


def test_a_killed_stage_leaves_what_was_finished_before(data):
    (data / "grade.dropped.jsonl.partial").write_text("")
    (data / "verified.unfinished").mkdir()
    found = stages(data)
    assert len(found) == 8 and not any("unfinished" in row.notes for row in found.values())


def test_a_stage_of_older_rows_says_so(data):
    with Stage("rewrite", ["data/generate.jsonl"], "data/rewrite.jsonl", {}) as stage:
        for _, row in stage.rows():
            stage.keep(row)
    found = stages(data)
    note = "read another rewrite.jsonl than the one that is here now"
    assert [name for name, row in found.items() if note in row.notes] == ["all", "grade"]
    assert [*found].index("rewrite") == 2


def test_files_of_a_later_stages_name_make_no_circle(tmp_path):
    (tmp_path / "given").mkdir()
    lines(tmp_path / "given" / "last.jsonl", [{"a": 1}])
    for source, out in (("given/last", "first"), ("made/first", "last")):
        with Stage("filter", [tmp_path / f"{source}.jsonl"], tmp_path / f"made/{out}.jsonl", {}) as stage:
            for _, row in stage.rows():
                stage.keep({**row, "b": 2})
    assert [*stages(tmp_path / "made")] == ["first", "last"]


# The page, and what is refused


def test_the_section_in_both_files(data, tmp_path, capsys):
    run = evaluations.write_training(tmp_path / "run")
    assert report(run, data, out=tmp_path / "r.html") == 0
    html, text = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    assert "data data, training run run" in html
    assert html.index('<a href="#data">') < html.index('<a href="#training">')
    assert '<tr><th scope="row">a_kept <span class="quiet">filter</span></th>' in html
    assert '<td>1<span class="small">wrong 1</span></td>' in html
    assert "87.5% correct: 7 of 8 with a verdict" in html
    assert "## Data\n\n### data\n\n| stage | from | read | kept | dropped | notes |" in text
    assert "| generate | import | 5 × 2 | 9 | 1 (unanswered 1) | prompt tokens 1,234,567; 0.001235 USD |" in text
    assert "| a_kept (filter) | grade | 7 | 7 | 0 |  |" in text
    assert "| tokenised | documents | trained tokens | context tokens | longest document | limit |" in text
    assert "| verified | 7 | " in text
    assert 'id="data"' not in html.replace('id="data"', "", 1)


def test_preparations_are_told_apart_by_their_folders(data, tmp_path):
    shutil.copytree(data, tmp_path / "again" / "data")
    found = runs.read([data, tmp_path / "again" / "data"])[2]
    assert [one.name for one in found] == [f"{tmp_path.name}/data", "again/data"]
    assert report(data, tmp_path / "again" / "data", out=tmp_path / "r.html") == 0
    assert (tmp_path / "r.html").read_text().count("again/data, tokenised") == 1


HOSTILE = "</td><script>alert(1)</script>|`"


def test_no_text_of_a_ledger_gets_out_of_its_place(tmp_path):
    with Stage(HOSTILE, [], tmp_path / "made" / "<b>|.jsonl", {}) as stage:
        stage.account.read = 1
        stage.drop({}, HOSTILE)
        stage.notes[HOSTILE] = 1e300
    report(tmp_path / "made", out=tmp_path / "r.html")
    html, text = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    assert "<script>" not in html and "<b>" not in html and "1e+300" in html
    assert "<" not in text.replace("\\<", "").replace("<!-- skytrain report -->", "")


def edited(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        ("grade.ledger.json", ('"read": 8', '"read": 9'), r"grade.ledger.json: does not add up \(grade: read 9 x 1"),
        ("grade.ledger.json", ('"read": 8', f'"read": {"9" * 4000}'), "grade.ledger.json: does not add up"),
        ("grade.ledger.json", ('"read": 8', '"read": null'), "grade.ledger.json: cannot be read"),
        ("grade.ledger.json", ('"settings": {', '"settings": {"a": ' + "[" * 10**5), "grade.ledger.json: cannot be r"),
        ("grade.ledger.json", ('"format": 1', '"format": 9'), "grade.ledger.json: format 9"),
        ("grade.jsonl", ('"verdict":"correct"', '"verdict":1'), "grade.jsonl:1: cannot be read .*; make it anew"),
        ("grade.jsonl", ("\n", "\n\n"), "grade.jsonl:2: cannot be read"),
        ("verified/dataset.json", ('"n_tokens": ', '"n_tokens": 1'), "dataset.json: its ledger does not add up"),
        ("verified/dataset.json", ('"read": 7', '"read": 8'), "dataset.json: its ledger does not add up"),
    ],
)
def test_what_cannot_be_read_is_refused(data, tmp_path, path, change, says):
    edited(data / path, change)
    with pytest.raises(UserError, match=says):
        report(data, out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_fewer_rows_than_the_ledger_tells_are_refused(data, tmp_path):
    path = data / "grade.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"grade.jsonl: holds 6 rows, and its ledger tells of 7"):
        report(data, out=tmp_path / "r.html")
    os.remove(path)
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"grade.jsonl: cannot be read \(not a regular file\)"):
        report(data, out=tmp_path / "r.html")


def test_a_missing_shard_is_refused(data, tmp_path):
    next((data / "verified").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="this shard is missing"):
        report(data, out=tmp_path / "r.html")
