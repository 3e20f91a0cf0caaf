"""One GGUF file in the forms that peers read: the same numbers, or what a peer makes of them when
it rounds. Run as a script in the peer's environment:

    python -P conversion.py FUNCTION SOURCE TARGET [ARGUMENT]
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def safetensors(source: Path, target: Path) -> None:
    """For transformers: dequantised to float32, with the tokenizer."""
    torch: Any = import_module("torch")
    library: Any = import_module("transformers")
    model = library.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=library.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(target)
    tokenizer = library.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(target)


def rounded(source: Path, target: Path, dtype: str) -> None:
    """For transformers: float32 safetensors in another precision."""
    torch: Any = import_module("torch")
    library: Any = import_module("transformers")
    model = library.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.to(getattr(torch, dtype)).save_pretrained(target)


def gguf(source: Path, target: Path, kind: str) -> None:
    """For llama.cpp: the weights in another of its types, by its own converter."""
    library: Any = import_module("llama_cpp")
    settings = library.llama_model_quantize_default_params()
    settings.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.allow_requantize = True
    failed = library.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(settings)
    )
    if failed:
        raise RuntimeError(f"llama.cpp cannot make {kind} of {source}")


def openvino(source: Path, target: Path) -> None:
    """For OpenVINO: what its pipeline makes of a GGUF file, kept, so that a start need not."""
    library: Any = import_module("openvino_genai")
    target.mkdir()
    # It writes beside the file that it reads.
    copied = Path(shutil.copy(source, target / "model.gguf"))
    library.LLMPipeline(str(copied), "CPU", enable_save_ov_model=True)
    copied.unlink()


def ctranslate2(source: Path, target: Path, kind: str) -> None:
    """For CTranslate2."""
    converters: Any = import_module("ctranslate2.converters")
    converters.TransformersConverter(str(source)).convert(str(target), quantization=kind)


FUNCTIONS: dict[str, Any] = {
    function.__name__: function for function in (safetensors, rounded, gguf, openvino, ctranslate2)
}

if __name__ == "__main__":
    FUNCTIONS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
