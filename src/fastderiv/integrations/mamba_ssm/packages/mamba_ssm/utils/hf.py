"""`load_config_hf`, `load_state_dict_hf`: a model's files in a folder or on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG_NAME, WEIGHTS_NAME = "config.json", "pytorch_model.bin"


def load_config_hf(model_name: str) -> dict[str, Any]:
    """The configuration in a folder, or of a model on the Hugging Face hub."""
    return json.loads(_file(model_name, CONFIG_NAME).read_text("utf-8"))


def load_state_dict_hf(
    model_name: str, device: Any = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weights in a folder, or of a model on the Hugging Face hub, in the dtypes of the file.

    They are on `device`, or on the CPU if the model is to have a dtype other than float32.
    """
    place = "cpu" if device is None or dtype not in (torch.float32, None) else device
    return torch.load(_file(model_name, WEIGHTS_NAME), map_location=place, weights_only=True)


def _file(model_name: str, name: str) -> Path:
    folder = Path(model_name)
    if folder.is_dir():
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model_name, name))
