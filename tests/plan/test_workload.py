"""What is to be trained, where it is not at hand: drawn lengths and known shapes; and rows as a run packs them."""

import numpy as np
import pytest
import runs
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import config
from skytrain.errors import UserError
from skytrain.plan.workload import document_lengths, drawn_lengths, known_models, model_shapes, pack


@pytest.mark.parametrize(("mean", "longest"), [(4660, 16384), (300, 16384), (2000, 4096), (16000, 16384)])
def test_drawn_lengths_meet_their_mean_within_the_cuts(mean, longest):
    lengths = drawn_lengths(5001, mean, longest)
    assert lengths.mean() == pytest.approx(mean, rel=0.002)
    assert lengths.min() >= 200
    assert lengths.max() <= longest
    assert np.array_equal(lengths, drawn_lengths(5001, mean, longest))


def test_a_few_percent_of_sky_t1_s_lengths_are_over_8192():
    lengths = drawn_lengths(16401, 4660, 16384)
    assert 0.07 < (lengths > 8192).mean() < 0.14


@pytest.mark.parametrize("mean", [100, 16385])
def test_a_mean_outside_of_the_cuts_is_refused(mean):
    with pytest.raises(UserError, match=r"plan\.mean_tokens = "):
        drawn_lengths(10, mean, 16384)


def recipe(**sections):
    base = {"run": {"dir": "x"}, "model": {"path": "nowhere"}, "data": {"path": "nowhere"}, "batch": {"documents": 4}}
    return config.resolve(base | sections, "test")


def test_the_folder_comes_before_the_known_model_and_neither_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    plan = {"model": "qwen2.5-32b"}
    assert model_shapes(recipe(model={"path": str(folder)}, plan=plan))[0].vocab_size == VOCAB_SIZE
    assert model_shapes(recipe(plan=plan))[0] == known_models()["qwen2.5-32b"]
    with pytest.raises(UserError, match=r"model\.path = 'nowhere'.*set plan\.model to one of .*qwen2\.5-32b"):
        model_shapes(recipe())
    with pytest.raises(UserError, match=r"plan\.model = 'gpt'"):
        model_shapes(recipe(plan={"model": "gpt"}))


def test_the_data_set_comes_before_drawn_lengths_and_neither_is_refused(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    documents = runs.random_documents(7, vocab=VOCAB_SIZE)
    folder = runs.write_data(tmp_path / "data", documents, model)
    there = [len(tokens) for tokens, _ in documents]
    plan = {"documents": 50, "mean_tokens": 900}
    assert document_lengths(recipe(data={"path": str(folder)}, plan=plan), None)[0].tolist() == there
    assert document_lengths(recipe(plan=plan), str(folder))[0].tolist() == there
    assert document_lengths(recipe(plan=plan), None)[0].mean() == pytest.approx(900, rel=0.01)
    with pytest.raises(UserError, match=r"data\.path = 'nowhere'.*plan\.documents"):
        document_lengths(recipe(), None)
    with pytest.raises(UserError, match=str(tmp_path / "none")):
        document_lengths(recipe(plan=plan), str(tmp_path / "none"))


def test_packed_sums_are_those_of_the_run():
    """All steps, and where only some are looked at, within what they differ."""
    lengths = drawn_lengths(2000, 700, 4096)
    c = recipe(batch={"documents": 16, "max_tokens": 4096}, train={"epochs": 2})
    model = known_models()["qwen2.5-0.5b"]
    packed = pack(c, model, lengths, 2, 4096)
    assert (packed.steps, packed.share) == (250, 1.0)
    assert packed.run_tokens == 2 * lengths.sum()
    assert packed.run_squares == 2 * np.square(lengths).sum()
    assert packed.fullest <= 4096
    longer = pack(recipe(batch=c_batch(c), train={"epochs": 8}), model, lengths, 2, 4096)
    assert longer.share > 1
    assert longer.run_tokens == pytest.approx(8 * lengths.sum(), rel=0.02)


def c_batch(c):
    return {"documents": c.batch.documents, "max_tokens": c.batch.max_tokens}
