"""The default model's weights as safetensors for transformers: the same numbers, dequantised.

Run once per comparison, in a process of its own: `python -m benchmarks.weights FILE.gguf FOLDER`.
transformers could read the GGUF itself at every start, but takes several times as long, which would
flatter anyorder.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write folder/float32 and folder/bfloat16."""
    from typing import Any

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype).save_pretrained(folder / str(dtype).removeprefix("torch."))
        tokenizer.save_pretrained(folder / str(dtype).removeprefix("torch."))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
