"""What all stages share: an account that adds up, nothing half-written, one writer."""

import errno
import json
import threading

import pytest

from skytrain.errors import UserError, unwritten
from skytrain.prep.stage import Account, Stage, beside, guarded, read_finished, run_stage


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def even(stage):
    for where, row in stage.rows():
        stage.keep(row) if row["n"] % 2 == 0 else stage.drop(row, "odd", f"{row['n']}", where)


def made(tmp_path, settings=None, **more):
    path = tmp_path / "in.jsonl"
    if not path.exists():
        write(path, [{"n": n} for n in range(5)])
    return Stage("even", [path], tmp_path / "out.jsonl", settings or {"k": 1}, **more)


def test_rows_accounts_and_what_was_dropped(tmp_path, capsys):
    run_stage(made(tmp_path), even)
    told = capsys.readouterr().out.splitlines()
    assert told == [f"odd, the first: {tmp_path}/in.jsonl:2: 1", "even: read 5 = kept 3 + dropped 2 (odd 2)"]
    assert [row["n"] for row in rows(tmp_path / "out.jsonl")] == [0, 2, 4]
    assert [(row["reason"], row["detail"], row["row"]) for row in rows(tmp_path / "out.dropped.jsonl")] == [
        ("odd", "1", {"n": 1}), ("odd", "3", {"n": 3}),
    ]  # fmt: skip
    assert rows(tmp_path / "out.dropped.jsonl")[0]["where"].endswith("in.jsonl:2")
    done = read_finished(tmp_path / "out.jsonl")
    assert (done.account.read, done.account.kept, done.account.dropped) == (5, 3, {"odd": 2})
    assert not list(tmp_path.glob("*.partial"))


def test_accounts_that_do_not_add_up_are_an_error_of_ours(tmp_path):
    def loses(stage):
        for _, row in stage.rows():
            if row["n"] != 3:
                stage.keep(row)

    with pytest.raises(AssertionError, match=r"read 5 x 1 != kept 4 \+ dropped 0"):
        run_stage(made(tmp_path), loses)
    assert Account("s", 5, 8, {"a": 2}, samples=2).problem() is None
    assert Account("s", 5, 8, {"a": 2}, samples=3).problem() is not None
    assert Account("s", 5, 6, {"a": -1}).problem() is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("x"), OSError(28, "No space left")])
def test_a_stage_that_ends_early_leaves_everything_as_it_was(tmp_path, error):
    run_stage(made(tmp_path), even)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def breaks(stage):
        for _, row in stage.rows():
            stage.keep(row)
            if row["n"] == 3:
                raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        run_stage(made(tmp_path, {"k": 2}), breaks, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_finished_work_is_not_done_again_and_changes_are_told(tmp_path, capsys):
    run_stage(made(tmp_path), even)
    run_stage(made(tmp_path), lambda stage: pytest.fail("done again"))
    assert capsys.readouterr().out.count("(done before)") == 1
    with pytest.raises(UserError, match=r"other settings \(k\); give another --out, or --overwrite"):
        run_stage(made(tmp_path, {"k": 2}), even)
    run_stage(made(tmp_path, {"k": 2}), even, overwrite=True)
    write(tmp_path / "in.jsonl", [{"n": 8}])
    with pytest.raises(UserError, match="other inputs"):
        run_stage(made(tmp_path, {"k": 2}), even)
    run_stage(made(tmp_path, {"k": 2}), even, overwrite=True)
    assert [row["n"] for row in rows(tmp_path / "out.jsonl")] == [8]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": 1}', b"\xff", b'{"format": 9}'])
def test_a_ledger_that_is_none_is_told(tmp_path, content):
    run_stage(made(tmp_path), even)
    beside(tmp_path / "out.jsonl", "ledger.json").write_bytes(content)
    with pytest.raises(UserError, match=r"out.ledger.json: (cannot be read|format 9)"):
        run_stage(made(tmp_path), even)


def test_a_ledger_of_another_format_is_told(tmp_path):
    run_stage(made(tmp_path), even)
    path = beside(tmp_path / "out.jsonl", "ledger.json")
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 9'))
    with pytest.raises(UserError, match="format 9, and this version writes 1"):
        run_stage(made(tmp_path), even)


def test_rows_that_are_gone_are_made_again(tmp_path):
    run_stage(made(tmp_path), even)
    (tmp_path / "out.jsonl").unlink()
    run_stage(made(tmp_path), even)
    assert len(rows(tmp_path / "out.jsonl")) == 3


def test_two_writers_are_refused(tmp_path):
    inside, go_on = threading.Event(), threading.Event()

    def waits(stage):
        even(stage)
        inside.set()
        go_on.wait(30)

    first = threading.Thread(target=run_stage, args=(made(tmp_path), waits))
    first.start()
    assert inside.wait(30)
    try:
        with pytest.raises(UserError, match="another process writes it"):
            run_stage(made(tmp_path), even)
    finally:
        go_on.set()
        first.join()
    assert len(rows(tmp_path / "out.jsonl")) == 3


def test_unusable_rows_end_the_stage_or_are_dropped(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(
        b'{"n": 0}\n[1]\n{"n": NaN}\n{"n": "\\ud800"}\nnonsense\n\xff\n{"n": 0, "n": 1}\n{"n": 2}\n'
    )
    with pytest.raises(UserError, match=r"in.jsonl:2: a row is an object, not list; mend it, or leave such rows out"):
        run_stage(made(tmp_path), even)
    run_stage(made(tmp_path, on_error="drop"), even)
    done = read_finished(tmp_path / "out.jsonl").account
    assert (done.read, done.kept, done.dropped) == (8, 2, {"malformed": 6})


def test_in_and_out_are_two_files(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"n": 0}])
    with pytest.raises(UserError, match="both read and written"):
        Stage("even", [path], tmp_path / "a.jsonl", {})
    for missing, words in ((tmp_path / "no.jsonl", "cannot be read"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=words):
            Stage("even", [missing], tmp_path / "b.jsonl", {})


def test_tests_in_files_are_named_from_the_folder_of_their_rows(tmp_path):
    write(tmp_path / "in.jsonl", [{"n": 0, "tests": {"file": "t/a.jsonl", "count": 1}}])
    (tmp_path / "deep" / "er").mkdir(parents=True)

    def work(stage):
        for _, row in stage.rows():
            assert row["tests"]["file"] == str(tmp_path / "t" / "a.jsonl")
            stage.keep(row)

    run_stage(Stage("even", [tmp_path / "in.jsonl"], tmp_path / "deep" / "er" / "out.jsonl", {}), work)
    assert rows(tmp_path / "deep" / "er" / "out.jsonl")[0]["tests"]["file"] == "../../t/a.jsonl"


def test_a_folder_is_no_file_to_write(tmp_path):
    write(tmp_path / "in.jsonl", [{"n": 0}])
    with pytest.raises(UserError, match="is a folder; --out names the file"):
        Stage("even", [tmp_path / "in.jsonl"], tmp_path, {})


def test_rows_that_were_changed_afterwards_are_told(tmp_path):
    run_stage(made(tmp_path), even)
    (tmp_path / "out.jsonl").write_text("garbage\n", encoding="utf-8")
    with pytest.raises(UserError, match="has changed since it was made"):
        run_stage(made(tmp_path), even)
    run_stage(made(tmp_path), even, overwrite=True)
    assert len(rows(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize(
    ("name", "blamed"),
    [("made.unfinished", "--out made: cannot be written"), ("/", "--out made: cannot be"), ("/other/x", "/other/x: ")],
)
def test_what_cannot_be_written_is_told_as_the_out_that_was_typed(name, blamed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def work():
        raise OSError(errno.EROFS, "Read-only", name)

    with pytest.raises(UserError) as error:
        guarded(work, "made")
    assert str(error.value).startswith(blamed)


def test_space_is_asked_for_only_where_there_is_none():
    assert (
        unwritten(OSError(errno.ENOSPC, "full")) == "cannot be written (full); free space, or name one on another disk"
    )
    assert "space" not in unwritten(OSError(errno.EROFS, "Read-only"))
