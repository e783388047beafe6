"""skytrain prep tokenize: from files to a data set, with a ledger that adds up."""

import json
import os
import subprocess
import sys

import commands
import pytest
from chat_models import write_qwen2_5
from chat_samples import chat, write_jsonl
from transformers import AutoTokenizer

from skytrain.data.chat import tokenizer_digest
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.prep.tokenize import tokenize


@pytest.fixture(scope="module")
def hf(model):
    return AutoTokenizer.from_pretrained(model)


def command(*arguments, **options):
    code = "from skytrain.cli import main; main()"
    argv = [sys.executable, "-c", code, "prep", "tokenize", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, **options)


def adds_up(info):
    ledger = info.ledger
    assert ledger.problem() is None
    assert ledger.rows.kept == info.n_docs and ledger.tokens.trained == info.n_trained
    assert ledger.tokens.trained + ledger.tokens.context == info.n_tokens
    return ledger


def tokens_of(hf, row):
    return len(hf.apply_chat_template(row["messages"], return_dict=False))


def test_a_data_set_holds_the_ids_marks_and_provenance_of_its_rows(tmp_path, model, hf):
    rows = [chat(f"What is {i}?", f"It is {i}.", id=f"r{i}", source="sums", difficulty=i) for i in range(5)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    info = tokenize([path], model, tmp_path / "set")
    data = TokenDataset.open(tmp_path / "set", verify=True)
    assert (info.tokenizer_sha256, info.chat_template_sha256) == tokenizer_digest(model)
    assert info.max_length == 16384 and info.system is None
    for i, row in enumerate(rows):
        tokens, trained = data.document(i)
        assert tokens.tolist() == hf.apply_chat_template(row["messages"], return_dict=False)
        assert hf.decode(tokens[trained == 1]) == f"It is {i}.<|im_end|>"
        assert data.row(i) == {
            "id": f"r{i}",
            "file": str(path),
            "line": i + 1,
            "provenance": {"source": "sums", "difficulty": i},
        }
    ledger = adds_up(info)
    assert ledger.rows.read == 5 and ledger.rows.dropped == {} and ledger.tokens.rendered == info.n_tokens


def test_a_number_that_json_has_no_word_for_is_null_in_the_provenance(tmp_path, model):
    path = write_jsonl(tmp_path / "a.jsonl", [chat("a", "b", id="x", score=float("nan"), more=[{"top": float("inf")}])])
    assert "NaN" in path.read_text()
    tokenize([path], model, tmp_path / "set")
    assert TokenDataset.open(tmp_path / "set").row(0)["provenance"] == {"score": None, "more": [{"top": None}]}


def test_every_format_and_form_gives_the_same_documents(tmp_path, model):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = [(f"What is {i}?", f"é {i} 🙂\u2028") for i in range(300)]
    sharegpt = [
        {"id": str(i), "system": "Think.", "conversations": [{"from": "user", "value": q}, {"from": "gpt", "value": a}]}
        for i, (q, a) in enumerate(texts)
    ]
    messages = [{**chat(*text, id=str(i)), "system": "Think."} for i, text in enumerate(texts)]
    (tmp_path / "array.json").write_text(json.dumps(sharegpt, ensure_ascii=False, indent=1))
    pq.write_table(pa.Table.from_pylist(sharegpt), tmp_path / "rows.parquet")
    write_jsonl(tmp_path / "lines.jsonl", sharegpt)
    write_jsonl(tmp_path / "messages.jsonl", messages)
    shards = set()
    for name in ("array.json", "rows.parquet", "lines.jsonl", "messages.jsonl"):
        info = tokenize([tmp_path / name], model, tmp_path / f"{name}.set")
        assert info.n_docs == 300 and info.system == "Think."
        shards.add(info.shards[0].sha256)
    assert len(shards) == 1


def test_overlong_rows_are_dropped_whole_and_counted(tmp_path, model, hf):
    """B21: none is cut, so no document begins inside an answer or ends with an end-of-turn token it never had."""
    rows = [chat("a", "b " * n + "c") for n in (1, 3, 20, 4)]
    lengths = [tokens_of(hf, row) for row in rows]
    assert lengths[2] > lengths[3] > lengths[1]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    info = tokenize([path], model, tmp_path / "set", max_length=lengths[1])
    data = TokenDataset.open(tmp_path / "set", verify=True)
    kept = [hf.apply_chat_template(rows[i]["messages"], return_dict=False) for i in (0, 1)]
    assert [data.document(i)[0].tolist() for i in range(len(data))] == kept
    ledger = adds_up(info)
    assert ledger.rows.dropped == {"too_long": 2} and ledger.tokens.dropped == {"too_long": lengths[2] + lengths[3]}
    assert ledger.tokens.rendered == sum(lengths)
    with pytest.raises(UserError, match=rf"a\.jsonl:3: {lengths[2]} tokens, limit {lengths[1]}"):
        tokenize([path], model, tmp_path / "other", max_length=lengths[1], overlong="error")
    assert not (tmp_path / "other").exists()


def test_a_prompt_longer_than_the_limit_is_dropped_not_trained_as_zeros(tmp_path, model):
    """B29: 200 tokens of prompt, a limit of 64: dropped and counted; every kept document has a target."""
    path = write_jsonl(tmp_path / "a.jsonl", [chat("x " * 200, "yes"), chat("x", "yes")])
    info = tokenize([path], model, tmp_path / "set", max_length=64)
    assert adds_up(info).rows.dropped == {"too_long": 1}
    assert TokenDataset.open(tmp_path / "set").trained_counts.min() > 0


ODD = [
    (chat("good", "row"), None),
    ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}]}, "empty"),
    (chat("question", ""), "empty"),
    ({"messages": []}, "empty"),
    ({"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]}, "bad_role"),
    ({"messages": [{"role": "narrator", "content": "a"}]}, "bad_role"),
    ({"text": "no messages"}, "malformed"),
    (["a", "list"], "malformed"),
    (chat([{"type": "text", "text": "good "}, {"type": "text", "text": "parts"}], "row", extra=1), None),
    (chat([{"type": "image"}], "row"), "malformed"),
    (chat("good", "row", extra={"key": None}), "duplicate"),
    ({"messages": [{"role": "user", "content": "no answer"}]}, "nothing_to_train"),
    (chat("a", "\nbegins in the prompt"), "nothing_to_train"),
]


def test_odd_rows_are_counted_by_reason_and_never_crash(tmp_path, model, hf, capsys):
    """B37: null, empty and list content, missing role, no messages, extra keys."""
    path = write_jsonl(tmp_path / "a.jsonl", [row for row, _ in ODD])
    info = tokenize([path], model, tmp_path / "set")
    reasons = [reason for _, reason in ODD if reason]
    ledger = adds_up(info)
    assert ledger.rows.read == len(ODD) and ledger.rows.kept == 2
    assert ledger.rows.dropped == {reason: reasons.count(reason) for reason in reasons}
    # Rows that could be rendered count their tokens, the others count as rows only.
    rendered = {"duplicate": [10], "nothing_to_train": [11, 12]}
    assert ledger.tokens.dropped == {r: sum(tokens_of(hf, ODD[i][0]) for i in at) for r, at in rendered.items()}
    printed = capsys.readouterr().out
    for reason in set(reasons):
        line = next(line for line in printed.splitlines() if line.split()[:1] == [reason])
        first = next(i for i, (_, why) in enumerate(ODD, 1) if why == reason)
        assert f"a.jsonl:{first}: " in line and str(reasons.count(reason)) in line.split()
    assert (
        json.loads((tmp_path / "set" / "dataset.json").read_text())["ledger"]["rows"]["dropped"] == ledger.rows.dropped
    )


def test_a_row_that_is_nested_too_deep_is_counted_as_malformed(tmp_path, model):
    # Other tests import what raises this process's limit.
    limit = sys.getrecursionlimit()

    def nested(depth: int) -> str:
        row = json.dumps(
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "x": 0}]}
        )
        return row.replace('"x": 0', '"x": ' + "[" * depth + "1" + "]" * depth)

    path = write_jsonl(tmp_path / "a.jsonl", [chat("a", "b")])
    path.write_text(path.read_text() + nested(limit // 2 - 20) + "\n" + nested(limit - 100) + "\n" + nested(2 * limit))
    info = tokenize([path], model, tmp_path / "set", on_error="drop", workers=1)
    assert info.ledger.rows.read == 4 and info.ledger.rows.kept + sum(info.ledger.rows.dropped.values()) == 4
    assert info.ledger.rows.dropped["malformed"] >= 1


def test_a_tokenizer_that_fails_is_one_line(tmp_path):
    folder = write_qwen2_5(tmp_path / "model")
    settings = json.loads((folder / "tokenizer.json").read_text())
    broken = {"type": "WordLevel", "vocab": {"a": 1}, "unk_token": "x"}
    (folder / "tokenizer.json").write_text(json.dumps(settings | {"model": broken}))
    with pytest.raises(UserError):
        tokenize([write_jsonl(tmp_path / "a.jsonl", [chat("a", "b")])], folder, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_bad_bytes_and_bad_json_name_file_and_line_and_good_rows_are_kept_on_request(tmp_path, model):
    """B38, under LANG=C: BOM, CRLF, latin-1, blank line, truncated end, U+2028, an emoji."""
    good = [json.dumps(chat(f"q{i}", text), ensure_ascii=False).encode() for i, text in enumerate(("🙂", "a\u2028b"))]
    latin = json.dumps(chat("q", "café"), ensure_ascii=False).encode("latin-1")
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([good[0], b"", latin, good[1], good[0][:30]]))
    env = {**os.environ, "LANG": "C", "LC_ALL": "C"}
    result = command(path, "--model", model, "--out", tmp_path / "set", env=env)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"{path}:3: not UTF-8" in result.stderr and "--on-error drop" in result.stderr
    assert os.listdir(tmp_path) == ["bad.jsonl"]
    result = command(path, "--model", model, "--out", tmp_path / "set", "--on-error", "drop", env=env)
    assert result.returncode == 0, result.stderr
    info = TokenDataset.open(tmp_path / "set", verify=True).info
    ledger = adds_up(info)
    assert (ledger.rows.read, ledger.rows.kept, ledger.rows.dropped) == (4, 2, {"malformed": 2})
    assert "\x1b" not in result.stdout + result.stderr  # no colours and no bar where there is no terminal


def test_duplicates_are_rows_of_equal_tokens(tmp_path, model):
    rows = [chat("a", "b", id=1), chat("a", "c", id=2), chat("a", "b", id=3), chat("a", "b ", id=4)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    info = tokenize([path, path], model, tmp_path / "set")
    assert adds_up(info).rows.dropped == {"duplicate": 5} and info.n_docs == 3
    info = tokenize([path, path], model, tmp_path / "all", dedup=False)
    assert adds_up(info).rows.dropped == {} and info.n_docs == 8


@pytest.mark.parametrize(
    "systems, shared",
    [(["S", "S"], "S"), (["S", "T"], None), (["S", None], None), ([None, None], None), (["", ""], "")],
)
def test_the_system_text_that_all_kept_rows_share(tmp_path, model, systems, shared):
    rows = [{**chat(f"q{i}", "a"), "system": system} for i, system in enumerate(systems)]
    rows.append({**chat("too long", "a " * 200), "system": "another, of a row that is dropped"})
    info = tokenize([write_jsonl(tmp_path / "a.jsonl", rows)], model, tmp_path / "set", max_length=100)
    assert info.n_docs == 2 and info.system == shared


def test_rows_without_an_id_are_named_by_file_and_place(tmp_path, model):
    (tmp_path / "array.json").write_text(json.dumps([chat("a", "b"), {}, chat("c", "d", id=0)]))
    tokenize([tmp_path / "array.json"], model, tmp_path / "set")
    data = TokenDataset.open(tmp_path / "set")
    assert [data.row(i)["id"] for i in range(2)] == ["array.json:1", 0]


def test_the_command_s_mistakes_are_one_line_and_status_2(tmp_path, model):
    good = write_jsonl(tmp_path / "good.jsonl", [chat("a", "b")])
    none = write_jsonl(tmp_path / "none.jsonl", [chat("a", ""), {}])
    keys = write_jsonl(tmp_path / "keys.jsonl", [{"instruction": "a", "output": "b"}])
    long = write_jsonl(tmp_path / "long.jsonl", [chat("a" * 99, "b")])
    blank, spread = tmp_path / "blank.jsonl", tmp_path / "spread.json"
    blank.write_text("")
    spread.write_text(json.dumps(chat("a", "b"), indent=1))
    inputs = sorted(os.listdir(tmp_path))
    out = tmp_path / "set"
    cases = [
        ([tmp_path / "missing.jsonl", "--model", model, "--out", out], "missing.jsonl"),
        ([tmp_path, "--model", model, "--out", out], "is a folder"),
        ([good, "--model", tmp_path / "nowhere", "--out", out], "nowhere: no such folder"),
        ([good, "--model", model, "--out", out, "--max-length", "1"], "--max-length 1"),
        ([good, "--model", model, "--out", out, "--workers", "0"], "--workers 0"),
        ([good, "--model", model, "--out", good], "is a file"),
        ([keys, "--model", model, "--out", out], "(its keys: instruction, output)"),
        ([blank, "--model", model, "--out", out], "the input has no rows"),
        ([long, "--model", model, "--out", out, "--max-length", "9"], "raise --max-length"),
        ([spread, "--model", model, "--out", out], "spread.json:1: not JSON"),
        ([spread, "--model", model, "--out", out], "a line is a row"),
        ([none, "--model", model, "--out", out], "no row was kept"),
        ([none, "--model", model, "--out", out], "1 of 2 empty, the first"),
    ]
    for arguments, message in cases:
        result = commands.run("prep", "tokenize", *arguments)
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and message in result.stderr, result.stderr
        assert sorted(os.listdir(tmp_path)) == inputs
    assert "1" in result.stdout and "malformed" in result.stdout, "the ledger says why nothing was kept"
    assert commands.run("prep", "tokenize", good, "--model", model, "--out", out).returncode == 0
    result = commands.run("prep", "tokenize", good, "--model", model, "--out", out)
    assert result.returncode == 2 and "--overwrite" in result.stderr
    assert commands.run("prep", "tokenize", good, "--model", model, "--out", out, "--overwrite").returncode == 0


def test_a_file_whose_name_is_no_text_is_read_and_named(model, tmp_path):
    chats = os.fsdecode(os.fsencode(tmp_path) + b"/chats-\xff.jsonl")
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with open(chats, "w", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\nno row\n")
    more = ["--model", model, "--out", tmp_path / "out", "--workers", 1, "--on-error", "drop"]
    result = command(chats, *more, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert result.returncode == 0, result.stderr
    assert "chats-\\udcff.jsonl:2" in result.stdout
    assert "1 documents" in result.stdout
