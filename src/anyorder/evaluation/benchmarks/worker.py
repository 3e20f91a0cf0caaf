"""One engine in a process of its own, told over pipes what to do. Run as a script, in any of the
virtual environments: it needs nothing but the standard library and the engine that it is to open.

    python -P worker.py ENGINE WEIGHTS KIND THREADS

Lines of JSON. In: {"do": "generate", "prompts": [[...]], "num_new": n, "lookup": false}; out:
{"tokens": [[...]], "seconds": s, "peak_mb": m}. Greedy, exactly so many tokens each, end tokens
included. `lookup` asks for exact speculation out of the text so far, where the engine has it.
In: {"do": "likelihood", "windows": [[...]]}; out: {"nats": sum of negative log-likelihoods}.
anyorder alone also answers "explain" (greedy tokens and the alternatives to each), "encode" and
"vocabulary".
Whatever an engine prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

Tokens = list[list[int]]
_LOOKUP_LENGTH = 10
"""Tokens that peers guess at once."""


class Opened(Protocol):
    """An engine with its model."""

    def prepare(self, prompts: Tokens, num_new: int, lookup: bool) -> Callable[[], Tokens]:
        """Everything that is not timed; what comes back is."""

    def nats(self, windows: Tokens) -> float:
        """Negative log-likelihood of the windows' tokens after the first, summed."""


class Anyorder:
    """This package."""

    def __init__(self, weights: str, kind: str, threads: int) -> None:
        from anyorder.core.garbage import uncollected
        from anyorder.core.request import Request

        with uncollected(for_good=True):  # as `import anyorder` does
            from anyorder.engine.engine import Engine

        whole = kind in ("float32", "bfloat16")
        self.engine = Engine(
            weights, dtype=kind if whole else None, quantize=None if whole else kind
        )
        self.request = Request

    def prepare(self, prompts: Tokens, num_new: int, lookup: bool) -> Callable[[], Tokens]:
        """Requests that go on after end tokens."""
        method = "speculative" if lookup else "autoregressive"
        requests = [
            self.request(prompt=prompt, max_new_tokens=num_new, ignore_end=True, method=method)
            for prompt in prompts
        ]
        return lambda: [completion.tokens for completion in self.engine.generate(requests)]

    def nats(self, windows: Tokens) -> float:
        """By the chain rule."""
        return -sum(sum(self.engine.score(window).logprobs) for window in windows)

    def explain(self, prompt: list[int], num_new: int) -> list[dict[str, Any]]:
        """Greedy tokens, each with the likeliest tokens there and their probabilities."""
        request = self.request(
            prompt=prompt, max_new_tokens=num_new, ignore_end=True, logprobs=20, prefix_cache=True
        )
        trace = self.engine.generate([request])[0].trace
        return [{"token": entry.token, "others": list(entry.alternatives)} for entry in trace]

    def encode(self, text: str) -> list[int]:
        """A text's token ids."""
        assert self.engine.tokenizer is not None, "the model reads text"
        return self.engine.tokenizer.encode(text)

    def vocabulary(self) -> int:
        """Its size."""
        return self.engine.abilities.vocabulary_size


class Transformers:
    """transformers, on torch."""

    def __init__(self, weights: str, kind: str, threads: int) -> None:
        self.torch: Any = import_module("torch")
        self.torch.set_num_threads(threads)
        library: Any = import_module("transformers")
        self.model: Any = library.AutoModelForCausalLM.from_pretrained(
            weights, dtype=kind, attn_implementation="sdpa"
        )
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def prepare(self, prompts: Tokens, num_new: int, lookup: bool) -> Callable[[], Tokens]:
        """Prompts of one length."""
        ids = self.torch.tensor(prompts)
        extra = {"prompt_lookup_num_tokens": _LOOKUP_LENGTH} if lookup else {}

        def run() -> Tokens:
            answer = self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=num_new,
                **extra,
            )
            tokens: Tokens = answer[:, ids.shape[1] :].tolist()
            return tokens

        return run

    def nats(self, windows: Tokens) -> float:
        """One pass a window."""
        total = 0.0
        with self.torch.inference_mode():
            for window in windows:
                ids = self.torch.tensor([window])
                logits = self.model(ids).logits[0, :-1].float()
                total += float(
                    self.torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
                )
        return total


class LlamaCpp:
    """llama.cpp by its C interface, which can run several sequences and spares a Python loop over
    samplers."""

    def __init__(self, weights: str, kind: str, threads: int) -> None:
        self.np: Any = import_module("numpy")
        self.library: Any = import_module("llama_cpp")
        self.weights, self.threads = weights, threads
        self.library.llama_backend_init()
        self.model = self.library.llama_model_load_from_file(
            weights.encode(), self.library.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {weights}")
        vocabulary = self.library.llama_model_get_vocab(self.model)
        self.num_ids = self.library.llama_vocab_n_tokens(vocabulary)
        self.shape, self.context = (0, 0), None
        self.looking: Any = None

    def prepare(self, prompts: Tokens, num_new: int, lookup: bool) -> Callable[[], Tokens]:
        """A context of the right size, emptied."""
        if lookup:
            return self._lookup(prompts[0], num_new)
        batch = self._batch(len(prompts), len(prompts[0]) + num_new, prompts)

        def run() -> Tokens:
            tokens: Tokens = [[] for _ in prompts]
            last = [len(prompts[0]) * (row + 1) - 1 for row in range(len(prompts))]
            for step in range(num_new):
                self._decode(batch)
                for row, new in enumerate(tokens):
                    new.append(int(self._logits(last[row]).argmax()))
                batch.n_tokens = len(prompts)
                for row, new in enumerate(tokens):
                    self._put(batch, row, new[-1], len(prompts[0]) + step, row, True)
                last = list(range(len(prompts)))
            return tokens

        return run

    def nats(self, windows: Tokens) -> float:
        """One pass a window."""
        total = 0.0
        for window in windows:
            batch = self._batch(1, len(window), [window])
            for index in range(len(window)):
                batch.logits[index] = 1
            self._decode(batch)
            for index, token in enumerate(window[1:]):
                row = self._logits(index).astype("float64")
                total += float(self.np.log(self.np.exp(row - row.max()).sum()) + row.max())
                total -= float(row[token])
        return total

    def _batch(self, num_sequences: int, length: int, prompts: Tokens) -> Any:
        shape = (num_sequences, -(-length // 256) * 256)
        library = self.library
        if shape != self.shape:
            if self.context is not None:
                library.llama_free(self.context)
            settings = library.llama_context_default_params()
            settings.n_ctx = shape[0] * shape[1]
            settings.n_seq_max = num_sequences
            settings.n_batch = max(2048, sum(map(len, prompts)))
            settings.n_threads = settings.n_threads_batch = self.threads
            self.context = library.llama_init_from_model(self.model, settings)
            self.batch = library.llama_batch_init(settings.n_batch, 0, 1)
            self.shape = shape
        library.llama_memory_clear(library.llama_get_memory(self.context), False)
        index = 0
        for row, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                ends = position == len(prompt) - 1
                self._put(self.batch, index, token, position, row, ends)
                index += 1
        self.batch.n_tokens = index
        return self.batch

    def _put(
        self, batch: Any, index: int, token: int, position: int, sequence: int, wanted: bool
    ) -> None:
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence
        batch.logits[index] = int(wanted)

    def _decode(self, batch: Any) -> None:
        if self.library.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def _logits(self, index: int) -> Any:
        row = self.library.llama_get_logits_ith(self.context, index)
        return self.np.ctypeslib.as_array(row, shape=(self.num_ids,))

    def _lookup(self, prompt: list[int], num_new: int) -> Callable[[], Tokens]:
        """The binding's own loop, which alone has prompt lookup."""
        if self.looking is None:
            drafts: Any = import_module("llama_cpp.llama_speculative")
            self.looking = self.library.Llama(
                self.weights,
                n_ctx=1024,
                n_threads=self.threads,
                n_threads_batch=self.threads,
                logits_all=True,
                verbose=False,
                draft_model=drafts.LlamaPromptLookupDecoding(num_pred_tokens=_LOOKUP_LENGTH),
            )
        self.looking.reset()

        def run() -> Tokens:
            made: list[int] = []
            for token in self.looking.generate(prompt, temp=0.0, repeat_penalty=1.0):
                made.append(int(token))
                if len(made) == num_new:
                    break
            return [made]

        return run


class OpenVino:
    """OpenVINO GenAI, on what it made of the GGUF file."""

    def __init__(self, weights: str, kind: str, threads: int) -> None:
        self.library: Any = import_module("openvino_genai")
        self.tensor: Any = import_module("openvino").Tensor
        self.np: Any = import_module("numpy")
        self.weights, self.settings = weights, {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = self.library.LLMPipeline(weights, "CPU", **self.settings)
        self.looking: Any = None

    def prepare(self, prompts: Tokens, num_new: int, lookup: bool) -> Callable[[], Tokens]:
        """Prompts of one length."""
        config = self.library.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_new, True, False
        pipeline = self.pipeline
        if lookup:
            if self.looking is None:
                self.looking = self.library.LLMPipeline(
                    self.weights, "CPU", prompt_lookup=True, **self.settings
                )
            config.num_assistant_tokens, config.max_ngram_size = _LOOKUP_LENGTH, 3
            pipeline = self.looking
        ids = self.np.array(prompts, dtype="int64")
        inputs = self.library.TokenizedInputs(self.tensor(ids), self.tensor(self.np.ones_like(ids)))

        def run() -> Tokens:
            return [list(map(int, row)) for row in pipeline.generate(inputs, config).tokens]

        return run

    def nats(self, windows: Tokens) -> float:
        """One pass a window of the same network, outside the pipeline."""
        library: Any = import_module("openvino")
        compiled = library.Core().compile_model(
            str(Path(self.weights) / "openvino_model.xml"), "CPU", self.settings
        )
        names = {name for port in compiled.inputs for name in port.get_names()}
        total = 0.0
        for window in windows:
            request = compiled.create_infer_request()
            ids = self.np.array([window], dtype="int64")
            given = {
                "input_ids": ids,
                "attention_mask": self.np.ones_like(ids),
                "position_ids": self.np.arange(len(window), dtype="int64")[None],
                "beam_idx": self.np.zeros(1, dtype="int32"),
            }
            request.infer({name: value for name, value in given.items() if name in names})
            logits = request.get_output_tensor(0).data[0, :-1].astype("float64")
            top = logits.max(axis=-1)
            sums = self.np.log(self.np.exp(logits - top[:, None]).sum(axis=-1)) + top
            total += float((sums - logits[self.np.arange(len(window) - 1), window[1:]]).sum())
        return total


class CTranslate2:
    """CTranslate2."""

    def __init__(self, weights: str, kind: str, threads: int) -> None:
        library: Any = import_module("ctranslate2")
        self.generator = library.Generator(
            weights, device="cpu", compute_type=kind, intra_threads=threads
        )
        self.words: list[str] = json.loads((Path(weights) / "vocabulary.json").read_text("utf-8"))

    def prepare(self, prompts: Tokens, num_new: int, lookup: bool) -> Callable[[], Tokens]:
        """It takes tokens by their texts."""
        texts = self._texts(prompts)

        def run() -> Tokens:
            answers = self.generator.generate_batch(
                texts,
                max_length=num_new,
                end_token=[],
                sampling_topk=1,
                include_prompt_in_result=False,
            )
            return [list(answer.sequences_ids[0]) for answer in answers]

        return run

    def nats(self, windows: Tokens) -> float:
        """It scores by itself."""
        return -float(
            sum(sum(found.log_probs) for found in self.generator.score_batch(self._texts(windows)))
        )

    def _texts(self, rows: Tokens) -> list[list[str]]:
        return [[self.words[token] for token in row] for row in rows]


ENGINES: dict[str, Callable[[str, str, int], Opened]] = {
    "anyorder": Anyorder,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
}


def answer(engine: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Do what one line asks."""
    what = call.pop("do")
    if what == "generate":
        run = engine.prepare(call["prompts"], call["num_new"], call["lookup"])
        began = time.perf_counter()
        tokens = run()
        seconds = time.perf_counter() - began
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        return {"tokens": tokens, "seconds": seconds, "peak_mb": peak_mb}
    if what == "likelihood":
        return {"nats": engine.nats(call["windows"])}
    return {"found": getattr(engine, what)(**call)}


def main(engine: str, weights: str, kind: str, threads: str) -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened = ENGINES[engine](weights, kind, int(threads))
    for line in sys.stdin:
        answers.write(json.dumps(answer(opened, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
