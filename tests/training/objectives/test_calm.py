"""CALM's two objectives: their formulas against closed forms, and the contract for networks that
work on vectors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.training.objectives.toys import mean_loss, pack, repeat, words
from torch.distributions import Normal, kl_divergence

from anyorder.core import lookup
from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Objective, TrainingBatch
from anyorder.core.options import build, describe
from anyorder.core.vectors import VectorObjective
from anyorder.model.calm import make_calm
from anyorder.model.calm_autoencoder import AutoencoderSizes, start
from anyorder.model.calm_autoencoder import CalmAutoencoder as Network
from anyorder.model.saving import llama_fields
from anyorder.training.calm import CalmTrainee
from anyorder.training.objectives.calm_autoencoder import CalmAutoencoder
from anyorder.training.objectives.calm_energy import CalmEnergy, distances

NAMES = ("calm_autoencoder", "calm_energy")
END = 60
SIZES = AutoencoderSizes(
    vocab_size=61,
    patch_size=4,
    hidden_size=32,
    intermediate_size=48,
    latent_size=8,
    fill_token_id=END,
)


def coder_model(seed: int = 0) -> CalmTrainee:
    network = Network(SIZES)
    start(network.named_parameters(), seed=seed)
    return trainee(network, "calm_autoencoder")


def calm_model(coder: Network | None = None, seed: int = 0) -> CalmTrainee:
    fields = llama_fields(
        vocabulary_size=61,
        width=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=48,
        context_length=128,
        tied_embeddings=True,
        end_token=END,
    )
    fields |= {"patch_size": 4, "latent_size": 8, "noise_size": 6, "num_mlp_layers": 2}
    if coder is None:
        coder = Network(SIZES)
        start(coder.named_parameters(), seed=1)
    coder.requires_grad_(False)
    network = make_calm(fields, coder, seed=seed)
    with torch.no_grad():  # so that every weight has a gradient from the first step on
        network.head.out.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(9))
    return trainee(network, "calm")


def trainee(network: torch.nn.Module, kind: str) -> CalmTrainee:
    abilities = Abilities(
        name="toy",
        vocabulary_size=61,
        context_length=128,
        end_tokens=frozenset({END}),
        kind=kind,
    )
    return CalmTrainee(network=network.double(), abilities=abilities)


def model_for(name: str) -> CalmTrainee:
    return coder_model() if name == "calm_autoencoder" else calm_model()


def make(name: str, **options: object) -> Objective:
    return build(lookup.find("training/objectives", name, kind="objective"), options)


def two_rows() -> TrainingBatch:
    """Documents of different lengths, padding, and tokens that are only given."""
    return pack(
        [[*words(0, 12), END], words(1, 8)],
        [words(2, 4), [*words(3, 9), END]],
        given=[(0, place) for place in range(4)],
    )


# ------------------------------------------------------------------------------------ energy score
def mean_power(shift: float, deviation: float, power: float) -> float:
    """E|d|^power for a normal d; of power 1 (any mean) and others (mean 0)."""
    if power == 1:
        tail = math.erfc(shift / deviation / math.sqrt(2))
        density = math.exp(-((shift / deviation) ** 2) / 2) * math.sqrt(2 / math.pi)
        return deviation * density + shift * (1 - tail)
    assert shift == 0
    gamma = math.gamma((power + 1) / 2)
    return deviation**power * 2 ** (power / 2) * gamma / math.sqrt(math.pi)


@pytest.mark.parametrize(("mean", "deviation", "power"), [(0.7, 1.5, 1.0), (0.0, 0.6, 1.5)])
def test_distances_of_normal_draws(mean: float, deviation: float, power: float) -> None:
    rng = torch.Generator().manual_seed(0)
    count = 4000
    drawn = mean + deviation * torch.randn(count, 8, 1, generator=rng, dtype=torch.float64)
    right = torch.randn(count, 9, 1, generator=rng, dtype=torch.float64)
    across, within = distances(drawn, right, power=power)
    for found, expected in (
        (across, mean_power(mean, math.hypot(deviation, 1), power)),
        (within, mean_power(0.0, math.sqrt(2) * deviation, power)),
    ):
        error = float(found.std()) / math.sqrt(count)
        assert error < 0.01 and abs(float(found.mean()) - expected) < 4 * error


def test_the_score_is_least_at_the_truth() -> None:
    def score(mean: float, deviation: float) -> float:
        across = mean_power(mean, math.hypot(deviation, 1), 1.0)
        return 2 * across - mean_power(0.0, math.sqrt(2) * deviation, 1.0)

    grid = [(m / 10, s / 10) for m in range(-5, 6) for s in range(2, 20)]
    assert min(grid, key=lambda point: score(*point)) == (0.0, 1.0)
    # And so it is as it is estimated, with the draws that all candidates share.
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 1000, 1, generator=rng, dtype=torch.float64)
    right = torch.randn(1, 1000, 1, generator=rng, dtype=torch.float64)
    for mean, deviation in ((0.4, 1.0), (0.0, 0.6), (0.0, 1.5), (-0.3, 1.2)):
        values = [
            2 * across - within
            for across, within in (
                distances(m + s * noise, right, power=1.0) for m, s in ((0, 1), (mean, deviation))
            )
        ]
        assert float(values[0]) < float(values[1])
        assert float(values[1]) == pytest.approx(score(mean, deviation), abs=0.1)


def test_distances_in_a_plane_by_hand() -> None:
    drawn = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]])
    right = torch.tensor([[[0.0, 1.0], [0.0, 4.0]]])
    across, within = distances(drawn, right, power=1.0)
    assert float(across) == pytest.approx((1 + 4 + 18**0.5 + 3 + 1 + 4) / 6)
    assert float(within) == pytest.approx((5 + 0 + 5) / 3)
    drawn.requires_grad_(True)
    sum(distances(drawn, right, power=1.0)).backward()  # type: ignore[union-attr]
    assert drawn.grad is not None and drawn.grad.isfinite().all(), "equal draws"


def test_only_patches_behind_others_are_predicted() -> None:
    found = CalmEnergy().loss(calm_model(), two_rows(), torch.Generator().manual_seed(0))
    # 13 tokens make 4 patches, of which one is first; 8 make 2; 4 make 1; 10 make 3.
    assert found.weight == 3 + 1 + 0 + 2
    metrics = found.metrics
    assert float(found.total.detach()) == pytest.approx(2 * metrics["distance"] - metrics["spread"])


# ------------------------------------------------------------------------------------- autoencoder
def test_the_autoencoders_loss_in_torchs_own_words() -> None:
    model = coder_model()
    batch = pack([words(0, 8)], [words(1, 8)])
    objective = CalmAutoencoder(token_dropout=0.0, vector_dropout=0.0, kl_weight=0.1, kl_floor=0.2)
    found = objective.loss(model, batch, torch.Generator().manual_seed(3))
    tokens_MK = batch.tokens_BT.view(4, 4)
    mean, log_std = model.posterior(tokens_MK)
    posterior = Normal(mean, log_std.exp())
    rng = torch.Generator().manual_seed(3)
    torch.rand(4, 4, generator=rng)
    vectors = posterior.mean + posterior.stddev * torch.randn(4, 8, generator=rng)
    logits = model.logits(model.reconstruct(vectors))
    nats = F.cross_entropy(logits, tokens_MK.flatten(), reduction="sum")
    kl = kl_divergence(posterior, Normal(0.0, 1.0))
    assert (kl < 0.2).any() and (kl > 0.2).any(), "both sides of the floor"
    expected = float((nats + 0.1 * kl.clamp(min=0.2).sum()).detach())
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert found.weight == 4
    assert found.metrics["nats"] == pytest.approx(float(nats.detach()), rel=1e-5)
    assert found.metrics["kl"] == pytest.approx(float(kl.detach().sum()), rel=1e-5)
    right = (logits.argmax(-1) == tokens_MK.flatten()).sum() / 4
    assert found.metrics["restored"] == pytest.approx(float(right))


def test_dropout_hides_its_share() -> None:
    seen: list[torch.Tensor] = []

    class Spy(CalmTrainee):
        def posterior(
            self, tokens_MK: torch.Tensor, kept_MK: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            assert kept_MK is not None
            seen.append(kept_MK.double())
            mean, log_std = super().posterior(tokens_MK, kept_MK)
            return torch.ones_like(mean), log_std - 100

        def reconstruct(self, vectors_ML: torch.Tensor) -> torch.Tensor:
            seen.append(vectors_ML)
            return super().reconstruct(vectors_ML)

    model = coder_model()
    spy = Spy(network=model.network, abilities=model.abilities)
    objective = CalmAutoencoder(token_dropout=0.2, vector_dropout=0.4)
    objective.loss(spy, repeat(two_rows(), 60), torch.Generator().manual_seed(0))
    kept, vectors = seen
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.03)
    vectors = vectors.detach()
    assert vectors.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert float(vectors.mean()) == pytest.approx(1.0, abs=0.03), "the mean stays"


# ---------------------------------------------------------------------------------------- contract
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_and_every_trained_parameter_has_a_gradient(name: str) -> None:
    objective, model, batch = make(name), model_for(name), two_rows()
    objective.check(model.abilities)
    found = objective.loss(model, batch, torch.Generator().manual_seed(0))
    found.total.backward()
    assert found.total.isfinite() and found.total.shape == ()
    assert 0 < found.weight <= int(batch.targets_BT.sum())
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert all(option.description for option in describe(type(objective)))
    for parameter_name, parameter in model.network.named_parameters():
        if parameter_name.startswith("autoencoder."):
            assert parameter.grad is None
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_the_same_draws_give_the_same_loss(name: str) -> None:
    first, again = (
        make(name).loss(model_for(name), two_rows(), torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(first.total, again.total) and first.metrics == again.metrics


@pytest.mark.parametrize("name", NAMES)
def test_two_halves_add_up_to_the_whole(name: str) -> None:
    objective, model, whole = make(name), model_for(name), two_rows()
    halves = [
        TrainingBatch(
            tokens_BT=whole.tokens_BT[row : row + 1],
            documents_BT=whole.documents_BT[row : row + 1],
            targets_BT=whole.targets_BT[row : row + 1],
        )
        for row in (0, 1)
    ]
    rng = torch.Generator()
    weights = [objective.loss(model, batch, rng).weight for batch in (whole, *halves)]
    assert weights[0] == weights[1] + weights[2]
    together, error = mean_loss(objective, model, whole, draws=60)
    parts = [
        mean_loss(objective, model, half, draws=60, seed=1 + i) for i, half in enumerate(halves)
    ]
    error = math.hypot(error, *(e for _, e in parts))
    assert error < 0.2 * together
    assert abs(together - parts[0][0] - parts[1][0]) < 4 * error + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_documents_do_not_leak(name: str) -> None:
    for changed, places in ((0, range(8)), (1, range(8, 16))):
        totals = []
        for seed in (1, 2):
            documents = [words(5, 8), words(6, 8)]
            documents[changed] = words(10 + seed, 8)
            batch = pack(documents, given=[(0, place) for place in places])
            rng = torch.Generator().manual_seed(0)
            totals.append(make(name).loss(model_for(name), batch, rng).total)
        assert totals[0] == totals[1] and totals[0] > 0


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str) -> None:
    batch = pack([words(0, 8)], [words(1, 16)])
    tokens_BT = torch.where(batch.documents_BT < 0, 33, batch.tokens_BT)
    other = replace(batch, tokens_BT=tokens_BT)
    assert not torch.equal(batch.tokens_BT, other.tokens_BT)
    first, second = (
        make(name).loss(model_for(name), b, torch.Generator().manual_seed(0)).total
        for b in (batch, other)
    )
    assert torch.equal(first, second)


def fit(model: CalmTrainee, objective: Objective, batch: TrainingBatch, steps: int) -> None:
    parameters = [p for p in model.network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        found = objective.loss(model, batch, rng)
        optimizer.zero_grad()
        (found.total / found.weight).backward()
        optimizer.step()


def test_a_tiny_text_is_restored_and_then_drawn() -> None:
    document = [*words(0, 23), END]
    batch = pack([document])
    coder = coder_model()
    fit(coder, CalmAutoencoder(), repeat(batch, 8), 150)
    assert isinstance(coder.network, Network)
    tokens_MK = torch.tensor(document).view(-1, 4)
    with torch.no_grad():
        mean, log_std = coder.posterior(tokens_MK)
        noise = torch.randn(200, *mean.shape, generator=torch.Generator().manual_seed(1))
        vectors = mean + log_std.exp() * noise
        restored = coder.network.tokens(vectors.flatten(0, 1)).view(200, -1, 4)
    assert float((restored == tokens_MK).double().mean()) > 0.99

    model = calm_model(coder.network)
    fit(model, CalmEnergy(target_samples=16), repeat(batch, 4), 150)
    with torch.no_grad():
        packed = dense_batch(torch.zeros(1, 6, dtype=torch.int64))
        hidden = model.hidden_patches(tokens_MK, packed)
        drawn = model.draw(hidden[:-1], torch.rand(5, 50, 6).double() - 0.5)
        tokens = coder.network.tokens(drawn.flatten(0, 1)).view(5, 50, 4)
    assert float((tokens == tokens_MK[1:, None]).double().mean()) > 0.9


def test_other_networks_are_refused() -> None:
    decoder = Abilities(name="gpt2", vocabulary_size=61, context_length=64)
    for name in NAMES:
        objective = make(name)
        assert isinstance(objective, VectorObjective)
        with pytest.raises(UserError, match=f"{name} trains networks of the kind .*gpt2 is a dec"):
            objective.check(decoder)
