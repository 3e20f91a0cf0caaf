"""Every decoding method: tokens per pass and tokens per second, alone and all in one batch.

A method runs on the first of some models that can do it. For each model with several methods, the
same requests are answered once method by method and once all together, in turns; since a request's
answer does not depend on what else runs, both must give the same tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

from anyorder.core.errors import AnyorderError, InvalidRequest
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.benchmarks.method_results import MethodResults, MethodSpeed, MixedSpeed
from anyorder.evaluation.benchmarks.rounds import Progress

NUM_NEW = 64
REQUESTS_EACH = 2
"""Of every method, in the mixed batch."""

Open = Callable[[str], Engine]


def measure(
    results: MethodResults,
    methods: Seq[str],
    models: Seq[str],
    open_model: Open,
    texts: Seq[str],
    *,
    rounds: int,
    progress: Progress,
) -> None:
    """Add `rounds` rounds for each of the methods that some of the models can do."""
    left = {name: "none of the models at hand can do it" for name in methods}
    for model in models:
        if not left:
            break
        progress(f"opening {model}", 0, 1)
        try:
            engine = open_model(model)
        except AnyorderError:
            if model == models[0]:
                raise
            continue  # a drafter or a classifier, which writes no text by itself
        try:
            requests: dict[str, list[Request]] = {}
            for name in [name for name in methods if name in left]:
                if name not in engine.usable_methods:
                    continue
                try:
                    requests[name] = _requests(engine, name, texts)
                    del left[name]
                except AnyorderError as error:
                    left[name] = str(error)
            for number in range(rounds):
                progress(f"methods on {model}", number, rounds)
                _round(results, model, engine, requests)
            progress(f"methods on {model}", rounds, rounds)
        finally:
            engine.close()
    results.left_out = left


def _requests(engine: Engine, name: str, texts: Seq[str]) -> list[Request]:
    """A method's requests, which it has answered once; beyond end tokens where it can."""
    plain = [
        Request(prompt=text, method=name, max_new_tokens=NUM_NEW, prefix_cache=False)
        for text in texts[:REQUESTS_EACH]
    ]
    endless = [dataclasses.replace(request, ignore_end=True) for request in plain]
    try:
        engine.generate(endless[:1])
        return endless
    except InvalidRequest:
        engine.generate(plain[:1])
        return plain


def _round(
    results: MethodResults, model: str, engine: Engine, requests: Mapping[str, list[Request]]
) -> None:
    """Each method on one stream; then each method's requests; then all requests together."""
    for name, own in requests.items():
        began = time.perf_counter()
        answer = engine.generate(own[:1])[0]
        rate = len(answer.tokens) / (time.perf_counter() - began)
        entry = MethodSpeed(model=model, tokens_per_pass=answer.report.tokens_per_pass)
        results.alone.setdefault(name, entry).tokens_per_second.append(rate)
    if len(requests) < 2:
        return
    batch = results.batches.setdefault(model, MixedSpeed(methods=list(requests)))
    apart: dict[str, list[list[int]]] = {}
    seconds, num_run = 0.0, 0
    for name, own in requests.items():
        began = time.perf_counter()
        answers = engine.generate(own)
        taken = time.perf_counter() - began
        apart[name] = [answer.tokens for answer in answers]
        batch.seconds.setdefault(name, []).append(taken)
        seconds += taken
        num_run += sum(answer.report.num_run_tokens for answer in answers)
    num_new = sum(len(tokens) for found in apart.values() for tokens in found)
    batch.one_by_one.append(num_new / seconds)
    batch.run_tokens = num_run / num_new
    began = time.perf_counter()
    everybody = engine.generate([request for own in requests.values() for request in own])
    seconds = time.perf_counter() - began
    together = iter(everybody)
    for name, found in apart.items():
        if [next(together).tokens for _ in found] != found and name not in batch.differing:
            batch.differing.append(name)
    batch.mixed.append(sum(len(answer.tokens) for answer in everybody) / seconds)
