"""The decoder against transformers' on unpacked rows in fp32, and what packing must not change."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from ranks import run_ranks
from sharded_model import (
    build,
    gradients,
    logits,
    packed,
    rank_gradients,
    rank_logits,
    rank_poisoned_loss,
)
from tiny_models import FAMILIES, VOCAB_SIZE, write_tiny_model
from torch.utils.flop_counter import FlopCounterMode

from skytrain.flops import flop_coefficients, model_flops
from skytrain.hf import read_config
from skytrain.rotary import Rope, inverse_frequencies, rotary_tables

CASES = [(family, tied) for family in FAMILIES for tied in (False, True)]


def document(length: int, seed: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


A, B, C = document(19, 1), document(7, 2), document(12, 3)


def reference(folder) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference_logits(folder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return reference(folder)(torch.tensor([ids])).logits[0]


def close(value: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_logits_equal_transformers(tmp_path, family, tied):
    # Longer than the 64 tokens of pretraining in the scaled families.
    ids = document(150, 0)
    folder = write_tiny_model(tmp_path, family, tied=tied)
    expected = reference_logits(folder, ids)
    assert expected.std() > 0.5  # so that 1e-5 says something
    close(logits(build(folder), [ids]), expected)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict:
    """Per case: the folder, and the logits of C on each of two ranks. One start of the ranks for all cases."""
    folders = [
        write_tiny_model(tmp_path_factory.mktemp("model"), family, tied=tied, shard_bytes=100_000)
        for family, tied in CASES
    ]
    return dict(zip(CASES, zip(folders, *run_ranks(2, rank_logits, folders, [C]))))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_on_two_ranks(two_ranks, case):
    folder, *results = two_ranks[case]
    expected = reference_logits(folder, C)
    for result in results:
        close(result, expected)


def test_logits_equal_transformers_with_hsdp_on_four_ranks(tmp_path):
    folder = write_tiny_model(tmp_path, "qwen2")
    expected = reference_logits(folder, C)
    for (result,) in run_ranks(4, rank_logits, [folder], [C], 2):
        close(result, expected)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3"])
def test_attention_bias_is_followed_as_in_transformers(tmp_path, family):
    """Qwen2 has biases on q, k, v only, whatever the key says; Qwen3 and Llama on o too, where it is true."""
    folder = write_tiny_model(tmp_path, family, **({} if family == "qwen2" else {"attention_bias": True}))
    model = build(folder)
    assert (model.model.layers[0].self_attn.o_proj.bias is None) == (family == "qwen2")
    close(logits(model, [A]), reference_logits(folder, A))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_b16_documents_of_a_row_do_not_see_each_other(tmp_path, backend):
    """B16: packed logits equal each document's alone, and changing A leaves B's and C's bit-equal."""
    folder = write_tiny_model(tmp_path, "qwen2")
    model = build(folder, backend=backend)
    row = logits(model, [A, B, C])
    close(row, torch.cat([reference_logits(folder, ids) for ids in (A, B, C)]))
    close(torch.cat([logits(model, [A, B]), logits(model, [C])]), row)
    changed = logits(model, [document(len(A), 9), B, C])
    assert not torch.equal(changed[: len(A)], row[: len(A)])
    assert torch.equal(changed[len(A) :], row[len(A) :])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_b17_positions_restart_with_each_document(tmp_path, family):
    """B17: with positions that restart, a packed document is rotated bit for bit, and answers, as it does alone."""
    folder = write_tiny_model(tmp_path, family)
    model = build(folder)
    row = packed([A, B, C])
    assert row["positions"].tolist() == [*range(len(A)), *range(len(B)), *range(len(C))]
    tables = rotary_tables(model.config.rope, model.config.head_dim, row["positions"])
    for part, table in enumerate(tables):
        alone = [rotary_tables(model.config.rope, model.config.head_dim, torch.arange(len(x)))[part] for x in (A, B, C)]
        assert torch.equal(table, torch.cat(alone))
    close(logits(model, [A, B, C]), torch.cat([logits(model, [ids]) for ids in (A, B, C)]))
    # Positions do count: the same tokens spread out differ.
    with torch.no_grad():
        spread = model(**(row | {"positions": row["positions"] * 2}))
    assert (spread - logits(model, [A, B, C])).abs().max() > 1e-2


def test_d59_a_packed_document_cannot_attend_the_one_before(tmp_path):
    """D59: pack [A(3), B(2)]: positions 0 1 2 0 1, and B's logits equal those of B unpacked."""
    folder = write_tiny_model(tmp_path, "qwen3")
    first, second = A[:3], B[:2]
    row = packed([first, second])
    assert row["positions"].tolist() == [0, 1, 2, 0, 1]
    with torch.no_grad():
        close(build(folder)(**row)[3:], reference_logits(folder, second))


@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_equal_transformers(tmp_path, tied):
    folder = write_tiny_model(tmp_path, "qwen2", tied=tied)
    loss, found = gradients(build(folder), [A, B], scale=1 / 24)
    oracle = reference(folder)
    expected = sum(
        F.cross_entropy(oracle(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum")
        for ids in (A, B)
    )
    expected = expected / 24
    expected.backward()
    close(loss, expected.detach())
    wanted = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        close(found[name], gradient, 1e-5 * gradient.norm().item())


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_on_two_ranks_equal_one(tmp_path, tied):
    folder = write_tiny_model(tmp_path, "qwen2", tied=tied)
    loss, expected = gradients(build(folder), [A, B, C], scale=1 / 35)
    # The second rank has nothing to train in part of its row.
    results = run_ranks(2, rank_gradients, folder, [[A], [B, C]], 1 / 35)
    close(sum(result[0] for result in results), loss)
    for _, found in results:
        for name, gradient in expected.items():
            close(found[name], gradient, 1e-5 * gradient.norm().item())


@pytest.mark.parametrize("tied", [False, True])
def test_bf16_compute_reduces_fp32_gradients(tmp_path, tied):
    """The head's fp32 gradient passes autograd and FSDP2 unrounded, also where the head is tied to the embedding."""
    folder = write_tiny_model(tmp_path, "qwen2", tied=tied)
    _, expected = gradients(build(folder), [A], scale=1 / 18)
    # One rank has nothing to train: a sum of two ranks' bf16 numbers would need more bits than bf16 has.
    for _, found in run_ranks(2, rank_gradients, folder, [[A], [B[:1]]], 1 / 18, "bfloat16"):
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        assert found[name].dtype == torch.float32
        # Rounded to bf16 on the way, every value would have 16 zero bits at its end.
        unseen = [token for token in range(VOCAB_SIZE) if token not in A + B[:1]]
        assert (found[name][unseen].view(torch.int32) & 0xFFFF).count_nonzero() > 0
        for key, gradient in expected.items():
            close(found[key], gradient, 0.05 * gradient.norm().item())


def test_a_row_without_targets_has_zero_loss_and_gradients(tmp_path):
    model = build(write_tiny_model(tmp_path, "qwen2"))
    loss, found = gradients(model, [[5]], scale=1.0)
    assert loss.item() == 0
    assert all(gradient.count_nonzero() == 0 for gradient in found.values())


def test_b53_rope_theta_changes_logits(tmp_path):
    """B53: rope_theta is followed: 1e6 and 1e4 differ, each as in transformers, in both forms of config.json."""
    found = {}
    for theta in (1e4, 1e6):
        folder = write_tiny_model(
            tmp_path / str(theta), "qwen2", rope_parameters={"rope_type": "default", "rope_theta": theta}
        )
        found[theta] = logits(build(folder), [A])
        close(found[theta], reference_logits(folder, A))
        path = folder / "config.json"
        config = json.loads(path.read_text())
        del config["rope_parameters"]
        path.write_text(json.dumps(config | {"rope_theta": theta}))
        assert torch.equal(logits(build(folder), [A]), found[theta])
    assert (found[1e4] - found[1e6]).abs().max() > 1e-2


@pytest.mark.parametrize(("theta", "head_dim"), [(1e4, 128), (5e5, 128), (1e6, 128), (1e6, 64)])
def test_b53_rotary_is_fp32_after_a_cast_to_bf16(tmp_path, theta, head_dim):
    """B53: after `.to(bf16)` the tables that reach a layer are fp32 and, at position 30,000, within 1e-3 of fp64."""
    folder = write_tiny_model(
        tmp_path, "qwen3", head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    model = build(folder).to(torch.bfloat16)
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1:3]))
    with torch.no_grad():
        model(torch.tensor([3]), torch.tensor([30_000]), torch.tensor([0, 1], dtype=torch.int32), 1)
    cos, sin = seen[0]
    angle = 30_000 * theta ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    assert cos.dtype == sin.dtype == torch.float32
    close(cos[0].double(), angle.cos(), 1e-3)
    close(sin[0].double(), angle.sin(), 1e-3)
    assert inverse_frequencies(model.config.rope, head_dim, "cpu").dtype == torch.float32


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.2},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 6.0},
    ],
)
def test_b53_rope_scaling_matches_transformers(tmp_path, rope):
    """B53: every key of a scaling block counts as it does in transformers."""
    folder = write_tiny_model(tmp_path, "llama3", rope_parameters=rope | {"rope_theta": 10000.0})
    close(logits(build(folder), [document(100, 0)]), reference_logits(folder, document(100, 0)))


def test_rotary_frequencies_of_the_published_models_match_transformers():
    """At head_dim 128 and the published settings, where transformers' fp32 arithmetic is a few units off fp64."""
    published = {
        transformers.Qwen2Config: Rope("yarn", 1e6, 4.0, 32768, attention_factor=0.1 * 1.3862943611198906 + 1),
        transformers.LlamaConfig: Rope("llama3", 5e5, 8.0, 8192, 1.0, 4.0),
    }
    for config_class, rope in published.items():
        config = config_class(
            hidden_size=512,
            num_attention_heads=4,
            max_position_embeddings=131072,
            rope_parameters={
                "rope_type": rope.kind,
                "rope_theta": rope.theta,
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_max_position_embeddings,
                **({"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope.kind == "llama3" else {}),
            },
        )
        expected, attention_factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope.kind](config)
        torch.testing.assert_close(inverse_frequencies(rope, 128, "cpu"), expected, rtol=1e-6, atol=0)
        assert rope.attention_factor == pytest.approx(attention_factor)


@pytest.mark.parametrize("family", ["qwen2", "yarn"])
def test_b54_meta_initialisation_leaves_no_junk(tmp_path, family):
    """B54: with freed memory full of NaN, meta + to_empty + load on 2 ranks gives HF's loss at step 0."""
    folder = write_tiny_model(tmp_path, family)
    expected = F.cross_entropy(reference_logits(folder, A)[:-1], torch.tensor(A[1:]))
    for loss, buffers in run_ranks(2, rank_poisoned_loss, folder, [A]):
        close(loss, expected)
        assert buffers == 0


def test_flops_are_those_of_the_matrix_products(tmp_path):
    """Against torch's count of transformers' model, whose plain attention does the full square: twice the half."""
    folder = write_tiny_model(tmp_path, "qwen3")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        for ids in (A, C):
            oracle(torch.tensor([ids])).logits.sum().backward()
    config = read_config(folder)
    linear, quadratic = flop_coefficients(config)
    squares = len(A) ** 2 + len(C) ** 2
    assert counter.get_total_flops() == linear * len(A + C) + 2 * quadratic * squares
    assert model_flops(config, [len(A), len(C)]) == linear * len(A + C) + quadratic * squares


def test_flops_of_qwen2_5_32b_are_near_six_times_its_parameters(tmp_path):
    settings = {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    linear, quadratic = flop_coefficients(read_config(tmp_path))
    # 32.76 B parameters, of which the embedding (0.78 B) is looked up; norms and biases are in the rounding.
    assert linear / 6 == pytest.approx(32.76e9 - 152064 * 5120, rel=1e-3)
    assert quadratic == 6 * 64 * 5120
