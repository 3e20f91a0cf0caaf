"""Every method tried with every feature, on tiny networks, and what came of it.

A feature is a function that uses it and looks at what it did: True, it is honoured; False, it does
not apply; a `UserError`, it was refused. Most run on a network that says the same everywhere, "a"
with probability 0.4, "b" 0.3, "c" 0.2 and "d" 0.1, so that what a control must do is known without
running anything. `scripts/generate_docs.py` writes the outcomes into docs/matrix.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from tests.methods.matrix_networks import WORDS, Kind, network_for, random, token

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine

LENGTH = 10
OPTIONS: dict[str, dict[str, object]] = {
    "gibbs": {"sweeps": 2, "burn_in": 1},
    "mask_predict": {"iterations": 4},
    "masked_diffusion": {"commit": "random"},
    "block_diffusion": {"commit": "random"},
    "outline": {"plan_length": 2},
    "uniform_diffusion": {"steps": 6},
}
"""Where the defaults take long, or take the likeliest draws alone."""
REVISING: dict[str, dict[str, object]] = {
    name: {"revise": "lowest", "steps": 4} for name in ("masked_diffusion", "block_diffusion")
} | {
    "outline": {
        "rounds": 1,
        "plan_lead": "1.",
        "plan_length": 16,
        "part_length": 2,
        "heading": "",
    },
    **{key: {"adaptive": False} for key in ("speculative", "jacobi", "lookahead")},
}
"""What makes a method take tokens back, where its defaults do not, or only if time allows."""
Outcome = bool | str
"""Honoured, not applicable, or the message of what refuses it."""


# ------------------------------------------------------------------------------------- one trial
@dataclass(frozen=True, kw_only=True)
class Trial:
    """A method, and networks to try it on."""

    method: str

    def engine(self, kind: Kind = "known", ends: Seq[int] = ()) -> Engine:
        """An engine over what the method runs on, whose texts end with these tokens."""
        model = network_for(self.method, kind)
        assert model is not None, f"no network here runs {self.method}"
        own = dataclasses.replace(model.abilities, end_tokens=frozenset(ends))
        draft = {} if own.patch_size else {"draft": random(1, spread=0.4)}
        return Engine(dataclasses.replace(model, abilities=own), cache_tokens=4096, **draft)

    def request(self, **fields: Any) -> Request:
        """A short text."""
        base = {"prompt": "abcacb", "method": self.method, "max_new_tokens": LENGTH}
        return Request(**{**base, "options": OPTIONS.get(self.method, {}), **fields})

    def generate(self, kind: Kind = "known", *, ends: Seq[int] = (), **fields: Any) -> Completion:
        """The answer of a fresh engine. What is refused is refused before anything runs."""
        engine = self.engine(kind, ends)
        handle = engine.submit(self.request(**fields))
        while not handle.done:
            engine.tick()
        return handle.result()

    @property
    def plain(self) -> Completion:
        """With nothing but defaults."""
        return _plain(self.method)

    def text(self, **fields: Any) -> str:
        """Its text alone."""
        return self.generate(**fields).text

    def drawn(self, **fields: Any) -> str:
        """A longer text drawn at temperature 1. What is refused is the control, if it can be."""
        engine = self.engine()
        engine.abort(engine.submit(self.request(**fields)))
        return self.text(**{"temperature": 1.0, "max_new_tokens": 16, "seed": 1, **fields})


@functools.cache
def _plain(method: str) -> Completion:
    return Trial(method=method).generate()


@functools.cache
def tried(method: str, feature: Callable[[Trial], bool]) -> Outcome:
    """What comes of it."""
    try:
        return feature(Trial(method=method))
    except UserError as error:
        return str(error)


# -------------------------------------------------------------------------------------- sampling
def temperature_and_seed(trial: Trial) -> bool:
    """`temperature`, `seed`"""
    first, other, again = (trial.drawn(seed=seed) for seed in (1, 2, 1))
    assert first == again != other
    return True


def top_k(trial: Trial) -> bool:
    """`top_k`"""
    assert set(trial.drawn(top_k=2)) == {"a", "b"}
    return True


def top_p(trial: Trial) -> bool:
    """`top_p`"""
    assert set(trial.drawn(top_p=0.6)) == {"a", "b"}
    return True


def min_p(trial: Trial) -> bool:
    """`min_p`"""
    assert set(trial.drawn(min_p=0.6)) == {"a", "b"}
    return True


def typical_p(trial: Trial) -> bool:
    """`typical_p`"""
    entropy = -sum(p * math.log(p) for p in WORDS.values())
    nearest = sorted(WORDS, key=lambda letter: abs(-math.log(WORDS[letter]) - entropy))
    assert set(trial.drawn(typical_p=0.6)) == set(nearest[:3]) and len(nearest) > 3
    return True


def repetition_penalty(trial: Trial) -> bool:
    """`repetition_penalty`"""
    # All letters of the prompt are dearer at once, so "d" is the only one that is new.
    assert "d" in trial.text(prompt="abc", repetition_penalty=9.0)
    return True


def presence_penalty(trial: Trial) -> bool:
    """`presence_penalty`"""
    assert trial.text(presence_penalty=9.0) != trial.plain.text == "a" * LENGTH
    return True


def frequency_penalty(trial: Trial) -> bool:
    """`frequency_penalty`"""
    assert trial.text(frequency_penalty=9.0) != trial.plain.text == "a" * LENGTH
    return True


def no_repeat_ngram(trial: Trial) -> bool:
    """`no_repeat_ngram`"""
    text = "abcacb" + trial.text(no_repeat_ngram=2, max_new_tokens=8)
    pairs = [text[at : at + 2] for at in range(len(text) - 1)]
    assert len(set(pairs)) == len(pairs) == 13
    return True


def logit_bias(trial: Trial) -> bool:
    """`logit_bias`"""
    assert trial.text(logit_bias={token("d"): 40.0}) == "d" * LENGTH
    return True


def bad_words(trial: Trial) -> bool:
    """`bad_words`"""
    text = trial.text(bad_words=["aa", "d"])
    assert "a" in text and "aa" not in text
    return True


# ------------------------------------------------------------------- where it ends, what it may be
def stop_strings(trial: Trial) -> bool:
    """`stop`"""
    free = trial.plain.text
    stop = free[3:5]
    found = trial.generate(stop=[stop])
    assert found.text == free[: free.index(stop)] and found.finish_reason == "stop"
    return True


def stop_tokens(trial: Trial) -> bool:
    """`stop_tokens`"""
    free = trial.plain.tokens
    found = trial.generate(stop_tokens=[free[3]])
    assert found.tokens == free[: free.index(free[3]) + 1] and found.finish_reason == "stop"
    return True


def min_new_tokens(trial: Trial) -> bool:
    """`min_new_tokens`"""
    end = token("a")
    found = trial.generate(ends=[end], min_new_tokens=6).tokens
    assert trial.generate(ends=[end]).tokens == [end]
    assert len(found) >= 6 and end not in found[:5]
    return True


def ignore_end(trial: Trial) -> bool:
    """`ignore_end`"""
    free = trial.plain.tokens
    assert len(trial.generate(ends=[free[3]]).tokens) <= 4
    assert trial.generate(ends=[free[3]], ignore_end=True).tokens == free
    return True


def guide(trial: Trial) -> bool:
    """`guide`"""
    assert re.fullmatch("b{2,4}c", trial.text(guide=Guide.regex("b{2,4}c")))
    return True


def infilling(trial: Trial) -> bool:
    """`canvas`"""
    text = trial.text(canvas="<|mask|>c<|mask:2|>d<|mask|>", max_new_tokens=None)
    assert text == "acaada"
    return True


# -------------------------------------------------------------------------------------- steering
def guidance(trial: Trial) -> bool:
    """`guidance_scale`"""
    plain = trial.generate("random").tokens
    steered = {"guidance_scale": 5.0, "negative_prompt": "dbca"}
    assert trial.generate("random", **steered).tokens != plain
    return True


def contrast(trial: Trial) -> bool:
    """`contrast_role`"""
    plain = trial.generate("random").tokens
    steered = {"guidance_scale": 5.0, "contrast_role": "draft"}
    assert trial.generate("random", **steered).tokens != plain
    return True


# ------------------------------------------------------------------------------ what is told of it
def choices(trial: Trial) -> bool:
    """`n`"""
    try:
        found = trial.generate(n=3, temperature=1.0)
    except InvalidRequest:  # searches draw nothing
        found = trial.generate(n=3)
    assert len({choice.text for choice in found.choices}) == 3
    return True


def scores(trial: Trial) -> bool:
    """ranked by `score`"""
    return trial.plain.choices[0].score is not None


def logprobs(trial: Trial) -> bool:
    """`logprobs`"""
    found = trial.generate(logprobs=2)
    best = [(token("a"), 0.4), (token("b"), 0.3)]
    assert all(abs(logprob - math.log(0.4)) < 1e-4 for logprob in found.logprobs)
    for entry in found.trace:
        pairs = list(zip(entry.alternatives, best, strict=True))
        assert all(mine[0] == its[0] and abs(mine[1] - its[1]) < 1e-4 for mine, its in pairs)
    return True


def prompt_logprobs(trial: Trial) -> bool:
    """`prompt_logprobs`"""
    told = trial.generate(prompt_logprobs=True).prompt_logprobs
    assert told is not None
    expected = [math.log(WORDS[letter]) for letter in "bcacb"]
    assert all(abs(mine - its) < 1e-4 for mine, its in zip(told, expected, strict=True))
    return True


def embedding(trial: Trial) -> bool:
    """`embedding`"""
    found = trial.generate("random", embedding="mean").embedding
    assert found is not None and len(found) == 32 and len(set(found)) > 1
    return True


def history(trial: Trial) -> bool:
    """`history`"""
    options = REVISING.get(trial.method, OPTIONS.get(trial.method, {}))
    return bool(trial.generate("random", history=True, options=options).choices[0].history)


def streaming(trial: Trial) -> bool:
    """streamed in pieces"""
    events = list(trial.engine("random").stream(trial.request()))
    return sum(bool(event.tokens) for event in events) > 1


# ------------------------------------------------------------------------------------- the engine
def prefix_cache(trial: Trial) -> bool:
    """prefix cache"""
    engine = trial.engine("random")
    request = trial.request(prompt="abcd" * 20, prefix_cache=True)
    first, second = engine.generate(request), engine.generate(request)
    assert isinstance(first, Completion) and isinstance(second, Completion)
    assert first.tokens == second.tokens
    return second.report.num_cached_tokens > 0


def preemption(trial: Trial) -> bool:
    """preemption"""
    free = trial.generate("random")
    engine = trial.engine("random")
    handle = engine.submit(trial.request())
    for _ in range(3):
        engine.tick()
        for run in list(engine._scheduler.running):
            engine._scheduler._preempt(run)
    while engine.tick():
        pass
    found = handle.result()
    assert found.tokens == free.tokens
    return found.report.num_preemptions > 0


def behind_an_encoder(trial: Trial) -> bool:
    """behind an encoder"""
    sources = ("abcd", "dddddddd", "bca", "cabcabdd")
    return len({trial.text(kind="encoder", prompt=source) for source in sources}) > 1


def label(feature: Callable[[Trial], bool]) -> str:
    """Its heading on the page."""
    return (feature.__doc__ or "").rstrip(".")


GROUPS: dict[str, list[Callable[[Trial], bool]]] = {
    "Sampling": [temperature_and_seed, top_k, top_p, min_p, typical_p, logit_bias, bad_words],
    "Repetition": [repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram],
    "Where the text ends, and what it may be": [
        stop_strings, stop_tokens, min_new_tokens, ignore_end, guide, infilling
    ],
    "Steering": [guidance, contrast],
    "The answer": [choices, scores, logprobs, prompt_logprobs, embedding, history, streaming],
    "The engine": [prefix_cache, preemption, behind_an_encoder],
}  # fmt: skip
METHODS = [name for name in lookup.names("methods") if network_for(name) is not None]
FEATURES = [feature for features in GROUPS.values() for feature in features]
PROPERTIES = {scores, history, streaming, prefix_cache, preemption}
"""What can fail to apply without being an error."""
