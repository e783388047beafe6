"""What servers tell of themselves: engine, version, dtype and parallelism, which scores depend on.

Sampling in half precision changes with the engine's version, its number of GPUs and its kernels, so that a score
without them cannot be made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from typing import Any

import aiohttp

SECONDS = 10.0
UNTOLD = ("engine", "version", "dtype", "parallelism")
_PARALLEL = {"tp": "tensor", "pp": "pipeline", "dp": "data"}


def ask_servers(servers: list[str], api_key_env: str, model: str) -> list[dict[str, Any]]:
    """A row a server: `server`, `engine`, `version`, `dtype`, `parallelism` ({"tensor": 8}), `serves` (the model's
    path, as the server knows it) and `max_model_len`; None for what it does not tell. `answers`: whether anything
    answers there; where nothing does is no error here."""
    return asyncio.run(_all(servers, os.environ.get(api_key_env, "").strip(), model))


async def _all(servers: list[str], key: str, model: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        return list(await asyncio.gather(*(_one(session, url.rstrip("/"), model) for url in servers)))


async def _one(session: aiohttp.ClientSession, url: str, model: str) -> dict[str, Any]:
    root = re.sub(r"/v1$", "", url)
    models, version, vllm, sglang = await asyncio.gather(
        _json(session, f"{url}/models"),
        _json(session, f"{root}/version"),
        _json(session, f"{root}/server_info?config_format=json"),  # vLLM with VLLM_SERVER_DEV_MODE=1
        _json(session, f"{root}/get_server_info"),
    )
    reached = None not in (models, version)
    models, version, vllm, sglang = (page or {} for page in (models, version, vllm, sglang))
    listed = models.get("data") if isinstance(models.get("data"), list) else []
    own = next((one for one in listed if isinstance(one, dict) and one.get("id") == model), {})
    told = {
        "server": url,
        "engine": own.get("owned_by"),
        "version": version.get("version"),
        "dtype": None,
        "parallelism": None,
        "serves": own.get("root"),
        "max_model_len": own.get("max_model_len"),
        "answers": reached,
    }
    if isinstance(config := vllm.get("vllm_config"), dict):
        told |= _of_vllm(config)
    elif sglang:
        told |= _of_sglang(sglang)
    return told


async def _json(session: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    """Empty where the page is not there, or holds no object; None where nothing answers."""
    try:
        async with session.get(url) as response:
            if response.status == 200:
                with contextlib.suppress(ValueError):
                    found = await response.json(content_type=None)
                    return found if isinstance(found, dict) else {}
            return {}
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def _of_vllm(config: dict[str, Any]) -> dict[str, Any]:
    parts = (config.get("model_config"), config.get("parallel_config"))
    model, parallel = (part if isinstance(part, dict) else {} for part in parts)
    sizes = {name: parallel.get(f"{name}_parallel_size") for name in _PARALLEL.values()}
    return {
        "dtype": str(model.get("dtype")).removeprefix("torch.") if model.get("dtype") else None,
        "parallelism": {name: size for name, size in sizes.items() if isinstance(size, int)} or None,
        "quantization": model.get("quantization"),
    }


def _of_sglang(told: dict[str, Any]) -> dict[str, Any]:
    sizes = {"tensor": told.get("tp_size"), "pipeline": told.get("pp_size"), "data": told.get("dp_size")}
    return {
        "engine": "sglang",
        "version": told.get("version"),
        "dtype": told.get("dtype"),
        "parallelism": {name: size for name, size in sizes.items() if isinstance(size, int)} or None,
        "quantization": told.get("quantization"),
    }


def of_fingerprint(fingerprint: str) -> dict[str, Any]:
    """What vLLM's system_fingerprint says, as `vllm-0.32.0-tp8-1f0c2b3a`: the sizes that are not 1 stand in it."""
    found = re.fullmatch(r"(vllm)-(.+?)((?:-(?:tp|pp|dp)\d+|-ep)*)-[0-9a-z]+", fingerprint)
    if found is None:
        return {}
    sizes = {_PARALLEL[kind]: int(size) for kind, size in re.findall(r"-(tp|pp|dp)(\d+)", found[3])}
    return {"engine": found[1], "version": found[2]} | ({"parallelism": sizes} if sizes else {})
