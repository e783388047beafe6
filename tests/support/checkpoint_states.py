"""Training states of random bits, sharded or whole, and checkpoints of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from skytrain import checkpoint

# name -> (shape, dtype, the dimension that is sharded or None for a plain tensor that all ranks hold).
# 7 and 3 rows leave 4 ranks uneven shards, and some empty ones.
LAYOUT = {
    "model.embed_tokens.weight": ((7, 8), torch.float32, 0),
    "model.norm.weight": ((5,), torch.bfloat16, 0),
    "model.one_row": ((1, 6), torch.float32, 0),
    "model.cube": ((4, 3, 5), torch.float16, 1),
    "model.empty": ((0, 4), torch.float32, 0),
    "optim.codes.embed_tokens.weight": ((7, 8), torch.uint8, 0),
    "optim.scales.embed_tokens.weight": ((7, 1), torch.float32, 0),
    "optim.remainder.embed_tokens.weight": ((7, 8), torch.int16, 0),
    "optim.plain": ((3, 2), torch.bfloat16, None),
    "optim.step": ((), torch.float32, None),
    "optim.count": ((), torch.int64, None),
}
SCALARS = {"step": 10, "loss": float("inf"), "lr": 0.1 + 0.2, "names": ["a", "é"], "nothing": None}


def whole_state(seed: int) -> dict[str, torch.Tensor]:
    """Whole tensors of random bits: also NaNs with a payload, infinities, denormals and negative zeros."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, (shape, dtype, _) in LAYOUT.items():
        count = torch.Size(shape).numel() * dtype.itemsize
        state[name] = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=random).view(dtype).reshape(shape)
    return state


def blank_state() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype, _) in LAYOUT.items()}


def spread(state: dict[str, torch.Tensor], mesh) -> dict[str, torch.Tensor]:
    """Sharded over the mesh's last dimension and replicated over the others, as FSDP and HSDP place parameters."""
    placements = {
        dim: [Replicate()] * (mesh.ndim - 1) + [Shard(dim)] for _, _, dim in LAYOUT.values() if dim is not None
    }
    return {
        # Every rank cuts its own part (src_data_rank): gloo cannot scatter 16-bit integers.
        name: whole.clone() if dim is None else distribute_tensor(whole, mesh, placements[dim], src_data_rank=None)
        for (name, whole), (_, _, dim) in zip(state.items(), LAYOUT.values())
    }


def bits(tensor: torch.Tensor) -> bytes:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert bits(got[name]) == bits(want[name]), name


def load_and_compare(folder: Path, seed: int, mesh=None) -> None:
    want, got = whole_state(seed), blank_state()
    if mesh is not None:
        want, got = spread(want, mesh), spread(got, mesh)
    assert checkpoint.load(folder, got) == SCALARS
    assert_same(got, want)


def save_one(root: Path, step: int, seed: int, keep: int = 9) -> Path:
    return checkpoint.save(root, step, whole_state(seed), SCALARS, keep=keep)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def tensor_file(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]
