"""The tokenised data set on disk: what is written is read back, and every kind of damage is one clear line."""

import json
import os
import tracemalloc

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from skytrain.data.dataset import DatasetWriter, TokenDataset
from skytrain.data.ledger import Ledger
from skytrain.errors import UserError


def documents(n, seed=0, vocab=50_000):
    rng = np.random.default_rng(seed)
    for length in rng.integers(1, 40, n):
        trained = rng.integers(0, 2, length).astype(np.uint8)
        trained[0] = 0
        yield rng.integers(0, vocab, length).astype(np.uint32), trained


def writer(folder, **options):
    return DatasetWriter(folder, tokenizer_sha256="a" * 64, chat_template_sha256="b" * 64, max_length=64, **options)


def write(folder, docs, **options):
    with writer(folder, **options) as out:
        for i, (tokens, trained) in enumerate(docs):
            out.add(tokens, trained, {"id": f"row-{i}", "file": "chats.jsonl", "line": i + 1})
        return out.finish()


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "set", documents(100), shard_bytes=1000)
    return tmp_path / "set"


def edit_info(folder, **changes):
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, **changes}))


def refusal(folder, verify=False):
    with pytest.raises(UserError) as caught:
        TokenDataset.open(folder, verify=verify)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_back_what_was_written(tmp_path):
    docs = list(documents(100))
    info = write(tmp_path / "set", docs, shard_bytes=1000)
    data = TokenDataset.open(tmp_path / "set", verify=True)
    assert len(info.shards) > 5 and data.info == info and len(data) == 100
    assert data.lengths.dtype == np.int64 and data.trained_counts.dtype == np.int64
    assert data.lengths.tolist() == [len(tokens) for tokens, _ in docs]
    assert data.trained_counts.tolist() == [int(trained.sum()) for _, trained in docs]
    for i, (tokens, trained) in enumerate(docs):
        got_tokens, got_trained = data.document(i)
        assert got_tokens.dtype == np.uint32 and got_trained.dtype == np.uint8
        np.testing.assert_array_equal(got_tokens, tokens)
        np.testing.assert_array_equal(got_trained, trained)
        assert data.doc_id(i) == i and data.row(i) == {"id": f"row-{i}", "file": "chats.jsonl", "line": i + 1}
    assert info.max_token_id == max(int(tokens.max()) for tokens, _ in docs)
    assert info.n_tokens == data.lengths.sum() and info.n_trained == data.trained_counts.sum()
    with pytest.raises(IndexError):
        data.document(100)


def test_shards_are_safetensors_with_the_contract_s_arrays(folder):
    info = TokenDataset.open(folder).info
    names = sorted(path.name for path in folder.iterdir())
    n = len(info.shards)
    assert names == ["dataset.json", "rows.jsonl", *(f"tokens-{i:05d}-of-{n:05d}.safetensors" for i in range(n))]
    arrays = load_file(folder / f"tokens-00001-of-{n:05d}.safetensors")
    assert {name: a.dtype.name for name, a in arrays.items()} == {
        "tokens": "uint32",
        "trained": "uint8",
        "offsets": "int64",
        "doc_id": "int64",
    }
    assert len(arrays["tokens"]) == len(arrays["trained"]) == arrays["offsets"][-1] == info.shards[1].n_tokens
    assert len(arrays["offsets"]) == len(arrays["doc_id"]) + 1 == info.shards[1].n_docs + 1


def test_reader_maps_the_shards_and_copies_nothing(tmp_path):
    n = 1 << 21
    with DatasetWriter(
        tmp_path / "set", tokenizer_sha256="", chat_template_sha256="", max_length=n, shard_bytes=n
    ) as out:
        tracemalloc.start()
        for _ in range(8):
            trained = np.ones(n // 4, np.uint8)
            trained[0] = 0
            out.add(np.zeros(n // 4, np.uint32), trained, {})
        out.finish()
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        data = TokenDataset.open(tmp_path / "set")
        views = [data.document(i) for i in range(8)]
        assert data.trained_counts.sum() == 8 * (n // 4 - 1)
        read = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert not views[0][0].flags.writeable and not views[0][0].flags.owndata
    # 20 MiB of arrays: the writer holds one document (3 MiB with its temporaries), the reader buffers.
    assert written < 8 << 20 and read < 1 << 20


def test_the_writer_shows_nothing_until_it_is_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "set") as out:
        for doc in documents(10):
            out.add(*doc, {})
        assert not (tmp_path / "set").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_one_clears_it(tmp_path):
    pid = os.fork()
    if pid == 0:
        out = writer(tmp_path / "set", shard_bytes=100)
        for doc in documents(10):
            out.add(*doc, {})
        os._exit(9)
    os.waitpid(pid, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["set.unfinished"]
    assert "unfinished" in refusal(tmp_path / "set.unfinished")
    write(tmp_path / "set", documents(3))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_finished_folder_is_replaced_only_on_request_and_other_folders_never(tmp_path, folder):
    with pytest.raises(UserError, match="finished data set"):
        writer(folder)
    assert len(TokenDataset.open(folder)) == 100
    write(folder, documents(7), overwrite=True)
    assert len(TokenDataset.open(folder, verify=True)) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no data set"):
        writer(tmp_path / "home", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", documents(2))


def test_two_writers_of_one_folder(tmp_path):
    """The second would write over the first one's files: it is refused, and the first one's set is whole."""
    docs = list(documents(20))
    with writer(tmp_path / "set") as first:
        for doc in docs[:10]:
            first.add(*doc, {})
        with pytest.raises(UserError, match="another process is writing it"):
            writer(tmp_path / "set")
        for doc in docs[10:]:
            first.add(*doc, {})
        first.finish()
    assert len(TokenDataset.open(tmp_path / "set", verify=True)) == 20
    with pytest.raises(UserError, match="finished data set"):
        writer(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_that_appears_meanwhile_is_not_replaced(tmp_path):
    write(tmp_path / "other", documents(5))
    with writer(tmp_path / "set") as out:
        out.add(*next(documents(1)), {})
        os.rename(tmp_path / "other", tmp_path / "set")
        with pytest.raises(UserError, match="finished data set"):
            out.finish()
    assert len(TokenDataset.open(tmp_path / "set")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_replacement_keeps_the_old_data_set(tmp_path, folder):
    with pytest.raises(KeyboardInterrupt), writer(folder, overwrite=True) as out:
        out.add(*next(documents(1)), {})
        raise KeyboardInterrupt
    assert len(TokenDataset.open(folder, verify=True)) == 100


def test_nothing_kept_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="no row was kept"), writer(tmp_path / "set") as out:
        out.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tokens, trained",
    [([], []), ([1, 2], [0]), ([1, 2], [1, 0]), ([1, 2], [0, 2]), ([1] * 65, [0] * 65)],
    ids=["empty", "lengths differ", "first token a target", "a mark of 2", "longer than max_length"],
)
def test_the_writer_refuses_impossible_documents(tmp_path, tokens, trained):
    with writer(tmp_path / "set") as out, pytest.raises(ValueError):
        out.add(np.array(tokens, np.uint32), np.array(trained, np.uint8), {})


def test_missing_shard(folder):
    name = TokenDataset.open(folder).info.shards[2].file
    (folder / name).unlink()
    assert name in refusal(folder) and "missing" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_shard(folder, keep):
    path = folder / TokenDataset.open(folder).info.shards[0].file
    path.write_bytes(path.read_bytes()[:keep])
    assert path.name in refusal(folder)


def test_a_shard_with_bytes_behind_its_end(folder):
    path = folder / TokenDataset.open(folder).info.shards[0].file
    path.write_bytes(path.read_bytes() + b"\0")
    assert path.name in refusal(folder)


def test_corrupt_header(folder):
    path = folder / TokenDataset.open(folder).info.shards[0].file
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    assert path.name in refusal(folder) and "corrupt" in refusal(folder)


def test_corrupt_offsets(folder):
    path = folder / TokenDataset.open(folder).info.shards[0].file
    raw = bytearray(path.read_bytes())
    at = 8 + int.from_bytes(raw[:8], "little") + 8
    raw[at : at + 8] = (10_000).to_bytes(8, "little")
    path.write_bytes(raw)
    assert path.name in refusal(folder) and "offsets" in refusal(folder)


def test_one_flipped_bit_of_the_tokens_is_found_by_verify(folder):
    path = folder / TokenDataset.open(folder).info.shards[0].file
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert path.name in refusal(folder, verify=True) and "sha256" in refusal(folder, verify=True)


def test_max_token_id_is_verified_against_the_data(folder):
    top = TokenDataset.open(folder).info.max_token_id
    edit_info(folder, max_token_id=top - 1)
    assert "dataset.json" in refusal(folder, verify=True)


def test_no_dataset_json_is_an_unfinished_folder(folder):
    (folder / "dataset.json").unlink()
    assert "dataset.json" in refusal(folder) and "unfinished" in refusal(folder)


def test_no_folder(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1}', '{"format_version": "\xff"}'])
def test_unreadable_dataset_json(folder, text):
    (folder / "dataset.json").write_bytes(text.encode("latin-1"))
    assert "dataset.json" in refusal(folder)


@pytest.mark.parametrize("changes", [{"a_new_key": 1}, {"max_length": -1}, {"max_length": 3}])
def test_a_description_that_nobody_wrote_is_refused(folder, changes):
    edit_info(folder, **changes)
    assert "dataset.json" in refusal(folder)


def test_a_key_twice_in_dataset_json_is_refused(folder):
    text = (folder / "dataset.json").read_text().rstrip().removesuffix("}")
    (folder / "dataset.json").write_text(text + ', "max_length": 9999}')
    assert "'max_length' stands twice" in refusal(folder)


@pytest.mark.parametrize("depth", [10, 900])
def test_numbers_that_are_none_become_null_in_provenance_of_any_depth(tmp_path, depth):
    value = float("nan")
    for _ in range(depth):
        value = [value]
    with writer(tmp_path / "set") as out:
        out.add(
            np.array([1, 2], np.uint32), np.array([0, 1], np.uint8), {"id": "a", "score": float("inf"), "deep": value}
        )
        out.finish()
    text = (tmp_path / "set" / "rows.jsonl").read_text()
    assert text == '{"id": "a", "score": null, "deep": ' + "[" * depth + "null" + "]" * depth + "}\n"


def test_a_later_format_is_refused_by_its_number(folder):
    edit_info(folder, format_version=2, a_new_key=1)
    assert "version 2" in refusal(folder)


def test_counts_that_differ_from_the_shards(folder):
    edit_info(folder, n_docs=99)
    assert "dataset.json" in refusal(folder)


def test_a_shard_outside_the_folder_is_refused(folder):
    info = json.loads((folder / "dataset.json").read_text())
    info["shards"][0]["file"] = "../elsewhere.safetensors"
    edit_info(folder, shards=info["shards"])
    assert "list of shards" in refusal(folder)


def test_an_empty_data_set_is_refused(folder):
    edit_info(folder, n_docs=0, n_tokens=0, n_trained=0, shards=[])
    assert "empty data set" in refusal(folder)


def test_rows_jsonl_missing_or_short(folder):
    rows = folder / "rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        TokenDataset.open(folder).row(3)
    rows.unlink()
    assert "rows.jsonl" in refusal(folder)


def test_a_ledger_that_does_not_add_up_is_our_mistake_when_written_and_the_file_s_when_read(folder, tmp_path):
    ledger = Ledger()
    ledger.read(2, 30)
    with writer(tmp_path / "other") as out:
        tokens, trained = next(documents(1))
        out.add(tokens, trained, {})
        ledger.keep(int(trained.sum()), len(tokens) - int(trained.sum()))
        with pytest.raises(ValueError, match="rows read 2"):
            out.finish(ledger)
    broken = msgspec.to_builtins(TokenDataset.open(folder).info.ledger)
    broken["rows"]["read"] += 1
    edit_info(folder, ledger=broken)
    assert "ledger" in refusal(folder)
    broken["rows"]["dropped"] = {"mislaid": 1}
    edit_info(folder, ledger=broken)
    assert "mislaid" in refusal(folder)
    broken["rows"]["read"] -= 1
    broken["rows"]["dropped"] = {"wrong": 1, "empty": -1}
    edit_info(folder, ledger=broken)
    assert "'empty'" in refusal(folder)


def test_ledger_table_shows_each_reason_with_an_example():
    ledger = Ledger()
    ledger.read(3)
    ledger.read(0, 1500)
    ledger.keep(700, 300)
    ledger.drop("too_long", 500)
    ledger.drop("malformed")
    assert ledger.problem() is None
    table = ledger.table({"too_long": "a.jsonl:2: 500 tokens"})
    assert "1,500" in table and "a.jsonl:2: 500 tokens" in table and table.isascii()
    with pytest.raises(ValueError):
        ledger.drop("mislaid")
