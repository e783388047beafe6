"""What servers tell, in the forms of vLLM and SGLang, and servers that tell nothing."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ranks import free_port

from skytrain.eval.engine import ask_servers, of_fingerprint


@contextmanager
def told(pages):
    """pages: path -> JSON value, or text that is none."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = pages.get(self.path)
            body = found.encode() if isinstance(found, str) else json.dumps(found).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


MODELS = {"data": [{"id": "m", "owned_by": "vllm", "root": "/models/m", "max_model_len": 4096}, {"id": "other"}]}


def test_vllm_as_it_is_served_by_default():
    with told({"/v1/models": MODELS, "/version": {"version": "0.32.0"}}) as url:
        (row,) = ask_servers([url], "NO_KEY", "m")
    assert row == {
        "server": url,
        "engine": "vllm",
        "version": "0.32.0",
        "dtype": None,
        "parallelism": None,
        "serves": "/models/m",
        "max_model_len": 4096,
        "answers": True,
    }


def test_vllm_that_tells_its_configuration():
    config = {
        "model_config": {"dtype": "torch.bfloat16", "quantization": None},
        "parallel_config": {"tensor_parallel_size": 8, "pipeline_parallel_size": 1, "data_parallel_size": 1},
    }
    pages = {
        "/v1/models": MODELS,
        "/version": {"version": "1"},
        "/server_info?config_format=json": {"vllm_config": config},
    }
    with told(pages) as url:
        (row,) = ask_servers([url], "NO_KEY", "m")
    assert row["dtype"] == "bfloat16" and row["parallelism"] == {"tensor": 8, "pipeline": 1, "data": 1}


def test_sglang():
    info = {"version": "0.5", "dtype": "auto", "tp_size": 4, "dp_size": 2, "quantization": "fp8"}
    with told({"/v1/models": {"data": [{"id": "m"}]}, "/get_server_info": info}) as url:
        (row,) = ask_servers([url], "NO_KEY", "m")
    assert (row["engine"], row["version"], row["parallelism"]) == ("sglang", "0.5", {"tensor": 4, "data": 2})


@pytest.mark.parametrize("page", ["no JSON", [], {"data": 7}, {"data": [7]}, None])
def test_a_server_that_tells_nothing_is_no_error(page):
    with told({"/v1/models": page, "/version": page}) as url:
        first, second = ask_servers([url, f"http://127.0.0.1:{free_port()}/v1"], "NO_KEY", "m")
    assert first["engine"] is first["version"] is second["engine"] is None
    assert first["answers"] and not second["answers"]


@pytest.mark.parametrize("config", [3, {"model_config": 3, "parallel_config": []}])
def test_a_configuration_of_another_form_is_no_error(config):
    with told({"/v1/models": MODELS, "/server_info?config_format=json": {"vllm_config": config}}) as url:
        (row,) = ask_servers([url], "NO_KEY", "m")
    assert row["dtype"] is None


@pytest.mark.parametrize(
    "fingerprint, found",
    [
        ("vllm-0.32.0-1f0c2b3a", {"engine": "vllm", "version": "0.32.0"}),
        ("vllm-0.32.0-tp8-1f0c2b3a", {"engine": "vllm", "version": "0.32.0", "parallelism": {"tensor": 8}}),
        (
            "vllm-0.32.0rc1.dev5+gabc-tp4-pp2-dp2-ep-1f0c2b3a",
            {
                "engine": "vllm",
                "version": "0.32.0rc1.dev5+gabc",
                "parallelism": {"tensor": 4, "pipeline": 2, "data": 2},
            },
        ),
        ("teacher-1", {}),
        ("", {}),
    ],
)
def test_vllms_fingerprints_are_read(fingerprint, found):
    assert of_fingerprint(fingerprint) == found
