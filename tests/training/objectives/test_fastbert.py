"""FastBERT: what is read and learnt in either run; early exit against runs of whole layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training.objectives.toys import pack

from anyorder.core.batch import dense_batch
from anyorder.core.errors import CheckpointError, InvalidRequest, UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import TrainingBatch
from anyorder.evaluation.early_exit import Example, curve
from anyorder.model.classifier import Classifier, load_classifier
from anyorder.training.network import Surroundings, Trainee
from anyorder.training.networks.classifier import Classifier as Recipe
from anyorder.training.objectives.fastbert import Fastbert

END, VOCABULARY = 0, 61
LABELS = {"red": 50, "green": 51, "blue": 52}
SIZES: dict[str, Any] = {"width": 32, "layers": 3, "heads": 2, "narrow": 8}


class Words:
    """A tokenizer that knows the labels' names."""

    vocabulary_size, end_tokens, mask_token = VOCABULARY, frozenset({END}), None

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [LABELS.get(text, 53), 7]


def surroundings() -> Surroundings:
    tokenizer: Any = Words()
    return Surroundings(
        tokenizer=tokenizer,
        objective=Fastbert(),
        length=64,
        seed=0,
        locate=str,
        counts=lambda size: torch.zeros(size, dtype=torch.int64),
    )


def trainee(spread: float = 0.3, **options: Any) -> Trainee:
    """In float64 with weights far from the first small ones."""
    fields = {**SIZES, "labels": list(LABELS)} if "init" not in options else {}
    made = Recipe(**{**fields, **options}).make(surroundings())
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.network.double().parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * spread)
    return made


def network_of(made: Trainee) -> Classifier:
    assert isinstance(made.network, Classifier)
    return made.network


def with_exits(tmp_path: Path, **options: Any) -> Trainee:
    first = trainee(**options)
    Recipe(**SIZES, labels=list(LABELS)).save(tmp_path / "first", first, tmp_path)
    return trainee(init=str(tmp_path / "first"), exits=True)


def labelled(*documents: tuple[list[int], str]) -> TrainingBatch:
    """One row of texts, each with its label and an end token behind it."""
    flat = [[*text, LABELS[label], 7, END] for text, label in documents]
    given, start = [], 0
    for (text, _), document in zip(documents, flat, strict=True):
        given += [(0, start + place) for place in range(len(text))]
        start += len(document)
    return pack(flat, given=given, length=start + 2)


TEXTS = [([5, 9, 9, 3], "red"), ([8, 1], "blue"), ([4, 4, 6, 7, 2, 11], "green")]


def alone(network: Classifier, text: list[int]) -> list[torch.Tensor]:
    """Scores of every classifier for one text, run by itself."""
    with torch.no_grad():
        size = len(text)
        visible = torch.ones(1, size, size, dtype=torch.bool)
        hidden = network.hidden(dense_batch(torch.tensor([text]), visible))[:1]
        all_scores = [*network.heads(hidden)[0]] if len(network.branches) > 1 else []
        return [s[list(LABELS.values())] for s in (*all_scores, network.logits(hidden)[0])]


def test_the_first_run_learns_labels_without_reading_them() -> None:
    model = trainee()
    found = Fastbert().loss(model, labelled(*TEXTS), torch.Generator())
    scores = [alone(network_of(model), text)[-1] for text, _ in TEXTS]
    wanted = torch.tensor([list(LABELS).index(label) for _, label in TEXTS])
    expected = F.cross_entropy(torch.stack(scores), wanted, reduction="sum")
    assert float(found.total.detach()) == pytest.approx(float(expected), rel=1e-5)
    right = sum(int(s.argmax()) == int(w) for s, w in zip(scores, wanted, strict=True))
    assert found.weight == 3 and found.metrics == {"right": right}
    found.total.backward()
    for name, parameter in model.network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_documents_without_a_label_are_no_lesson() -> None:
    model, whole = trainee(), labelled(*TEXTS)
    cut = TrainingBatch(
        tokens_BT=whole.tokens_BT[:, :12],
        documents_BT=whole.documents_BT[:, :12],
        targets_BT=whole.targets_BT[:, :12],
    )
    found = Fastbert().loss(model, cut, torch.Generator())
    assert found.weight == 2
    other = Fastbert().loss(model, labelled(*TEXTS[:2]), torch.Generator())
    torch.testing.assert_close(found.total, other.total)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_the_second_run_teaches_the_exits_alone(tmp_path: Path, divergence: Any) -> None:
    model = with_exits(tmp_path)
    objective = Fastbert(divergence=divergence)
    found = objective.loss(model, labelled(*TEXTS), torch.Generator())
    expected, agreeing = 0.0, 0.0
    for text, _ in TEXTS:
        *exits, last = (s.double().log_softmax(-1) for s in alone(network_of(model), text))
        for scores in exits:
            ours, theirs = (scores, last) if divergence == "forward" else (last, scores)
            expected += float(F.kl_div(ours, theirs, log_target=True, reduction="sum"))
            agreeing += float(scores.argmax() == last.argmax()) / len(exits)
    assert len(exits) == 2
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert found.weight == 3 and found.metrics["agreeing"] == pytest.approx(agreeing)
    found.total.backward()
    for name, parameter in model.network.named_parameters():
        mine = network_of(model).is_of_an_exit(name)
        assert parameter.requires_grad == mine == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.any(), name


def test_the_second_run_keeps_what_the_first_learnt(tmp_path: Path) -> None:
    second = network_of(with_exits(tmp_path))
    first = load_classifier(tmp_path / "first", dtype=torch.float64)
    for text, _ in TEXTS:
        torch.testing.assert_close(alone(second, text)[-1], alone(first, text)[-1])


def test_learnt_texts_leave_early(tmp_path: Path) -> None:
    """Both runs on three texts; what is then sure leaves at the first exit and costs less."""
    rng = torch.Generator()
    made = trainee(0.0)
    for model in (made, None):
        if model is None:
            Recipe(**SIZES, labels=list(LABELS)).save(tmp_path / "first", made, tmp_path)
            model = trainee(0.0, init=str(tmp_path / "first"), exits=True)
        parameters = [p for p in model.network.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(60):
            loss = Fastbert().loss(model, labelled(*TEXTS), rng)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
    examples = [Example(tokens=tuple(text), label=label) for text, label in TEXTS]
    points = curve(network_of(model), examples, (0.0001, 0.6), batch_size=2)
    assert [point.accuracy for point in points] == [1.0] * 3
    assert points[0].mean_layers == 3.0 and points[-1].mean_layers == 1.0
    assert points[0].speedup == 1.0 and 2.0 < points[-1].speedup < 3.5
    assert points[0].flops / points[-1].flops == pytest.approx(points[-1].speedup)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 0.97, 1.0])
def test_classify_stops_where_the_definition_says(tmp_path: Path, threshold: float) -> None:
    network = network_of(with_exits(tmp_path))
    rng = torch.Generator().manual_seed(1)
    texts = [torch.randint(40, (n,), generator=rng).tolist() for n in (1, 9, 4, 4, 30, 2, 17)]
    verdicts = network.classify(texts, threshold=threshold)
    for text, verdict in zip(texts, verdicts, strict=True):
        doubts = []
        for layer, scores in enumerate(alone(network, text), start=1):
            p = scores.double().softmax(-1)
            doubts.append(float(-(p * p.log()).sum() / math.log(3)))
            if doubts[-1] < threshold or layer == 3:
                break
        assert (verdict.num_layers, verdict.label) == (layer, list(LABELS)[int(p.argmax())])
        assert verdict.uncertainty == pytest.approx(doubts[-1], abs=1e-5)
        assert verdict.flops == network.flops(len(text), layer, exits=threshold > 0)
    layers = {verdict.num_layers for verdict in verdicts}
    assert layers == {3} if threshold == 0 else layers == {1} if threshold == 1 else layers


def test_what_lies_beyond_the_context_is_not_read(tmp_path: Path) -> None:
    network = network_of(with_exits(tmp_path, context=8))
    long, short = ([3, 1, 4, 1, 5, 9, 2, 6, *more] for more in ([5, 3], []))
    assert network.classify([long], threshold=0.9) == network.classify([short], threshold=0.9)


def test_flops_are_what_torch_counts(tmp_path: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # In float64, as what the compiled kernels multiply is not counted.
    network = network_of(with_exits(tmp_path)).double()
    for num_layers, threshold in ((3, 0.0), (1, 1.0)):
        # Of this backend's parts, torch counts the products; of others, nothing on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            (verdict,) = network.classify([list(range(20))], threshold=threshold)
        assert verdict.num_layers == num_layers
        assert verdict.flops == counter.get_total_flops()


def test_the_folder_holds_all(tmp_path: Path) -> None:
    made = with_exits(tmp_path)
    Recipe(init="x", exits=True).save(tmp_path / "second", made, tmp_path)
    again = load_classifier(tmp_path / "second", dtype=torch.float64)
    assert again.labels == LABELS and len(again.branches) == 3
    for (name, ours), theirs in zip(
        made.network.named_parameters(), again.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_refusals(tmp_path: Path) -> None:
    batch = labelled(*TEXTS)
    batch.tokens_BT[0, 4] = 44
    with pytest.raises(UserError, match="begins with token 44, which begins none"):
        Fastbert().loss(trainee(), batch, torch.Generator())
    decoder = Abilities(name="toy", vocabulary_size=9, context_length=9)
    with pytest.raises(UserError, match=r"toy is none: give \[model\] kind"):
        Fastbert().check(decoder)
    with pytest.raises(UserError, match="'pink' and 'grey' begin with the same token"):
        Recipe(**SIZES, labels=["pink", "grey"]).make(surroundings())
    with pytest.raises(InvalidRequest, match="at least 2 texts"):
        Recipe(**SIZES, labels=["red"]).make(surroundings())
    with pytest.raises(InvalidRequest, match="a list of texts"):
        Recipe(**SIZES, labels=[1, 2])
    with pytest.raises(InvalidRequest, match="narrow must be even, got 7"):
        Recipe(**{**SIZES, "narrow": 7}, labels=["red", "blue"])
    with pytest.raises(InvalidRequest, match="exits needs init"):
        Recipe(**SIZES, exits=True)
    with pytest.raises(InvalidRequest, match=r"lacks heads; give width"):
        Recipe(width=32, layers=2)
    with pytest.raises(InvalidRequest, match="has init and width"):
        Recipe(init="x", width=32)
    with pytest.raises(InvalidRequest, match="even multiple of heads, got 32 and 3"):
        Recipe(width=32, layers=2, heads=3)
    made = trainee()
    Recipe(**SIZES, labels=list(LABELS)).save(tmp_path / "first", made, tmp_path)
    with pytest.raises(InvalidRequest, match="knows its own; leave labels out"):
        Recipe(init=str(tmp_path / "first"), labels=["red"]).make(surroundings())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="describes no classifier"):
        load_classifier(tmp_path / "other")
    with pytest.raises(UserError, match="no examples"):
        curve(network_of(made), [])
