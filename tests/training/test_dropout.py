"""Dropout: where it acts and where not, and that runs with it repeat themselves exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_config, tiny_encoder_decoder_config
from tests.training.runs import memory_data, small_recipe

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import InvalidRequest, UserError
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.transformer import Transformer
from anyorder.training.dropout import add_dropout, drawn_by
from anyorder.training.trainer import Trainer


def test_the_share_is_dropped_and_the_rest_made_up_for() -> None:
    network = Transformer.random(tiny_config(width=64, num_heads=8), seed=0)
    plain = network.layers[0].mlp(torch.ones(500, 64))
    add_dropout(network, 0.25)
    torch.manual_seed(0)
    found = network.layers[0].mlp(torch.ones(500, 64))
    kept = found != 0
    assert abs(float(kept.float().mean()) - 0.75) < 0.02
    torch.testing.assert_close(found[kept], plain[kept] / 0.75)


def test_every_branch_and_the_embedding_once() -> None:
    config = tiny_encoder_decoder_config()
    network = EncoderDecoder.random(config, seed=0)
    seen: list[str] = []
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda m, i, o, name=name: (
                seen.append(f"{name} {float((o == 0).float().mean()):.1f}")
                if isinstance(o, torch.Tensor)
                else None
            )
        )
    add_dropout(network, 0.5)
    for module in network.modules():  # look at what comes out in the end
        module._forward_hooks.move_to_end(next(iter(module._forward_hooks)))
    tokens = torch.arange(60).view(2, 30)
    everything = torch.ones(1, 30, 30, dtype=torch.bool)
    states = network.encode(dense_batch(tokens, everything)).view(2, 30, -1)
    network.hidden(dense_batch(tokens, memory=CrossMemory(states_RSW=states)))
    # The first norms hand the embedding's zeros on.
    dropped = [line.split()[0] for line in seen if line.endswith("0.5") and "norm" not in line]
    stacks = {"": ("attention", "cross", "mlp"), "encoder.": ("attention", "mlp")}
    expected = [
        f"{stack}layers.{layer}.{branch}"
        for stack, branches in stacks.items()
        for layer in (0, 1)
        for branch in branches
    ]
    assert sorted(dropped) == sorted([*expected, "embedding", "embedding"])


@torch.no_grad()
def test_passes_without_gradients_drop_nothing() -> None:
    network = Transformer.random(tiny_config(), seed=0)
    batch = dense_batch(torch.arange(20)[None])
    plain = network.hidden(batch)
    add_dropout(network, 0.5)
    assert torch.equal(network.hidden(batch), plain)
    with torch.enable_grad():
        assert not torch.equal(network.hidden(batch), plain)


def test_what_is_dropped_follows_from_a_seed_and_disturbs_nobody() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draws = []
    for seed in (1, 1, 2):
        with drawn_by(torch.Generator().manual_seed(seed)):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.rand(3), expected)


def losses(output: Path, **run: Any) -> list[float]:
    """Training losses and the last validation loss of a small run."""
    found: list[float] = []
    last: list[float | None] = []
    trainer = Trainer(
        small_recipe(output, run=run),
        data=memory_data(output.parent / "data"),
        watch=lambda line: (found.append(line.loss), last.append(line.validation_loss)),  # type: ignore[func-returns-value]
    )
    trainer.run()
    assert last[-1] is not None
    return [*found, last[-1]]


def test_a_run_with_dropout_goes_on_exactly(tmp_path: Path) -> None:
    whole = losses(tmp_path / "a", dropout=0.3)
    assert whole != losses(tmp_path / "b")

    class Killed(Exception):
        pass

    def kill(line: Any) -> None:
        if line.step == 5:
            raise Killed

    recipe = small_recipe(tmp_path / "c", run={"dropout": 0.3})
    with pytest.raises(Killed):
        Trainer(recipe, data=memory_data(tmp_path / "data"), watch=kill).run()
    torch.manual_seed(99)
    assert losses(tmp_path / "c", dropout=0.3) == whole[3:]


def test_layers_that_are_run_again_drop_the_same(tmp_path: Path) -> None:
    plain = losses(tmp_path / "a", dropout=0.3)
    again = losses(tmp_path / "b", dropout=0.3, checkpoint_layers=True)
    assert again == pytest.approx(plain, rel=1e-5)


def test_refusals() -> None:
    with pytest.raises(UserError, match="dropout is for networks with layers"):
        add_dropout(torch.nn.Linear(2, 2), 0.1)
    for fields in ({"compile": True}, {"tensor_parallel": 2}):
        with pytest.raises(InvalidRequest, match="dropout goes neither with compile nor"):
            small_recipe(Path("x"), run={"dropout": 0.1, **fields})
