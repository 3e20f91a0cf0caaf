"""The engine: submit requests, tick, collect. Everything else is a loop around these three.

A tick: the scheduler admits and selects, one pass per model role runs, every run whose requests are
answered is sent its results. Methods are reached by name only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch

from anyorder.core.errors import AnyorderError, InvalidRequest, RequestFailed, UserError
from anyorder.core.method import Abilities
from anyorder.core.request import Completion, Event, Prompt, Request, Score
from anyorder.engine.admission import Admission
from anyorder.engine.costs import PassCosts
from anyorder.engine.handle import Handle, Prepared
from anyorder.engine.memory import Memory
from anyorder.engine.roles import Role, open_role
from anyorder.engine.run import Run
from anyorder.engine.runner import Question, answer, decide, run_pass, settle
from anyorder.engine.scheduler import Piece, Scheduler
from anyorder.sampling.canvas_guide import CanvasGuide
from anyorder.sampling.guide import GuideState

if TYPE_CHECKING:
    from anyorder.model.loaded import LoadedModel, Progress


class Engine:
    """Generates with one target model (and helpers in other roles) by any decoding method.

    Thread-safe: several threads may generate at once and share passes.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        draft: str | Path | LoadedModel | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        quantize: str | None = None,
        cache_tokens: int | None = None,
        cache_dtype: str | None = None,
        max_batch_tokens: int = 512,
        max_running: int = 256,
        overlap: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Load a model.

        `model` is a catalog name, a folder of safetensors, a .gguf file, a hub id, or a model that
        is loaded already; `draft` is a second one with the same vocabulary, for methods that need
        it, or a folder of Medusa heads, of an EAGLE-3 or of a DFlash drafter for this model.
        `dtype` is float32 on a CPU unless told; `quantize` "int8" or "int4" for weights of so many
        bits, on a CPU; `cache_tokens` the capacity of the KV pool in tokens; `cache_dtype` "int8"
        for keys and values of 8 bits; `max_batch_tokens` the most tokens of one pass; `max_running`
        the most concurrent runs. `overlap`, for GPUs: the answers of one half of the runs are
        worked on while the pass of the other half is computed. `progress` is told of downloads
        and loading.
        """
        from anyorder.model.drafters.medusa import NetworkWithHeads
        from anyorder.model.encoder_decoder import Encoder, EncoderDecoder
        from anyorder.model.loaded import LoadedModel, load, load_draft

        if not isinstance(model, LoadedModel):
            model = load(model, dtype=dtype, device=device, quantize=quantize, progress=progress)
        loaded = {"target": model}
        if isinstance(draft, LoadedModel):
            loaded["draft"] = draft
        elif draft is not None:
            loaded |= load_draft(
                draft, model, dtype=dtype, device=device, quantize=quantize, progress=progress
            )
        _check_vocabularies(loaded)
        self.roles = {
            name: open_role(
                name,
                item.network,
                item.abilities,
                num_cache_tokens=cache_tokens,
                cache_dtype=cache_dtype,
            )
            for name, item in loaded.items()
        }
        target = loaded["target"]
        network = target.network
        if isinstance(network, NetworkWithHeads):
            network = network.base
        if isinstance(network, EncoderDecoder):
            encoder = dataclasses.replace(target.abilities, kind="encoder")
            self.roles["encoder"] = open_role(
                "encoder",
                Encoder(network),
                encoder,
                num_cache_tokens=cache_tokens,
                cache_dtype=cache_dtype,
            )
        self.tokenizer = target.tokenizer
        self._admission = Admission(roles=self.roles, tokenizer=self.tokenizer)
        self._scheduler = Scheduler(
            {name: role.store for name, role in self.roles.items()},
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            on_failure=self._fail,
        )
        self._shift = 0 if overlap else None
        """Which half of the runs has its turn; None: all have, in each tick."""
        self._costs = PassCosts()
        self._memory = Memory()
        self._runs: dict[Handle, list[Run]] = {}
        self._num_arrivals = 0
        self._lock = threading.RLock()

    # -------------------------------------------------------------------------------- conveniences
    @overload
    def generate(self, prompt: Seq[Request]) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: Prompt | Request,
        *,
        method: str = ...,
        max_new_tokens: int | None = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int = ...,
        n: int = ...,
        stop: Seq[str] = ...,
        options: Mapping[str, object] | None = ...,
    ) -> Completion: ...

    def generate(
        self,
        prompt: Prompt | Request | Seq[Request],
        *,
        method: str = "autoregressive",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        n: int = 1,
        stop: Seq[str] = (),
        options: Mapping[str, object] | None = None,
    ) -> Completion | list[Completion]:
        """Generate for one prompt, one `Request`, or a list of them (which share their passes).

        The keywords are the controls most used; every control is a field of `Request`, and with
        requests the keywords must be left alone. Raises a UserError before anything runs if a
        request cannot be served, and the first failure after everything has run.
        """
        controls = Request(
            prompt="",
            method=method,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            n=n,
            stop=stop,
            options=options or {},
        )
        requests, is_list = _requests(prompt, controls)
        handles = self.submit_all(requests)
        try:
            while not all(handle.done for handle in handles):
                self.tick()
        finally:
            for handle in handles:
                self.abort(handle)
        completions = [handle.result() for handle in handles]
        return completions if is_list else completions[0]

    def stream(
        self,
        prompt: Prompt | Request,
        *,
        method: str = "autoregressive",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        n: int = 1,
        stop: Seq[str] = (),
        options: Mapping[str, object] | None = None,
    ) -> Iterator[Event]:
        """Like `generate` for one request, as events; closing the iterator aborts the request.

        The texts of a choice's events add up to its text. The last event carries the completion.
        """
        controls = Request(
            prompt="",
            method=method,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            n=n,
            stop=stop,
            options=options or {},
        )
        requests, is_list = _requests(prompt, controls)
        if is_list:
            raise InvalidRequest("stream takes one request; submit several and tick instead.")
        return self._events(self.submit(requests[0]))

    def _events(self, handle: Handle) -> Iterator[Event]:
        try:
            while True:
                while handle.events:
                    yield handle.events.popleft()
                if handle.done:
                    handle.result()  # raises what made it fail
                    return
                self.tick()
        finally:
            self.abort(handle)

    def score(self, text: Prompt) -> Score:
        """Chain-rule log-probabilities of a text: one per token after the first."""
        completion = self.generate(Request(prompt=text, max_new_tokens=0, prompt_logprobs=True))
        assert isinstance(completion, Completion)
        return Score(
            tokens=completion.prompt_tokens,
            logprobs=completion.prompt_logprobs or [],
            report=completion.report,
        )

    @property
    def abilities(self) -> Abilities:
        """What the target model can do."""
        return self.roles["target"].abilities

    @property
    def usable_methods(self) -> list[str]:
        """Names of the methods that the engine's models support."""
        return self._admission.usable_methods()

    # ------------------------------------------------------------------------------- submit, tick
    def submit(self, request: Request) -> Handle:
        """Queue a request; UserError if it cannot be served. Call `tick` until it is done."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Seq[Request]) -> list[Handle]:
        """Queue several requests, or none of them if one cannot be served."""
        prepared = [self._admission.prepare(request) for request in requests]
        guides = [self._admission.guides(item) for item in prepared]
        with self._lock:
            return [self._queue(item, own) for item, own in zip(prepared, guides, strict=True)]

    def _queue(self, prepared: Prepared, guides: Seq[GuideState | CanvasGuide | None]) -> Handle:
        rules = [self._admission.rules(prepared, guide) for guide in guides]
        handle = Handle(prepared, rules)
        self._runs[handle] = []
        for choice, guide in enumerate(guides):
            self._num_arrivals += 1
            run = Run(
                handle,
                choice=choice,
                arrival=self._num_arrivals,
                abilities=self.abilities,
                roles=self.roles,
                rules=rules[choice],
                guide=guide,
                costs=self._costs,
                memory=self._memory,
            )
            self._runs[handle].append(run)
            self._scheduler.add(run)
        return handle

    def abort(self, handle: Handle) -> None:
        """Drop a request and free its pages. Harmless when it is done already."""
        with self._lock:
            if not handle.done:
                self._end(handle, RequestFailed("the request was aborted"))

    def close(self) -> None:
        """Abort everything that still runs."""
        with self._lock:
            for handle in list(self._runs):
                self.abort(handle)

    def tick(self) -> bool:
        """One round of passes; False if there was nothing to do."""
        with self._lock, torch.inference_mode():
            if self._scheduler.is_idle:
                return False
            if self._shift is not None:
                self._shift = 1 - self._shift
            passes: dict[tuple[str, int | None], list[Piece]] = {}
            for piece in self._scheduler.select(self._shift):
                passes.setdefault((piece.job.sequence.role, piece.layers), []).append(piece)
            in_flight = {piece.job.run for pieces in passes.values() for piece in pieces}
            others = [run for run in self._scheduler.running if run not in in_flight]
            for (name, layers), pieces in passes.items():
                started = time.perf_counter()
                questions = self._run_pass(self.roles[name], pieces)
                if self._shift is not None:  # a GPU may still be computing
                    self._serve_all(others)
                    others = []
                self._answer(self.roles[name], questions)
                num_tokens: Counter[Hashable] = Counter()
                for piece in pieces:
                    num_tokens[piece.job.run] += len(piece.tokens)
                self._costs.record(name, layers, num_tokens, time.perf_counter() - started)
            if self._shift is None or not passes:
                self._serve_all(list(self._scheduler.running))
            return True

    # ------------------------------------------------------------------------------ inside a tick
    def _run_pass(self, role: Role, pieces: list[Piece]) -> list[Question]:
        layers = pieces[0].layers
        name = role.name if layers is None else f"{role.name}[:{layers}]"
        for handle in {piece.job.run.handle for piece in pieces}:
            handle.num_passes += 1
            handle.passes_by_role[name] += 1
        for piece in pieces:
            piece.job.run.handle.num_run_tokens += len(piece.tokens)
        questions: list[Question] = []
        try:
            questions = run_pass(role, pieces)
        except Exception:
            # Somebody in the pass is bad. Run everybody alone, so that only the culprit fails.
            for run in dict.fromkeys(piece.job.run for piece in pieces):
                try:
                    questions += run_pass(role, [p for p in pieces if p.job.run is run])
                except Exception as error:
                    self._fail(run, error)
        return questions

    def _answer(self, role: Role, questions: list[Question]) -> None:
        try:
            answer(role, questions)
        except Exception:
            for run in dict.fromkeys(question.job.run for question in questions):
                try:
                    answer(role, [q for q in questions if q.job.run is run])
                except Exception as error:
                    self._fail(run, error)

    def _serve_all(self, runs: list[Run]) -> None:
        with contextlib.suppress(Exception):  # whoever is bad fails below, alone
            decide(job for run in runs for job in run.jobs)
        for run in runs:
            if run in self._scheduler.running:  # one failure may have ended several
                self._serve(run)

    def _serve(self, run: Run) -> None:
        """Answer a run whose jobs are complete and see what it wants next."""
        try:
            settle(run.jobs, self.roles)
            if run.jobs and all(job.is_complete for job in run.jobs):
                run.advance()
            if run.is_over:
                run.check_texts()
        except Exception as error:
            self._fail(run, error)
            return
        if run.is_over:
            self._scheduler.remove(run)
            run.close()
            if all(other.is_over for other in self._runs[run.handle]):
                run.handle.finish()
                del self._runs[run.handle]

    def _fail(self, run: Run, error: Exception) -> None:
        if not isinstance(error, AnyorderError):
            failure = RequestFailed(f"the request failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            error = failure
        self._end(run.handle, error)

    def _end(self, handle: Handle, error: Exception) -> None:
        """End a request by an error: its own failure or an abort."""
        if handle.done:
            return
        handle.error = error
        for run in self._runs.pop(handle):
            self._scheduler.remove(run)
            run.close()


def _check_vocabularies(loaded: Mapping[str, LoadedModel]) -> None:
    """UserError unless every model means the same tokens as the target."""
    target = loaded["target"]
    for role, item in loaded.items():
        if role != "target" and item.abilities.source_length:
            raise UserError(
                f"the {role} model {item.abilities.name} is an encoder-decoder, which cannot stand "
                "beside another model; give a decoder."
            )
        sizes = [model.abilities.vocabulary_size for model in (item, target)]
        names = [model.abilities.name for model in (item, target)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"the {role} model {names[0]} has {sizes[0]} tokens and the target model "
                f"{names[1]} has {sizes[1]}; they must share a vocabulary."
            )
        if item.tokenizer is None or target.tokenizer in (None, item.tokenizer):
            continue
        token = item.tokenizer.differs(target.tokenizer)
        if token is not None:
            raise UserError(
                f"token {token} of the {role} model {names[0]} is not token {token} of the target "
                f"model {names[1]}; they must share a vocabulary."
            )


def _requests(
    prompt: Prompt | Request | Seq[Request], controls: Request
) -> tuple[list[Request], bool]:
    """The requests that a call means, and whether it was given a list of them."""
    if isinstance(prompt, Request):
        requests, is_list = [prompt], False
    elif not isinstance(prompt, str) and prompt and isinstance(prompt[0], Request):
        requests, is_list = [item for item in prompt if isinstance(item, Request)], True
    else:
        return [dataclasses.replace(controls, prompt=prompt)], False  # type: ignore[arg-type]
    if controls != Request(prompt=""):
        raise InvalidRequest("with requests, set the controls on the requests themselves.")
    if is_list and len(requests) != len(prompt):  # type: ignore[arg-type]
        raise InvalidRequest("a list of requests may hold nothing but requests.")
    return requests, is_list
