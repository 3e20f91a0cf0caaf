"""Proof of exactness: what acceptance rules sample, against what they should.

A tiny random model over seven tokens; the joint distribution of the first three new tokens is
enumerated with NumPy alone, under temperature, top-p and penalties, and compared with what the
engine samples through `speculative`, one request a seed:

    python -m benchmarks.exactness --seeds 20000

A line per acceptance rule and way of drafting: the chi-square test's p-value, and the total
variation distance beside that of an exact sample of the same size. `typical` is there to be seen to
differ. The drafts are bad on purpose, so that rejections matter as much as acceptances.

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from anyorder.core import lookup
from anyorder.core.attention import Tree
from anyorder.core.batch import AttentionGroup, PackedBatch
from anyorder.core.drafter import Draft, Drafter, DraftSession, Proposing
from anyorder.core.forward import (
    Outputs,
    forward,
)
from anyorder.core.method import Abilities, Context
from anyorder.core.options import build
from anyorder.core.request import Request
from anyorder.core.sequence import Sequence
from anyorder.engine.engine import Engine
from anyorder.model.config import LayerConfig, ModelConfig, Rope
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer
from anyorder.sampling.draws import draw, uniform

VOCABULARY = 7
NUM_TOKENS = 3
"""Whose joint distribution is looked at."""
PROMPT = (3, 1, 4, 1, 5)
CONTROLS: dict[str, Any] = {
    "temperature": 0.9,
    "top_p": 0.9,
    "repetition_penalty": 1.2,
    "presence_penalty": 1.0,
}
Joint = Mapping[tuple[int, ...], float]


# -------------------------------------------------------------------------------- models and truth
@functools.cache
def model(seed: int) -> LoadedModel:
    """A random model; one seed is the target, another one drafts."""
    layer = LayerConfig(rope=Rope(width=8), attention_scale=8**-0.5)
    config = ModelConfig(
        architecture="llama",
        vocabulary_size=VOCABULARY,
        width=16,
        context_length=64,
        layers=(layer, layer),
        num_heads=2,
        num_kv_heads=1,
        head_width=8,
        mlp_width=24,
        activation="silu",
        gated=True,
        norm="rms",
        norm_epsilon=1e-5,
    )
    network = Transformer.random(config, seed=seed, spread=0.3, dtype=torch.float64)
    abilities = Abilities(
        name=f"tiny{seed}", vocabulary_size=VOCABULARY, context_length=64, num_layers=2
    )
    return LoadedModel(network=network, abilities=abilities, tokenizer=None)


def logits(tokens: Seq[int]) -> NDArray[np.float64]:
    """The target's at the last of these tokens: one dense pass, no cache, no engine."""
    network = model(0).network
    positions = torch.arange(len(tokens))
    group = AttentionGroup(
        first_row=0,
        num_requests=1,
        num_queries=len(tokens),
        pages_RP=None,
        query_positions_RQ=positions[None],
        key_positions_RK=positions[None],
        visible_RQK=None,
    )
    batch = PackedBatch(
        tokens_N=torch.tensor(tokens), positions_N=positions, slots_N=None, groups=(group,)
    )
    return network.logits(network.hidden(batch, None)[-1:])[0].double().numpy()


def processed(text: Seq[int], new: Seq[int]) -> NDArray[np.float64]:
    """The distribution of the next token, from the definitions of the controls."""
    scores_V = logits([*text, *new])
    for token in {*text, *new}:
        penalty = CONTROLS["repetition_penalty"]
        scores_V[token] *= penalty if scores_V[token] < 0 else 1 / penalty
    for token in set(new):
        scores_V[token] -= CONTROLS["presence_penalty"]
    weights_V = np.exp(scores_V / CONTROLS["temperature"])
    weights_V /= weights_V.sum()
    order = np.argsort(-weights_V)
    before = np.cumsum(weights_V[order]) - weights_V[order]
    weights_V[order[before >= CONTROLS["top_p"]]] = 0.0  # the nucleus: fewest that reach top-p
    return weights_V / weights_V.sum()


@functools.cache
def exact() -> Joint:
    """Probabilities of all continuations of NUM_TOKENS tokens."""
    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        joint = {
            (*new, token): chance * float(step)
            for new, chance in joint.items()
            for token, step in enumerate(processed(PROMPT, new) if chance else np.zeros(VOCABULARY))
        }
    return joint


# ------------------------------------------------------------------------------------- bad drafters
def table() -> NDArray[np.float64]:
    """What drawn proposals are drawn from, by the token before: some likely, some impossible."""
    weights_VV = np.random.default_rng(0).dirichlet(np.full(VOCABULARY, 0.7), VOCABULARY)
    weights_VV[:, 2] = 0.0
    return weights_VV / weights_VV.sum(1, keepdims=True)


TABLE = table()


@dataclass(frozen=True, kw_only=True)
class Shaped(Drafter):
    """A tree whose every node has so many children, level by level, and not always all levels."""

    branches: tuple[int, ...] = (1, 1)

    def num_tokens(self, limit: int) -> int:
        return sum(np.cumprod(self.branches[:limit]).tolist())

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return Shaping(self, context, coupled)

    def children(
        self, context: Context, path: Seq[int], count: int
    ) -> tuple[list[int], list[NDArray[np.float64] | None]]:
        """Tokens that may follow `path`, and what they were drawn from."""
        raise NotImplementedError

    def depth(self, text: Seq[int], limit: int) -> int:
        """Levels of the next draft: all after odd tokens, fewer after even ones."""
        return min(limit, len(self.branches) - (text[-1] % 2 == 0))


class Shaping:
    """Builds the tree."""

    def __init__(self, options: Shaped, context: Context, coupled: bool) -> None:
        self.options, self.context, self.coupled = options, context, coupled

    def expects(self) -> int:
        """See DraftSession."""
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        """See DraftSession."""
        tokens: list[int] = []
        parents: list[int] = []
        proposals: list[Any] = []
        level: list[tuple[int, list[int]]] = [(-1, list(text))]
        for count in self.options.branches[: self.options.depth(text, limit)]:
            grown = []
            for parent, path in level:
                found, drawn = self.options.children(self.context, path, count)
                for token in found:
                    grown.append((len(tokens), [*path, token]))
                    tokens.append(token)
                    parents.append(parent)
                proposals += drawn
            level = grown
        if all(proposal is None for proposal in proposals):
            proposals = []
        is_chain = max(self.options.branches) == 1
        return Draft(tokens=tokens, parents=None if is_chain else parents, proposals=proposals)
        yield  # a generator that asks for no passes

    def observe(self, text: Seq[int], *, features: object, heads: object) -> None:
        """See DraftSession."""

    def close(self) -> None:
        """See DraftSession."""


@dataclass(frozen=True, kw_only=True)
class Drawn(Shaped):
    """Independent draws from a fixed table."""

    draws: ClassVar[bool] = True

    def children(
        self, context: Context, path: Seq[int], count: int
    ) -> tuple[list[int], list[NDArray[np.float64] | None]]:
        """See Shaped."""
        proposal_V = TABLE[path[-1]]
        key = len(path), sum(token * VOCABULARY**i for i, token in enumerate(path[-3:]))
        tokens = [
            draw(proposal_V, uniform(context.request.seed, 77, *key, i)) for i in range(count)
        ]
        return tokens, [proposal_V] * count


@dataclass(frozen=True, kw_only=True)
class Chosen(Shaped):
    """Fixed guesses, nothing drawn; of several the first is given twice."""

    draws: ClassVar[bool] = True  # so that the ratio rule is used as it is

    def children(
        self, context: Context, path: Seq[int], count: int
    ) -> tuple[list[int], list[NDArray[np.float64] | None]]:
        """See Shaped."""
        guesses = np.argsort(-TABLE[path[-1]]).tolist()
        return [guesses[0], *guesses][:count], [None] * count


@dataclass(frozen=True, kw_only=True)
class Model(Shaped):
    """Another model: a chain that may be coupled, or several draws after every node."""

    draws: ClassVar[bool] = True

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        return None if "draft" in models else "a draft model"

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return Modelling(self, context, coupled)


class Modelling(Shaping):
    """Asks the model, level by level."""

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        """See DraftSession. The tree so far is run anew for every level."""
        tokens: list[int] = []
        parents: list[int] = []
        proposals: list[Any] = []
        level = [-1]
        with self.context.sequence("draft") as sequence:
            for count in self.options.branches[: self.options.depth(text, limit)]:
                outputs = Outputs(logprob=False, token=self.coupled)
                if not self.coupled:
                    outputs = Outputs(token=False, logprob=False, draws=count, distribution=True)
                shift = len(text)
                above = (parent + shift if parent >= 0 else shift - 1 for parent in parents)
                result = yield from forward(
                    sequence,
                    [*text, *tokens],
                    0,
                    attention=Tree(parents=(*range(-1, shift - 1), *above)),
                    rows=[shift + node for node in level],
                    outputs=outputs,
                    stream="target" if self.coupled else None,
                )
                first = len(tokens)
                for row, parent in enumerate(level):
                    found = [result.tokens[row]] if self.coupled else result.draws[row]
                    tokens += found
                    parents += [parent] * len(found)
                    if not self.coupled:
                        proposals += [result.distributions[row]] * len(found)
                level = list(range(first, len(tokens)))
        is_chain = max(self.options.branches) == 1
        return Draft(tokens=tokens, parents=None if is_chain else parents, proposals=proposals)


# ------------------------------------------------------------------------------------ the test
@dataclass(frozen=True, kw_only=True)
class Case:
    """One acceptance rule with one way of drafting."""

    rule: str
    draft: str
    drafter: Drafter | None
    """None: plain decoding."""
    is_exact: bool = True


def shipped(name: str, **options: object) -> Drafter:
    """A drafter of the package."""
    drafter: Drafter = build(lookup.find("drafters", name, kind="drafter"), options)
    return drafter


CASES = (
    Case(rule="plain", draft="none", drafter=None),
    Case(rule="match", draft="chain, chosen", drafter=Chosen(branches=(1, 1))),
    Case(rule="match", draft="tree, chosen", drafter=Chosen(branches=(4, 3))),
    Case(rule="match", draft="chain, draft model, coupled", drafter=Model(branches=(1, 1))),
    Case(rule="ratio", draft="chain, drawn", drafter=Drawn(branches=(1, 1))),
    Case(rule="ratio", draft="chain, draft model", drafter=Model(branches=(1, 1))),
    Case(rule="ratio", draft="chain, chosen", drafter=Chosen(branches=(1, 1))),
    Case(rule="ratio", draft="tree, chosen", drafter=Chosen(branches=(4, 3))),
    Case(rule="ratio", draft="tree, i.i.d.", drafter=Drawn(branches=(3, 2))),
    Case(rule="ratio", draft="tree, i.i.d., draft model", drafter=Model(branches=(3, 2))),
    Case(rule="match", draft="draft_model", drafter=shipped("draft_model")),
    Case(rule="match", draft="draft_model, 3,2", drafter=shipped("draft_model", branches="3,2")),
    Case(rule="match", draft="early_exit", drafter=shipped("early_exit", layers=1)),
    Case(rule="ratio", draft="draft_model", drafter=shipped("draft_model")),
    Case(rule="ratio", draft="draft_model, 3,2", drafter=shipped("draft_model", branches="3,2")),
    Case(rule="ratio", draft="early_exit", drafter=shipped("early_exit", layers=1)),
    Case(rule="typical", draft="chain, drawn", drafter=Drawn(branches=(1, 1)), is_exact=False),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one case sampled, beside what it should have."""

    case: Case
    num_seeds: int
    p_value: float
    """Of the chi-square test: how often an exact sample would lie this far off."""
    total_variation: float
    expected_total_variation: float
    """An exact sample's of this size, mean over simulated ones."""
    accepted_length: float | None
    """Tokens made final per check."""
    says_exact: bool
    """Report.exact"""
    seconds: float
    texts: list[tuple[int, ...]]
    """All that was sampled, by seed."""

    def line(self) -> str:
        """For people."""
        accepted = "-" if self.accepted_length is None else f"{self.accepted_length:.2f}"
        return (
            f"{self.case.rule:8} {self.case.draft:28} {self.num_seeds:6} {self.p_value:9.2g} "
            f"{self.total_variation:8.4f} {self.expected_total_variation:9.4f} {accepted:>8} "
            f"{'exact' if self.says_exact else 'inexact':>8} {self.seconds:8.0f}"
        )


HEADER = (
    f"{'rule':8} {'draft':28} {'seeds':>6} {'p-value':>9} {'TV':>8} {'exact TV':>9} "
    f"{'accepted':>8} {'reported':>8} {'seconds':>8}"
)


def sample(case: Case, num_seeds: int, first_seed: int = 0) -> Finding:
    """Run `num_seeds` requests that differ in their seed alone."""
    engine = Engine(
        model(0), draft=model(1), cache_tokens=32768, max_batch_tokens=8192, max_running=512
    )
    options = {
        "drafter": case.drafter,
        "length": 2,
        "adaptive": False,
        "acceptance": case.rule,
    }
    texts: list[tuple[int, ...]] = []
    lengths: list[float] = []
    says_exact = True
    started = time.perf_counter()
    for start in range(0, num_seeds, 2048):
        requests = [
            Request(
                prompt=PROMPT,
                method="autoregressive" if case.drafter is None else "speculative",
                # A check after the first token may then accept both others.
                max_new_tokens=NUM_TOKENS + 1,
                seed=first_seed + seed,
                options={} if case.drafter is None else options,
                **CONTROLS,
            )
            for seed in range(start, min(start + 2048, num_seeds))
        ]
        for completion in engine.generate(requests):
            texts.append(tuple(completion.tokens))
            says_exact = completion.report.exact
            if completion.report.mean_accepted_length is not None:
                lengths.append(completion.report.mean_accepted_length)
    expected = np.array(list(exact().values()))
    counts = Counter(text[:NUM_TOKENS] for text in texts)
    observed = np.array([counts[new] for new in exact()], dtype=float)
    return Finding(
        case=case,
        num_seeds=num_seeds,
        p_value=chi_square(observed, expected),
        total_variation=float(np.abs(observed / num_seeds - expected).sum() / 2),
        expected_total_variation=usual_variation(expected, num_seeds),
        accepted_length=float(np.mean(lengths)) if lengths else None,
        says_exact=says_exact,
        seconds=time.perf_counter() - started,
        texts=texts,
    )


def chi_square(observed: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Pearson's test; cells expected fewer than five times are taken together. 0 where something
    impossible happened."""
    if observed[expected == 0].any():
        return 0.0
    wanted = expected * observed.sum()
    often = wanted >= 5
    wanted = np.append(wanted[often], wanted[~often].sum())
    seen = np.append(observed[often], observed[~often].sum())
    if wanted[-1] < 5:  # too few even together: join them with a large cell
        wanted = np.append(wanted[:-2], wanted[-2:].sum())
        seen = np.append(seen[:-2], seen[-2:].sum())
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    half = torch.tensor([(len(wanted) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def usual_variation(expected: NDArray[np.float64], num_seeds: int) -> float:
    """Mean total variation distance of exact samples."""
    samples = np.random.default_rng(0).multinomial(num_seeds, expected / expected.sum(), 400)
    return float(np.abs(samples / num_seeds - expected).sum(1).mean() / 2)


def report(num_seeds: int, first_seed: int = 0) -> Iterator[str]:
    """The table, line by line."""
    yield HEADER
    for case in CASES:
        yield sample(case, num_seeds, first_seed).line()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20000, help="requests per line")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    possible = sum(chance > 0 for chance in exact().values())
    print(
        f"joint distribution of the first {NUM_TOKENS} tokens: {possible} of "
        f"{VOCABULARY**NUM_TOKENS} continuations possible; "
        + ", ".join(f"{name} {value}" for name, value in CONTROLS.items())
    )
    for line in report(options.seeds, options.first_seed):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
