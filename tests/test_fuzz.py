"""2,000 inputs made wrong: each is refused in one clear line, or read as what it still is. FUZZ_CASES: another number.

What is accepted is held against a reading of its own: of a data set and a checkpoint, the content before the mutation;
of a model, what safetensors and JSON say; of a recipe, what TOML says; of chats, the rows that were left alone.
"""

import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import time
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import runs
import torch
from checkpoint_states import SCALARS, bits, blank_state, save_one, whole_state
from mutations import mutate, mutate_bytes
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import checkpoint, config, export, hf
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.model import Backends, CausalLM
from skytrain.prep.tokenize import tokenize

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
SHARE = {"data": 0.25, "checkpoint": 0.25, "model": 0.25, "recipe": 0.15, "chat": 0.1}
BACKENDS = Backends("reference", "reference", 1 << 20)
SECONDS = 20
MEMORY = 6 << 30
"""Above what the process has mapped: a header's word for a size is not to be believed."""


class Late(BaseException):
    """No OSError, as TimeoutError is: a reader would take it for a file that cannot be read."""


@contextlib.contextmanager
def guarded():
    """A hang or an allocation that its input cannot bear out becomes an exception."""

    def late(number, frame):
        raise Late(f"still at work after {SECONDS} s")

    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fuzz(kind: str, case) -> None:
    """`case(random, done)` makes one wrong input, says in done["what"] how, reads it and judges what it read."""
    refused, accepted, slowest = 0, 0, (0.0, "")
    for number in range(int(CASES * SHARE[kind])):
        done, since = {"what": "nothing"}, time.monotonic()
        try:
            with guarded():
                case(random.Random(f"{kind} {number}"), done)
            accepted += 1
        except UserError as error:
            refused += 1
            assert str(error) and "\n" not in str(error), f"{kind} {number}, {done['what']}: {error!r}"
        except BaseException as error:
            raise AssertionError(f"{kind} {number}, {done['what']}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, (time.monotonic() - since, f"{number}, {done['what']}"))
    print(f"{kind}: {refused} refused, {accepted} read as what they are; slowest {slowest[0]:.2f} s: {slowest[1]}")
    assert refused > accepted / 10


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model", "qwen2", shard_bytes=200_000)


def test_data_sets(model, tmp_path, monkeypatch):
    monkeypatch.setattr("skytrain.data.dataset.SHARD_TOKENS", 60, raising=False)
    documents = runs.random_documents(6, vocab=VOCAB_SIZE, longest=12)
    good = runs.write_data(tmp_path / "good", documents, model)
    expected = content(good)

    def case(chance, done):
        folder = copied(good, tmp_path / "bad")
        done["what"] = mutate(sorted(folder.iterdir()), chance)
        assert content(folder) == expected

    fuzz("data", case)


def content(folder: Path) -> list:
    data = TokenDataset.open(folder, verify=True)
    data.trained_counts  # noqa: B018 (read for its checks)
    documents = [data.document(i) for i in range(len(data))]
    return [(t.tolist(), m.tolist(), data.row(i)) for i, (t, m) in enumerate(documents)]


def copied(good: Path, bad: Path) -> Path:
    if bad.exists():
        shutil.rmtree(bad)
    return Path(shutil.copytree(good, bad))


def test_checkpoints(tmp_path):
    good = tmp_path / "good"
    save_one(good, 9, 1)
    save_one(good, 10, 2)
    states = {"step-00000009": whole_state(1), "step-00000010": whole_state(2)}

    def resumed(root: Path) -> None:
        """As a run does it: the older one is taken where the newer one is refused."""
        got = blank_state()
        found, scalars, skipped = checkpoint.resume(root, lambda *_: got)
        assert same(got, states[found.name])
        assert scalars == SCALARS
        assert [folder.name for folder, _ in skipped] == (["step-00000010"] if found.name.endswith("9") else [])
        if skipped:
            raise UserError(skipped[0][1])

    def case(chance, done):
        root = copied(good, tmp_path / "bad")
        done["what"] = mutate(sorted((root / "step-00000010").iterdir()), chance)
        if chance.random() < 0.1:
            return resumed(root)
        read = checkpoint.read_tensors(root / "step-00000010")
        assert same({name: fetch() for name, _, fetch in read}, states["step-00000010"])

    fuzz("checkpoint", case)


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return {name: bits(tensor) for name, tensor in got.items()} == {name: bits(t) for name, t in expected.items()}


def test_models(model, tmp_path):
    def case(chance, done):
        folder = copied(model, tmp_path / "bad")
        read = [path for path in sorted(folder.iterdir()) if path.name.startswith(("config", "model"))]
        done["what"] = mutate(read, chance)
        settings = hf.read_config(folder)
        for key, value in json.loads((folder / "config.json").read_text(encoding="utf-8")).items():
            if hasattr(settings, key) and isinstance(value, int | str) and key != "rope":
                assert getattr(settings, key) == value, key
        with torch.device("meta"):
            decoder = CausalLM(settings, BACKENDS)
        sources = hf.check_weights(decoder, folder)
        decoder.to_empty(device="cpu")
        hf.load_weights(decoder, folder, sources)
        stored = {}
        for path in {source.path for source in sources.values()}:
            stored |= load_file(path)
        for name, parameter in decoder.named_parameters():
            assert bits(parameter) == bits(stored[name].to(parameter.dtype)), name

    fuzz("model", case)


FOUND = sorted((Path(__file__).parents[1] / "launch" / "recipes").glob("*.toml"))
RECIPES = [path for path in FOUND if not path.stem.startswith("eval_")]


def test_recipes(tmp_path):
    file = tmp_path / "recipe.toml"

    def case(chance, done):
        text, done["what"] = mutate_bytes(chance.choice(RECIPES).read_bytes(), chance)
        file.write_bytes(text)
        got = config.flat(config.load(file))
        for section, table in tomllib.loads(text.decode()).items():
            for key, value in table.items():
                absent = value == "none" and key not in ("checkpoint", "default_system")
                assert got[f"{section}.{key}"] == (None if absent else value), key
        assert config.load(write(file, config.dumps(config.load(file)))) == config.load(file)

    fuzz("recipe", case)


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def test_chats(model, tmp_path):
    def chat(i: int) -> dict:
        return {
            "messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]
        }

    lines = [json.dumps(chat(i)).encode() for i in range(8)]
    file = tmp_path / "chats"
    table = pyarrow.Table.from_pylist([chat(i) for i in range(8)])
    pyarrow.parquet.write_table(table, tmp_path / "parquet", write_page_checksum=True)
    forms = {
        "lines": b"\n".join(lines) + b"\n",
        "array": b"[" + b",".join(lines) + b"]",
        "Parquet": (tmp_path / "parquet").read_bytes(),
    }
    expected = {}
    for name, content in forms.items():
        file.write_bytes(content)
        expected[name] = dict(zip(lines, documents(tokenized(file, model, tmp_path / "good"))))
        assert len(expected[name]) == len(lines)
    assert expected["lines"] == expected["array"] == expected["Parquet"]
    expected = expected["lines"]

    def case(chance, done):
        name = chance.choice(list(forms))
        text, what = mutate_bytes(forms[name], chance)
        done["what"] = f"{name}, {what}"
        file.write_bytes(text)
        got = documents(tokenized(file, model, tmp_path / "bad"))
        if name == "Parquet":
            # Names in its footer have no checksum: a message without its role is refused, or was never one.
            assert got == list(expected.values())
            return
        found = text.removeprefix(b"\xef\xbb\xbf")
        # What is no JSON was to be refused.
        read = (
            json.loads(found) if name == "array" else [json.loads(line) for line in found.split(b"\n") if line.strip()]
        )
        assert len(read) >= len(got)
        for line, document in expected.items():
            assert json.loads(line) not in read or document in got

    fuzz("chat", case)


def tokenized(file: Path, model: Path, out: Path) -> Path:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        tokenize([file], model, out, workers=1, overwrite=True)
    return out


def documents(folder: Path) -> list[tuple]:
    data = TokenDataset.open(folder, verify=True)
    return [(t.tobytes(), m.tobytes()) for t, m in (data.document(i) for i in range(len(data)))]


# Pickles.


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


NAMES = [
    "pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.pkl", ".metadata",
    "__0_0.distcp", "tokens.npy", "data.npz", "adapter_model.bin",
]  # fmt: skip


def test_no_pickle_is_loaded_from_a_folder_of_the_users(model, tmp_path, monkeypatch):
    """Beside the files of a model, a data set and a checkpoint, and in the place of each of them."""
    canary = tmp_path / "canary"
    poison = pickle.dumps(Evil(str(canary)))
    pickle.loads(poison)
    assert canary.exists()  # It works.
    canary.unlink()
    data = runs.write_data(tmp_path / "data", runs.random_documents(6, vocab=VOCAB_SIZE), model)
    save_one(tmp_path / "checkpoints", 10, 2)

    def forbidden(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (np, "load")):
        monkeypatch.setattr(module, name, forbidden)

    def read_model(folder: Path) -> None:
        with torch.device("meta"):
            decoder = CausalLM(hf.read_config(folder), BACKENDS)
        decoder.to_empty(device="cpu")
        hf.load_weights(decoder, folder)

    def read_checkpoint(folder: Path) -> None:
        if checkpoint.resume(folder.parent, lambda *_: blank_state())[0] is None:
            raise UserError("none")

    replaced = 0
    for good, read in (
        (model, read_model),
        (data, content),
        (tmp_path / "checkpoints" / "step-00000010", read_checkpoint),
    ):
        bad = copied(good, tmp_path / "bad" / good.name)
        for name in NAMES:
            (bad / name).write_bytes(poison)
        read(bad)
        for file in sorted(path for path in good.iterdir() if not path.name.startswith(("gen", "tok", "chat"))):
            bad = copied(good, tmp_path / "bad" / good.name)
            (bad / file.name).write_bytes(poison)
            with pytest.raises(UserError):
                read(bad)
            replaced += 1
    assert replaced > 8
    assert not canary.exists()


# Faults that were found, and their kin.


def fifo(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def refused(read, *words: str) -> str:
    with guarded(), pytest.raises(UserError) as error:
        read()
    text = str(error.value)
    assert text.isprintable() and len(text) < 2500
    assert all(word in text for word in words), text
    return text


def test_no_reader_waits_for_a_fifo(model, tmp_path):
    chat = fifo(tmp_path / "chats.jsonl")
    refused(lambda: tokenize([chat], model, tmp_path / "out", workers=1), "not a regular file")
    recipe = fifo(tmp_path / "recipe.toml")
    refused(lambda: config.load(recipe), "not a regular file")
    system = fifo(tmp_path / "system.txt")
    refused(lambda: export.default_system(str(system), None), "not a regular file")
    refused(lambda: tokenize(["/dev/zero"], model, tmp_path / "out", workers=1), "not a regular file")


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 10_000), ("vocab_size", 2**31 - 1), ("head_dim", 2**31 - 2)]
)
def test_sizes_that_no_model_has_are_refused_before_it_is_built(key, value, model, tmp_path):
    folder = copied(model, tmp_path / "bad")
    settings = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(settings))
    refused(lambda: hf.read_config(folder), key)


def test_a_key_that_stands_twice_is_refused(model, tmp_path):
    folder = copied(model, tmp_path / "bad")
    text = (folder / "config.json").read_text().rstrip().removesuffix("}")
    (folder / "config.json").write_text(text + ', "vocab_size": 9}')
    refused(lambda: hf.read_config(folder), "'vocab_size' stands twice")
    row = '{"messages": [{"role": "user", "content": "a"}], "messages": []}'
    refused(lambda: tokenize([write(tmp_path / "c.jsonl", row)], model, tmp_path / "out", workers=1), "stands twice")


def test_a_message_is_one_short_line_whatever_the_names_are(tmp_path):
    file = write(tmp_path / "recipe.toml", '"a\\nb" = 1\n')
    refused(lambda: config.load(file), "a\\nb")
    file = write(tmp_path / "recipe.toml", f"{'k' * 100_000} = 1\n")
    refused(lambda: config.load(file), " ... ")
    good = Path(RECIPES[0])
    refused(lambda: config.load(good, ["plan.gpu=\udcff"]), "not UTF-8")


def test_chat_templates_that_are_no_text(model, tmp_path):
    folder = copied(model, tmp_path / "bad")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    refused(lambda: export.small_files(folder, torch.bfloat16, "Think."), "not UTF-8")
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": 5}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(lambda: export.small_files(folder, torch.bfloat16, "Think."), "chat template")


def test_a_name_of_a_shard_that_is_too_long(model, tmp_path):
    folder = copied(model, tmp_path / "bad")
    index = json.loads((folder / hf.INDEX_NAME).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "\U00020000" * 240 + ".safetensors")
    (folder / hf.INDEX_NAME).write_text(json.dumps(index))
    refused(lambda: hf.stored_tensors(folder))
