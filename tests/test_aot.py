"""Every kernel, as production launches it, compiles for sm_90: no spills, no fp64, wide accesses, within its limits."""

import importlib.util
import itertools
from dataclasses import replace

import bad_kernels
import pytest
import torch
from aot import access_bits, argument_type, compile_launches, faults, recorded, registers, spill_bytes
from cases import ADAMW_BYTES, MODELS, OPERATIONS, Make, adamw, adamw_step, backward, with_gradients

from skytrain.kernels import backend

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
META = torch.device("meta")
ELEMENTS_A_THREAD = 16
"""Of the optimizer."""


def record_operation(operation, shape, dtype=torch.bfloat16):
    with recorded() as launches:
        inputs = with_gradients(operation, operation.inputs(Make(META, dtype), shape))
        outputs = operation.ours(inputs, "triton")
        backward(operation, inputs, outputs, tuple(torch.empty_like(output) for output in outputs))
    return launches


def record_adamw(format):
    with recorded() as launches:
        optimizer = adamw(format, [torch.empty(5120, 5120, device=META), torch.empty(5120, device=META)], "triton")
        adamw_step(optimizer, [torch.empty_like(parameter) for parameter in optimizer.parameters])
    return launches


def production(name, dtype):
    """The launches of all operations."""
    launches = {}
    for operation in OPERATIONS.values():
        launches |= dict.fromkeys(record_operation(operation, MODELS[name], dtype))
    return list(launches)


def bad(kernel, *arguments, **constants):
    with recorded() as launches:
        backend.launch(kernel, (1,), *arguments, **constants)
    return launches[0]


N = 1 << 20
X, H = torch.empty(N, device=META), torch.empty(N, device=META, dtype=torch.bfloat16)
FAULTS = {
    "none": (bad_kernels.copy, (X, X, N), {"BLOCK": 1024}, []),
    "none in bf16": (bad_kernels.copy, (H, H, N), {"BLOCK": 1024}, []),
    "unaligned end": (bad_kernels.copy, (X, X, N - 1), {"BLOCK": 1024}, ["0% of what ld", "0% of what st"]),
    "unaligned pointer": (bad_kernels.copy, (X[1:], X, N), {"BLOCK": 1024}, ["0% of what ld"]),
    "unit stride": (bad_kernels.copy_by_stride, (X, X, N, 1), {"BLOCK": 1024}, []),
    "stride": (bad_kernels.copy_by_stride, (X, X, N, 3), {"BLOCK": 1024}, ["0% of what ld", "0% of what st"]),
    "fp64": (bad_kernels.in_fp64, (X, X, N), {"BLOCK": 1024}, ["fp64"]),
    "spills": (bad_kernels.spilling, (X, X, 64), {"BLOCK": 16_384}, ["bytes spilled"]),
    "dot": (bad_kernels.product, (H, H, X, 1024), {"SIZE": 128, "num_warps": 8, "num_stages": 3}, []),
    "shared": (bad_kernels.product, (H, H, X, 1024), {"SIZE": 128, "num_warps": 8, "num_stages": 8}, ["shared"]),
    "no power of 2": (bad_kernels.copy, (X, X, N), {"BLOCK": 1000}, ["does not compile: CompilationError"]),
    "small dot": (bad_kernels.small_dot, (X, X), {}, ["% of what ld", "% of what st", "without HGMMA"]),
}


@pytest.fixture(scope="module")
def launches():
    """By what they are for; the architectures beside sm_90 get those of the 32B model in bf16."""
    large = production("32B", torch.bfloat16)
    optimizer = {format: record_adamw(format) for format in ADAMW_BYTES}
    known = {"hopper": large + production("7B", torch.bfloat16) + production("32B", torch.float32), "elsewhere": large}
    known |= optimizer | {"elsewhere": large + [launch for launches in optimizer.values() for launch in launches]}
    faulty = {name: bad(kernel, *arguments, **constants) for name, (kernel, arguments, constants, _) in FAULTS.items()}
    return known | {"faulty": faulty}


@pytest.fixture(scope="module")
def compiled(launches, tmp_path_factory):
    wanted = [(launch, 90) for launch in (*launches["hopper"], *launches["faulty"].values())]
    wanted += [(launch, 90) for format in ADAMW_BYTES for launch in launches[format]]
    wanted += itertools.product(launches["elsewhere"], (80, 100))
    return compile_launches(wanted, tmp_path_factory.mktemp("aot"))


def test_production_on_hopper(launches, compiled):
    assert len(launches["hopper"]) > len(OPERATIONS)
    found = [f"{launch}: {fault}" for launch in launches["hopper"] for fault in faults(launch, compiled[launch, 90])]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("format", ADAMW_BYTES)
def test_the_optimizer_on_hopper(launches, compiled, format):
    (launch,) = launches[format]
    # Its fast path; tensors that are not aligned take a slow one in the same kernel.
    least = {what: ELEMENTS_A_THREAD * size for what, size in zip(("ld", "st"), ADAMW_BYTES[format])}
    assert not faults(launch, compiled[launch, 90], least)


def test_production_compiles_for_ampere_and_blackwell(launches, compiled):
    found = [compiled[launch, target].error for launch in launches["elsewhere"] for target in (80, 100)]
    assert not any(found), "\n".join(found)


@pytest.mark.parametrize("name", FAULTS)
def test_the_checks_find_each_fault(launches, compiled, name):
    launch = launches["faulty"][name]
    found, expected = faults(launch, compiled[launch, 90]), FAULTS[name][3]
    assert len(found) == len(expected), found
    assert all(part in words for part, words in zip(expected, found)), found


def test_too_many_registers_are_found(launches, compiled):
    # ptxas itself keeps to what a program of so many warps can have, so this fault is made by hand.
    launch = launches["faulty"]["dot"]
    greedy = replace(compiled[launch, 90], log="0 bytes spill stores, 0 bytes spill loads\nUsed 257 registers")
    assert faults(launch, greedy) == ["257 registers a thread with 8 warps"]


def test_equal_launches_are_recorded_once_and_different_ones_each():
    with recorded() as launches:
        for n in (32, 64, 33, 1):  # the first two specialise alike
            backend.launch(bad_kernels.copy, (n,), X, X, n, BLOCK=64)
        backend.launch(bad_kernels.copy, (1,), X, X, 64, BLOCK=64, num_warps=8)
        backend.launch(bad_kernels.copy, (0,), X, X, 64, BLOCK=32)
    assert len(launches) == 4
    assert [launch.name for launch in launches] == ["copy"] * 4


@pytest.mark.parametrize("arguments", [(X, X), (X, X, 4, 64, 5)])
def test_a_launch_with_too_few_or_too_many_arguments_is_refused(arguments):
    with pytest.raises(TypeError, match="copy"), recorded():
        backend.launch(bad_kernels.copy, (1,), *arguments)


def test_argument_types_are_those_of_the_jit():
    values = (None, 1, True, 2, -(2**31), 2**31, 2**63, 0.5, X, H)
    names = ["constexpr", "constexpr", "u1", "i32", "i32", "i64", "u64", "fp32", "*fp32", "*bf16"]
    assert [argument_type(value) for value in values] == names
    with pytest.raises(TypeError, match="str"):
        argument_type("x")


def test_widths_and_ptxas_words_are_read():
    ptx = """
        @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        ld.global.L1::evict_first.L2::cache_hint.v2.b64 { %rd1, %rd2 }, [ %rd1 + 0 ], %rd9;
        ld.global.nc.b16 %rs1, [ %rd1 ];
        st.global.v8.b32 [ %rd1 ], { };
        cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, %r9;
        cp.async.ca.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x4, %r9;
        ld.shared.b32 %r1, [ %r2 ];
    """
    assert access_bits(ptx, "ld") == [128, 128, 16, 128, 32]
    assert access_bits(ptx, "st") == [256]
    log = "0 bytes stack frame, 12 bytes spill stores, 30 bytes spill loads\nptxas info : Used 40 registers, used 0"
    assert (spill_bytes(log), registers(log)) == (42, 40)
    with pytest.raises(ValueError, match="nothing of spills"):
        spill_bytes("ptxas info: done")
