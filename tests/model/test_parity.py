"""Every family's logits equal those of transformers, from the same checkpoint."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.checkpoints import FAMILIES, make, random_ids, reference, save
from tests.model.paged import Cached

from anyorder.core.batch import dense_batch
from anyorder.model.checkpoint import open_folder
from anyorder.model.loading import load_network
from anyorder.model.transformer import Transformer

LENGTH = 40
TOLERANCE = 1e-4


@functools.cache
def ours(case: str) -> Transformer:
    """The same checkpoint, loaded here."""
    with tempfile.TemporaryDirectory() as folder:
        config, source = open_folder(save(reference(case), Path(folder)))
        return load_network(config, source, dtype=torch.float32)


def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.2, "flat logits would hide mistakes"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def all_logits(network: Transformer, ids_BT: torch.Tensor) -> torch.Tensor:
    logits = network.logits(network.hidden(dense_batch(ids_BT)))
    return logits.view(*ids_BT.shape, -1)


@pytest.mark.parametrize("case", FAMILIES)
@torch.inference_mode()
def test_long_text(case: str) -> None:
    """Beyond the window and, for scaled rotary positions, beyond the original context."""
    ids_BT = random_ids(2, LENGTH)
    check(all_logits(ours(case), ids_BT), reference(case)(ids_BT).logits)


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_padded_batch(case: str, side: str) -> None:
    """What transformers pads, we pack: the same logits at all real tokens, on either side."""
    texts = [random_ids(5, seed=2), random_ids(12, seed=3), random_ids(5, seed=4)]
    padded_BT = torch.zeros(3, 12, dtype=torch.int64)
    real_BT = torch.zeros(3, 12, dtype=torch.int64)
    for row, ids in enumerate(texts):
        place = slice(12 - len(ids), 12) if side == "left" else slice(0, len(ids))
        padded_BT[row, place], real_BT[row, place] = ids, 1
    kwargs: dict[str, Any] = {}
    if FAMILIES[case][0] not in ("Bloom", "OPT"):  # These two read positions off the mask.
        kwargs["position_ids"] = (real_BT.cumsum(-1) - 1).clamp(min=0)
    theirs_BTV = reference(case)(padded_BT, attention_mask=real_BT, **kwargs).logits
    cached = Cached(ours(case), num_sequences=3, length=12)
    for row, logits_TV in enumerate(cached.run(list(enumerate(texts)))):
        check(logits_TV, theirs_BTV[row][real_BT[row] == 1])


@pytest.mark.parametrize("case", FAMILIES)
@torch.inference_mode()
def test_cached_decoding(case: str) -> None:
    """Two chunks of the prompt, then token by token, gives what one pass over all gives."""
    ids_BT = random_ids(2, LENGTH)
    cached = Cached(ours(case), num_sequences=2, length=LENGTH)
    parts = []
    for start, stop in [(0, 9), (9, 16), *((at, at + 1) for at in range(16, LENGTH))]:
        parts.append(cached.run([(row, ids_BT[row, start:stop]) for row in range(2)]))
    logits_BTV = torch.stack([torch.cat([part[row] for part in parts]) for row in range(2)])
    check(logits_BTV, reference(case)(ids_BT).logits)


@torch.inference_mode()
def test_uneven_pieces_in_one_pass() -> None:
    """A long piece, a short one and a single token of three sequences, packed together."""
    ids_BT = random_ids(3, 20)
    cached = Cached(ours("mistral"), num_sequences=3, length=20)
    cached.run([(0, ids_BT[0, :3]), (1, ids_BT[1, :15]), (2, ids_BT[2, :19])])
    rest = cached.run([(0, ids_BT[0, 3:]), (1, ids_BT[1, 15:]), (2, ids_BT[2, 19:])])
    theirs_BTV = reference("mistral")(ids_BT).logits
    for row, start in enumerate((3, 15, 19)):
        check(rest[row], theirs_BTV[row, start:])


@torch.inference_mode()
def test_dynamic_rope_is_that_of_decoding_one_by_one() -> None:
    """Past the original context our one pass equals transformers decoding token by token."""
    rope = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0}
    family, fields = FAMILIES["llama"]
    model = make(family, fields | {"rope_parameters": rope, "max_position_embeddings": 16})
    with tempfile.TemporaryDirectory() as folder:
        config, source = open_folder(save(model, Path(folder)))
        network = load_network(config, source, dtype=torch.float32)
    ids_BT = random_ids(1, LENGTH)
    output = model(ids_BT[:, :16], use_cache=True)
    theirs = [output.logits]
    for at in range(16, LENGTH):
        output = model(
            ids_BT[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True
        )
        theirs.append(output.logits)
    check(all_logits(network, ids_BT), torch.cat(theirs, dim=1))


@torch.inference_mode()
def test_bfloat16() -> None:
    """Loaded in bfloat16, the logits stay as close as transformers' own in that type."""
    case = "llama"
    with tempfile.TemporaryDirectory() as folder:
        config, source = open_folder(save(reference(case), Path(folder)))
        network = load_network(config, source, dtype=torch.bfloat16)
    assert network.dtype == torch.bfloat16
    ids_BT = random_ids(2, LENGTH)
    exact = reference(case)(ids_BT).logits
    half = make(*FAMILIES[case]).to(torch.bfloat16)(ids_BT).logits.float()
    logits = all_logits(network, ids_BT)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().mean() < 1.3 * (half - exact).abs().mean()
