"""`anyorder eval --task restoration` on a folder of an autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.cli.conftest import Run

from anyorder.evaluation.restoration import restoration
from anyorder.model.calm_autoencoder import AutoencoderSizes, CalmAutoencoder
from anyorder.model.plain_folder import save_plain
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.documents import Document, Encoder


def test_restoration(run: Run, model: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(Path(model))
    sizes = AutoencoderSizes(
        vocab_size=tokenizer.vocabulary_size,
        patch_size=3,
        hidden_size=16,
        intermediate_size=16,
        latent_size=4,
        fill_token_id=min(tokenizer.end_tokens),
    )
    coder = CalmAutoencoder(sizes)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.normal_(0, 0.3)
    folder, text = tmp_path / "coder", tmp_path / "a.jsonl"
    save_plain(folder, coder, sizes.fields(), Path(model))
    text.write_text('{"text": "A bright cold day."}')
    flags = ("--task", "restoration", "--data", str(text))
    found = run("eval", str(folder), *flags, "--json").json["rows"][0]
    tokens, _ = Encoder.of(tokenizer).encode(Document(text="A bright cold day."))
    expected = restoration(coder, [tokens])
    assert found["num_tokens"] == len(tokens)
    assert [found[key] for key in ("from_means", "whole_patches", "nats")] == [
        pytest.approx(value, rel=1e-5)
        for value in (expected.from_means, expected.whole_patches, expected.nats)
    ]
    with torch.no_grad():
        coder.moments.bias += 1.0
    other = tmp_path / "other"
    save_plain(other, coder, sizes.fields(), Path(model))
    rows = run("eval", str(folder), str(other), *flags, "--json").json["rows"]
    assert [row["nats"] for row in rows] == [
        pytest.approx(expected.nats, rel=1e-5),
        pytest.approx(restoration(coder, [tokens]).nats, rel=1e-5),
    ]
    assert rows[1]["nats"] > rows[0]["nats"] * 1.01
    table = run("eval", str(folder), str(other), *flags).out
    assert sum(line.startswith("| /") for line in table.splitlines()) == 2
    outcome = run("eval", model, *flags)
    assert outcome.code == 2 and "CALM needs an autoencoder" in outcome.err
    outcome = run("eval", str(folder), *flags, "--thresholds", "1")
    assert outcome.code == 2 and "--thresholds is not for --task restoration" in outcome.err
