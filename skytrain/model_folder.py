"""What a folder is that was given for a model's, and is none that is trained: one line, with what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

from skytrain.files import sought


def absent(path: Path) -> str:
    """Why a model's folder lacks the file `path`, for a `UserError`."""
    folder = path.parent
    if not folder.exists():
        where = f"{folder}: no such folder{sought(folder)}"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) and not folder.parent.exists():  # as the hub names models
            download = f"hf download {folder} --local-dir models/{folder.name}"
            return f"{where}; where that is a model of the Hugging Face hub: {download}"
        return f"{where}; give the folder of a Hugging Face model"
    if not folder.is_dir():
        return f"{folder}: is a file; give the folder of a Hugging Face model, with its safetensors and tokenizer"
    names = sorted(os.listdir(folder))
    if "adapter_config.json" in names and "config.json" not in names:
        return f"{folder}: holds a LoRA adapter alone; merge it into its base model (peft: merge_and_unload), and save"
    if any(name.endswith(".gguf") for name in names) and "config.json" not in names:
        return f"{folder}: holds GGUF, which cannot be trained; give the folder of the safetensors that it was made of"
    inner = [str(folder / name) for name in names if (folder / name / "config.json").exists()]
    if inner and "config.json" not in names:
        more = f" (and {len(inner) - 3} more)" if len(inner) > 3 else ""
        return f"{folder}: holds models, and is none itself; give one of them: {', '.join(inner[:3])}{more}"
    if path.suffix == ".safetensors" and any(name.endswith((".bin", ".pth", ".pt")) for name in names):
        return (
            f"{path}: no such file, and pickled weights are not read; let transformers write safetensors: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(...)"
        )
    if path.name == "tokenizer.json" and {"tokenizer.model", "vocab.json"} & set(names):
        return (
            f"{path}: no such file, and the folder's tokenizer of the older form is not read; let transformers write "
            f"it: AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return f"{path}: no such file; give a complete Hugging Face model folder, with safetensors and tokenizer.json"
