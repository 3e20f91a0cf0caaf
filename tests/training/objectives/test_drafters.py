"""Objectives of drafters: a training pass predicts what the drafter computes at inference.

Texts are drafted for by the engine, token by token from its caches, and run by the objective in one
pass; and every row of a pass is compared with a dense twin (tests/drafter_twins.py) that knows
nothing of either."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import drafter_twins as twins
from tests.drafter_folders import (
    BLOCK,
    MASK,
    read,
    write_dflash,
    write_eagle,
    write_medusa,
    write_target,
)
from tests.drafters.test_trained import drafts_of, ids
from tests.training.drafting import (
    KINDS,
    Recorded,
    greedy,
    objective,
    recipe_of,
    surroundings,
    trainee,
)
from tests.training.objectives.toys import ToyModel, pack, repeat, toy_model, words

from anyorder.core.errors import UserError
from anyorder.core.objective import Loss, TrainingBatch
from anyorder.drafters.block_drafter import BlockDrafter
from anyorder.drafters.eagle import Eagle
from anyorder.drafters.medusa import Medusa
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel, load, load_draft
from anyorder.training.objectives.block_drafter import _anchors

TEXT = ids(5, 14)
WRITERS: dict[str, Any] = {
    "medusa": write_medusa,
    "eagle": write_eagle,
    "block_drafter": write_dflash,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_target(folder / "target")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def target(folder: Path) -> LoadedModel:
    return load(folder / "target", dtype=torch.float64, device="cpu")


def published(folder: Path, target: LoadedModel, name: str) -> Recorded:
    """The drafter in a folder as its objective sees it."""
    (loaded,) = load_draft(folder / name, target).values()
    host: Any = ToyModel(network=target.network, abilities=target.abilities)  # type: ignore[arg-type]
    drafter: Any = loaded.network
    return Recorded(model=ToyModel(network=drafter, abilities=loaded.abilities, teacher=host))


def run(model: Any, name: str, batch: TrainingBatch, seed: int = 0, **options: Any) -> Loss:
    return objective(name, **options).loss(model, batch, torch.Generator().manual_seed(seed))


@torch.no_grad()
def scored(model: Recorded, name: str, text: list[int], **options: Any) -> list[torch.Tensor]:
    """The logits that a pass over the text makes."""
    run(model, name, pack([text]), **options)
    return model.scores


# ------------------------------------------------------------------------- beside the drafters' own
def prefixes(shortest: int = 2) -> list[list[int]]:
    return [TEXT[:length] for length in range(shortest, len(TEXT) + 1)]


def test_medusa_heads_guess_what_the_drafter_proposes(folder: Path, target: LoadedModel) -> None:
    engine = Engine(target, draft=folder / "medusa", cache_tokens=1024)
    drafts = drafts_of(engine, Medusa(nodes=3, top=1), prefixes(), 3)
    # Three tokens more, so that every head has a target after every prefix.
    (logits,) = scored(published(folder, target, "medusa"), "medusa", [*TEXT, 1, 2, 3])
    guesses = logits.argmax(-1).tolist()
    for prefix, draft in zip(prefixes(), drafts, strict=True):
        assert guesses[len(prefix) - 2] == list(draft.tokens)
    assert len({tuple(guess) for guess in guesses}) > 5


def test_eagle_goes_on_from_its_own_outputs_as_in_drafting(
    folder: Path, target: LoadedModel
) -> None:
    engine = Engine(target, draft=folder / "eagle", cache_tokens=1024)
    drafts = drafts_of(engine, Eagle(nodes=4, top=1), prefixes(), 4)
    for prefix, draft in zip(prefixes(), drafts, strict=True):
        model = published(folder, target, "eagle")
        assert model.scored is not None
        known, text = set(model.scored.tolist()), [*prefix, *draft.tokens]
        steps = scored(model, "eagle", text, steps=4)
        for step, logits in enumerate(steps):
            # Rows of a step begin where there are that many tokens before them; those before a
            # token that is not scored are left out, and drafts have none of these.
            rows = [place for place in range(step, len(text) - 2) if text[place + 2] in known]
            assert len(logits) == len(rows)
            row = rows.index(len(prefix) - 2 + step)
            assert int(logits[row].argmax()) == draft.tokens[step]


def test_blocks_are_filled_in_as_the_drafter_does(folder: Path, target: LoadedModel) -> None:
    engine = Engine(target, draft=folder / "block_drafter", cache_tokens=1024)
    drafts = drafts_of(engine, BlockDrafter(), prefixes(), BLOCK - 1)
    model = published(folder, target, "block_drafter")
    text = [*TEXT, *ids(1, BLOCK)]
    (logits,) = scored(model, "block_drafter", text, anchors=len(text))
    for prefix, draft in zip(prefixes(), drafts, strict=True):
        rows = of_anchor(model, len(text), len(prefix) - 1)
        assert logits[rows].argmax(-1).tolist() == list(draft.tokens)


def of_anchor(model: Recorded, length: int, anchor: int) -> slice:
    """Which rows of the logits are of the block at this place, in a pass over one text."""
    (batch,) = model.batches
    anchors = batch.positions_N[length::BLOCK].tolist()
    assert batch.tokens_N[length + 1 :: BLOCK].eq(MASK).all()
    sizes = [min(BLOCK - 1, length - 1 - place) for place in anchors]
    order = anchors.index(anchor)  # the last entry is no anchor, and has no rows
    return slice(sum(sizes[:order]), sum(sizes[: order + 1]))


# ------------------------------------------------------------------------------- beside dense twins
def nats(logits: torch.Tensor, token: int) -> float:
    return -float(logits.double().log_softmax(-1)[token])


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """KL(teacher, student) over the tokens that the student scores."""
    known = student > -torch.inf
    p = teacher.double()[known].softmax(-1)
    return float((p * (p.log() - student.double()[known].log_softmax(-1))).sum())


@pytest.mark.parametrize("targets", ["tokens", "distribution"])
def test_medusa_costs_are_those_of_the_definition(
    folder: Path, target: LoadedModel, targets: str
) -> None:
    weights = read(folder / "target")
    _, hidden = twins.llama(weights, TEXT)
    logits = twins.medusa(read(folder / "medusa"), 3, 2, hidden)
    theirs = hidden @ weights["lm_head.weight"].T
    expected = 0.0
    for place in range(len(TEXT)):
        for head in range(3):
            if (wanted := place + head + 2) < len(TEXT):
                cost = nats(logits[place, head], TEXT[wanted])
                if targets == "distribution":
                    cost = divergence(logits[place, head], theirs[wanted - 1])
                expected += 0.7 ** (head + 1) * cost
    model = published(folder, target, "medusa")
    found = run(model, "medusa", pack([TEXT]), targets=targets, decay=0.7)
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert found.weight == len(TEXT) - 2
    right = [int(logits[p, 0].argmax()) == TEXT[p + 2] for p in range(len(TEXT) - 2)]
    assert found.metrics["right"] == sum(right)


@pytest.mark.parametrize("targets", ["tokens", "distribution"])
def test_eagle_costs_are_those_of_the_definition(
    folder: Path, target: LoadedModel, targets: str
) -> None:
    weights, drafter = read(folder / "target"), read(folder / "eagle")
    stream, hidden = twins.llama(weights, TEXT)
    features = torch.cat([stream[depth] for depth in (2, 3, 4)], dim=-1)
    theirs = hidden @ weights["lm_head.weight"].T
    embedding = weights["model.embed_tokens.weight"]
    expected, counted, right = 0.0, 0, 0
    for step in range(3):
        for row in range(step, len(TEXT) - 2):
            known = features[: row + 1 - step]
            _, logits = twins.eagle(drafter, embedding, TEXT[1 : row + 2], known)
            wanted = TEXT[row + 2]
            if logits[-1, wanted] == -torch.inf:
                continue
            cost = nats(logits[-1], wanted)
            if targets == "distribution":
                cost = divergence(logits[-1], theirs[row + 1])
            expected += 0.5**step * cost
            counted += step == 0
            right += step == 0 and int(logits[-1].argmax()) == wanted
    assert 0 < counted < len(TEXT) - 2, "some tokens are not scored"
    model = published(folder, target, "eagle")
    found = run(model, "eagle", pack([TEXT]), targets=targets, decay=0.5, steps=3)
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert found.weight == counted and found.metrics["right"] == right


@pytest.mark.parametrize("targets", ["tokens", "distribution"])
def test_block_costs_are_those_of_the_definition(
    folder: Path, target: LoadedModel, targets: str
) -> None:
    weights, drafter = read(folder / "target"), read(folder / "block_drafter")
    stream, hidden = twins.llama(weights, TEXT)
    features = torch.cat([stream[depth] for depth in (2, 4, 6)], dim=-1)
    theirs = hidden @ weights["lm_head.weight"].T
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    shares = [math.exp(-place / 2.0) for place in range(BLOCK - 1)]
    expected, right = 0.0, 0
    for anchor in range(len(TEXT) - 1):
        block = [TEXT[anchor], *[MASK] * (BLOCK - 1)]
        logits = twins.dflash(drafter, embedding, head, block, features[:anchor])
        right += int(logits[1].argmax()) == TEXT[anchor + 1]
        for place in range(1, BLOCK):
            if anchor + place < len(TEXT):
                cost = nats(logits[place], TEXT[anchor + place])
                if targets == "distribution":
                    cost = divergence(logits[place], theirs[anchor + place - 1])
                expected += shares[place - 1] / sum(shares) * cost
    model = published(folder, target, "block_drafter")
    options = {"targets": targets, "decay": 2.0, "anchors": 99}
    found = run(model, "block_drafter", pack([TEXT]), **options)
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert found.weight == len(TEXT) - 1 and found.metrics["right"] == right


def test_anchors_are_drawn_evenly() -> None:
    counts, rng = torch.zeros(len(TEXT)), torch.Generator().manual_seed(0)
    for _ in range(300):
        (anchors,) = _anchors(pack([TEXT], given=[(0, 3)]), 3, rng).tolist()
        assert len(set(anchors)) == 3
        counts[anchors] += 1
    assert counts[2] == 0 and counts[-1] == 0, "no target follows"
    share = 300 * 3 / (len(TEXT) - 2)
    assert all(share * 0.7 < count < share * 1.3 for count in counts[[0, 1, *range(3, 13)]])
    (few,) = _anchors(pack([TEXT[:3]], length=9), 3, rng).tolist()
    assert sorted(few) == [-1, 0, 1]


# ------------------------------------------------------------------------------ what all have to do
def two_rows() -> TrainingBatch:
    given = [(0, 0), (0, 1), (1, 4)]
    return pack([words(0, 9), words(1, 7)], [words(2, 6), words(3, 8)], given=given)


NAMES = list(KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_every_new_weight_learns_and_the_target_does_not(name: str) -> None:
    model = trainee(name, spread=0.1)
    found = run(model, name, two_rows())
    found.total.backward()
    assert found.total.isfinite() and 0 < found.weight <= int(two_rows().targets_BT.sum())
    for parameter_name, parameter in model.network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name
    assert model.teacher is not None
    frozen: Any = model.teacher
    assert all(parameter.grad is None for parameter in frozen.network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_draws_give_the_same_loss_and_halves_add_up(name: str) -> None:
    model, whole = trainee(name, spread=0.1), two_rows()
    options = {"anchors": 99} if name == "block_drafter" else {}
    first, again = (run(model, name, whole, **options) for _ in range(2))
    assert torch.equal(first.total, again.total) and first.metrics == again.metrics
    halves = [
        TrainingBatch(
            tokens_BT=whole.tokens_BT[row : row + 1],
            documents_BT=whole.documents_BT[row : row + 1],
            targets_BT=whole.targets_BT[row : row + 1],
        )
        for row in (0, 1)
    ]
    parts = [run(model, name, half, **options) for half in halves]
    assert first.weight == parts[0].weight + parts[1].weight
    torch.testing.assert_close(first.total, parts[0].total + parts[1].total)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changed", [0, 1])
def test_documents_do_not_leak(name: str, changed: int) -> None:
    model, totals = trainee(name, spread=0.1), []
    places = (range(8), range(8, 17))[changed]
    for seed in (1, 2):
        documents = [words(5, 8), words(6, 9)]
        documents[changed] = words(10 + seed, len(documents[changed]))
        batch = pack(documents, given=[(0, place) for place in places], length=20)
        totals.append(run(model, name, batch).total)
    assert totals[0] == totals[1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_drafter_learns_what_its_target_writes(name: str) -> None:
    """From the target's own greedy text; guesses get right."""
    model = trainee(name)
    batch = repeat(pack([greedy([7, 3], 22)], given=[(0, 0), (0, 1)]), 2)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.01)
    rng = torch.Generator().manual_seed(0)
    options = {"anchors": 99} if name == "block_drafter" else {}
    history = []
    for _ in range(60):
        found = objective(name, **options).loss(model, batch, rng)
        optimizer.zero_grad()
        (found.total / found.weight).backward()
        optimizer.step()
        history.append(found)
    assert history[-1].total < 0.25 * history[0].total
    assert history[-1].metrics["right"] >= 0.9 * history[-1].weight


def test_a_network_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="trained with objective eagle, got medusa"):
        recipe_of("eagle").make(surroundings("medusa"))


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_model_of_another_kind_is_refused(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f'trains .*; toy .* none: give .model. kind = "{kind}"'):
        objective(name).check(toy_model().abilities)
    objective(name).check(trainee(name).abilities)
