"""anyorder on a GPU, with random weights of published shapes: `python -m benchmarks.gpu`.

    decode     one stream, as a share of what the memory's bandwidth allows, beside transformers
    streams    64 streams in new tokens a second, without and with `overlap`, beside transformers'
               continuous batching
    diffusion  seconds a pass of masked diffusion over 256 open places and of blocks of 32, beside
               a loop that runs prompt and answer anew in every step, as LLaDA's own does
    attention  microseconds a call of the kernels, beside torch's attention over gathered pages

Sides take turns; a figure is the median of the rounds with [least, most]. Greedy tokens of one
stream are compared with those of transformers: with random weights near-ties are many, so the
first tokens that agree are told, not judged. Results are printed as one JSON object. Nothing in
the docs was measured with this yet: it ran on a CPU with a tiny shape only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anyorder.cache.pool import Pool
from anyorder.core.batch import AttentionGroup, PackedBatch, RaggedRows, dense_batch
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.benchmarks.large import Shape
from anyorder.model.backends import ragged, sdpa
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import LoadedModel, abilities_of
from anyorder.model.loading import load_network
from anyorder.model.transformer import Transformer
from benchmarks.report import machine

PAGE = 16


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """Sizes of a decoder, and of the work."""

    prompt: int = 128
    new: int = 128
    streams: int = 64
    places: int = 256
    block: int = 32


LLAMA_3_8B = Case(
    name="llama-3-8b",
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    mlp_width=14336,
    vocabulary=128256,
)
LLADA_8B = replace(LLAMA_3_8B, name="llada-8b", num_kv_heads=32, mlp_width=12288, vocabulary=126464)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """The same random weights in all."""

    model: LoadedModel
    engine: Engine
    peer: Any


def open_sides(shape: Case, device: torch.device, dtype: torch.dtype) -> Sides:
    """A random model of transformers, and what anyorder loads from its files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.mlp_width,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        dtype=dtype,
    )
    torch.manual_seed(0)
    with device:
        peer = LlamaForCausalLM(config).to(dtype).eval()
    with tempfile.TemporaryDirectory() as name:
        peer.save_pretrained(name)
        own, tensors = open_folder(Path(name))
        network = load_network(own, tensors, dtype=dtype, device=device)
    abilities = replace(
        abilities_of("random", own, None),
        attention=frozenset({"causal", "bidirectional"}),
        mask_token=shape.vocabulary - 1,
        block_size=shape.block,
    )
    model = LoadedModel(network=network, abilities=abilities)
    return Sides(model=model, engine=Engine(model), peer=peer)


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one unmeasured turn each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, work in sides.items():
            wait(device)
            started = time.perf_counter()
            work()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def figure(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [statistics.median(values), min(values), max(values)]


def bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second that a copy of so many moves, read and written."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = turns({"copy": lambda: target.copy_(source)}, 5, device)["copy"]
    return 2 * num_bytes / min(seconds)


def prompts(shape: Case, num: int) -> list[list[int]]:
    """Random ids."""
    generator = torch.Generator().manual_seed(1)
    size = (num, shape.prompt)
    return torch.randint(1, shape.vocabulary - 1, size, generator=generator).tolist()  # type: ignore[no-any-return]


def decode(sides: Sides, shape: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """One stream; what the prompt takes is measured apart and left out."""
    (prompt,) = prompts(shape, 1)
    texts: dict[str, list[int]] = {}

    def own(new: int) -> None:
        request = Request(prompt=prompt, max_new_tokens=new, prefix_cache=False)
        texts["anyorder"] = list(sides.engine.generate(request).tokens)

    def peer(new: int) -> None:
        ids = torch.tensor([prompt], device=device)
        mask = torch.ones_like(ids)
        sizes = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
        found = sides.peer.generate(ids, attention_mask=mask, do_sample=False, **sizes)
        texts["transformers"] = found[0, shape.prompt :].tolist()

    work = {"anyorder": own, "transformers": peer}
    begun = turns({name: (lambda run=run: run(1)) for name, run in work.items()}, rounds, device)
    whole = turns(
        {name: (lambda run=run: run(shape.new)) for name, run in work.items()}, rounds, device
    )
    network = sides.engine.roles["target"].network
    assert isinstance(network, Transformer), "it was loaded above"
    num_bytes = sum(weight.nbytes for weight in network.parameters())
    num_bytes -= network.embedding.weight.nbytes  # a row of it is read
    limit = bandwidth(device, min(num_bytes, 1 << 30)) / num_bytes
    speed = {
        name: figure(
            [
                (shape.new - 1) / (all_ - first)
                for all_, first in zip(whole[name], begun[name], strict=True)
            ]
        )
        for name in work
    }
    both = zip(texts["anyorder"], texts["transformers"], strict=True)
    agreeing = next((place for place, (a, b) in enumerate(both) if a != b), shape.new)
    return {
        "tokens_per_second": speed,
        "limit": limit,
        "share_of_limit": speed["anyorder"][0] / limit,
        "ratio": speed["anyorder"][0] / speed["transformers"][0],
        "agreeing_tokens": agreeing,
    }


def streams(sides: Sides, shape: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """Many at once, prompts included."""
    texts = prompts(shape, shape.streams)

    num_tokens = shape.streams * shape.new
    overlapping = Engine(
        sides.model, cache_tokens=shape.streams * (shape.prompt + shape.new + PAGE), overlap=True
    )

    def own(engine: Engine) -> Callable[[], object]:
        requests = [
            Request(prompt=text, max_new_tokens=shape.new, prefix_cache=False) for text in texts
        ]
        return lambda: engine.generate(requests)

    def peer() -> None:
        from transformers import GenerationConfig

        sizes = {"max_new_tokens": shape.new, "min_new_tokens": shape.new, "pad_token_id": 0}
        sides.peer.generate_batch(
            texts, generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, **sizes)
        )

    # Continuous batching of transformers needs a GPU.
    work = {"anyorder": own(sides.engine), "overlap": own(overlapping)}
    if device.type == "cuda":
        work["transformers"] = peer
    seconds = turns(work, rounds, device)
    speed = {name: figure([num_tokens / each for each in seconds[name]]) for name in work}
    best = max(speed["anyorder"][0], speed["overlap"][0])
    ratio = best / speed["transformers"][0] if "transformers" in speed else None
    return {"tokens_per_second": speed, "ratio": ratio}


def diffusion(sides: Sides, shape: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds a pass; the reference is the same network over the whole text, without a cache."""
    (prompt,) = prompts(shape, 1)
    network = sides.engine.roles["target"].network
    num_passes: dict[str, int] = {}

    def method(name: str, options: dict[str, object]) -> Callable[[], None]:
        def run() -> None:
            request = Request(
                prompt=prompt,
                method=name,
                max_new_tokens=shape.places,
                prefix_cache=False,
                options=options,
            )
            num_passes[name] = sides.engine.generate(request).report.num_forward_passes

        return run

    @torch.inference_mode()
    def reference() -> None:
        length = shape.prompt + shape.places
        tokens_1T = torch.full((1, length), shape.vocabulary - 1, device=device)
        tokens_1T[0, : shape.prompt] = torch.tensor(prompt, device=device)
        visible_1TT = torch.ones(1, length, length, dtype=torch.bool, device=device)
        steps = num_passes["reference"] = 4
        for _ in range(steps):
            hidden_NW = network.hidden(dense_batch(tokens_1T, visible_1TT), None)
            shares_PV = network.logits(hidden_NW[shape.prompt :]).softmax(-1)
            likely_P, found_P = shares_PV.max(-1)
            open_P = tokens_1T[0, shape.prompt :] == shape.vocabulary - 1
            likely_P = likely_P.where(open_P, -torch.inf)
            some = likely_P.topk(shape.places // steps).indices
            tokens_1T[0, shape.prompt + some] = found_P[some]

    work = {
        "masked_diffusion": method("masked_diffusion", {"steps": 16}),
        "block_diffusion": method("block_diffusion", {"block_size": shape.block, "steps": 8}),
        "reference": reference,
    }
    seconds = turns(work, rounds, device)
    each = {name: figure([one / num_passes[name] for one in seconds[name]]) for name in work}
    return {"seconds_per_pass": each, "num_passes": num_passes}


def attention(shape: Case, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One layer, every stream with the same number of cached tokens and one new one."""
    width, past = shape.width // shape.num_heads, shape.prompt + shape.new
    num_pages = -(-(past + 1) // PAGE)
    num = shape.streams
    pool = Pool(
        [(shape.num_kv_heads, width)],
        num_pages=num * num_pages,
        page_size=PAGE,
        dtype=dtype,
        device=device,
    )
    for tensor in pool.tensors():
        tensor.normal_()
    table = torch.randperm(num * num_pages, device=device).view(num, num_pages)
    positions_N = torch.full((num,), past, device=device)
    rows_N = torch.arange(num, device=device)
    zeros_N = torch.zeros_like(rows_N)
    columns = (rows_N, zeros_N + 1, positions_N, rows_N, zeros_N - 1)
    batch = PackedBatch(
        tokens_N=zeros_N,
        positions_N=positions_N,
        slots_N=table[:, -1] * PAGE + past % PAGE,
        groups=(),
        ragged=RaggedRows(
            requests_R5=torch.stack(columns, 1),
            pages_TP=table,
            visible_M=torch.zeros(1, dtype=torch.bool, device=device),
            window_positions_N=positions_N,
            most_rows=1,
            most_keys=past + 1,
        ),
    )
    group = AttentionGroup(
        first_row=0,
        num_requests=num,
        num_queries=1,
        pages_RP=table,
        query_positions_RQ=positions_N[:, None],
        key_positions_RK=None,
        visible_RQK=None,
    )
    queries_NHD = torch.randn(num, shape.num_heads, width, device=device, dtype=dtype)
    pattern = sdpa.Pattern(scale=width**-0.5)
    nothing = queries_NHD[:0]

    def own() -> None:
        ragged.attend(queries_NHD, batch, pool, 0, pattern)

    def gathered() -> None:
        sdpa.attend(queries_NHD, nothing, nothing, group, pool, 0, pattern)

    work = {"torch": gathered, **({"kernels": own} if ragged.serves(device, dtype) else {})}
    seconds = turns(work, rounds, device)
    return {"microseconds": {name: figure([1e6 * each for each in seconds[name]]) for name in work}}


def measure(
    llama: Case, llada: Case, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """All of it. One model after the other, so that each fits."""
    found: dict[str, Any] = {"machine": machine()}
    if device.type == "cuda":
        found["machine"]["gpu"] = torch.cuda.get_device_name(device)
    sides = open_sides(llama, device, dtype)
    found["decode"] = decode(sides, llama, device, rounds)
    found["streams"] = streams(sides, llama, device, rounds)
    del sides
    if device.type == "cuda":
        torch.cuda.empty_cache()
    sides = open_sides(llada, device, dtype)
    found["diffusion"] = diffusion(sides, llada, device, rounds)
    del sides
    found["attention"] = attention(llama, device, dtype, rounds)
    return found


def main() -> int:
    """Measure and print; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="[5]")
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("torch finds no CUDA device; run this on a machine with a GPU.", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    print(json.dumps(measure(LLAMA_3_8B, LLADA_8B, device, torch.bfloat16, rounds), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
