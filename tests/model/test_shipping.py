"""Small copies of models of every kind, and the models that came with the package."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.drafter_folders import write_dflash, write_eagle, write_medusa, write_target
from tests.model import checkpoints, seq2seq
from tests.training.runs import byte_tokenizer

import anyorder
from anyorder.cli.model_flags import DEFAULT_MODEL
from anyorder.core import lookup
from anyorder.core.errors import (
    CheckpointError,
    ModelUnavailable,
    UnknownName,
    UnsupportedMethod,
    UserError,
)
from anyorder.model import catalog, shipping
from anyorder.model.calm import load_calm, make_calm
from anyorder.model.calm_autoencoder import AutoencoderSizes, CalmAutoencoder, start
from anyorder.model.checkpoint import open_folder
from anyorder.model.classifier import Classifier, is_classifier, load_classifier, save_classifier
from anyorder.model.drafters.loading import drafter_loader
from anyorder.model.drafters.medusa import NetworkWithHeads
from anyorder.model.loaded import load, load_draft
from anyorder.model.loading import load_network
from anyorder.model.plain_folder import save_plain
from anyorder.model.saving import llama_fields, save_model
from anyorder.model.shipping import pack, shipped_models
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Transformer

ROOT = Path(__file__).parents[2]


def shipped(model: Path, folder: Path) -> Path:
    pack(model, folder, description="a test", licence="MIT")
    return folder


def fields(**changes: object) -> dict[str, object]:
    sizes = llama_fields(
        vocabulary_size=258,
        width=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=48,
        context_length=64,
        tied_embeddings=True,
        end_token=256,
    )
    return {**sizes, **changes}


def decoder(folder: Path) -> Path:
    """A decoder with a tokenizer."""
    tokenizer = byte_tokenizer(folder.with_name("tokenizer"))
    network = Transformer.random(config_of(folder.with_name("config")), seed=1, spread=0.1)
    save_model(folder, network, fields(), tokenizer)
    return folder


def config_of(folder: Path):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields()))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return open_folder(folder)[0]


def weights_of(folder: Path) -> torch.nn.Module:
    return load_network(*open_folder(folder), dtype=torch.float32)


def drafter_of(folder: Path) -> torch.nn.Module:
    target = load(folder.with_name("target"), device="cpu")
    (found,) = load_draft(folder, target).values()
    network = found.network
    return network.further if isinstance(network, NetworkWithHeads) else network


def transformers_folder(folder: Path, case: str) -> Path:
    family = seq2seq if case in seq2seq.FAMILIES else checkpoints
    family.reference(case).save_pretrained(folder)
    return folder


def calm(folder: Path) -> Path:
    sizes = AutoencoderSizes(
        vocab_size=61,
        patch_size=3,
        hidden_size=24,
        intermediate_size=32,
        latent_size=8,
        fill_token_id=0,
    )
    autoencoder = CalmAutoencoder(sizes).requires_grad_(False)
    start(autoencoder.named_parameters(), seed=1)
    own = {"patch_size": 3, "latent_size": 8, "noise_size": 5, "num_mlp_layers": 2}
    nested = {"model_type": "anyorder_calm", "autoencoder": sizes.fields()}
    data = fields(**own, **nested, vocab_size=61)
    save_plain(folder, make_calm(data, autoencoder, seed=2), data, folder)
    return folder


def classifier(folder: Path) -> Path:
    config = config_of(folder.with_name("config"))
    labels = {"yes": 3, "no": 4}
    network = Classifier(config, labels=labels, narrow=8, exits=True).requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(0.0, 0.3)
    save_classifier(folder, network, fields(), folder)
    return folder


def drafter(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_target(folder.with_name("target"))
        return write(folder)

    return make


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], torch.nn.Module]]] = {
    **{
        case: (lambda folder, case=case: transformers_folder(folder, case), weights_of)
        for case in ("gpt2", "gemma3", "mixtral", "bloom", "bart", "t5")
    },
    "medusa": (drafter(write_medusa), drafter_of),
    "eagle": (drafter(write_eagle), drafter_of),
    "dflash": (drafter(write_dflash), drafter_of),
    "calm": (calm, load_calm),
    "classifier": (classifier, load_classifier),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_with_what_8_bits_leave_of_its_weights(kind: str, tmp_path: Path) -> None:
    make, read = KINDS[kind]
    original = make(tmp_path / "original")
    small = shipped(original, tmp_path / "small")
    assert (small / "model.safetensors").stat().st_size < 0.6 * sum(
        path.stat().st_size for path in original.glob("*.safetensors")
    )
    exact, rounded = (dict(read(folder).named_parameters()) for folder in (original, small))
    assert exact.keys() == rounded.keys() and exact
    num_rounded = 0
    for name, weight in exact.items():
        error = (rounded[name] - weight).abs().max()
        assert error <= 0.56 / 127 * weight.abs().max() + 1e-6, name
        num_rounded += bool(error)
    assert num_rounded


def test_a_run_is_packed_with_its_recipe_and_metrics(tmp_path: Path) -> None:
    run = tmp_path / "run"
    decoder(run / "model")
    for step in (3, 12):
        place = run / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        (place / "state.json").write_text(
            json.dumps({"recipe": {"run": {"steps": step, "output": "/x"}}})
        )
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "validation_loss": 1.75}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "small"
    size = pack(run, folder, description="a test", licence="MIT")
    assert size == sum(path.stat().st_size for path in folder.iterdir())
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    assert json.loads((folder / "recipe.json").read_text()) == {"run": {"steps": 12}}
    assert (folder / "metrics.jsonl").read_text() == json.dumps(lines[1]) + "\n"
    network = weights_of(run / "model")
    about = json.loads((folder / "about.json").read_text())
    assert about == {
        "description": "a test",
        "licence": "MIT",
        "num_parameters": sum(p.numel() for p in network.parameters()),
    }
    exact, small = Tokenizer.from_folder(run / "model"), Tokenizer.from_folder(folder)
    assert exact.encode("naïve") == small.encode("naïve")
    assert (folder / "tokenizer.json").read_text("utf-8").count("\n") == 1


def test_whole_numbers_stay(tmp_path: Path) -> None:
    folder, ids = tmp_path / "model", torch.tensor([[1, 300], [2, 70_000]])
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"ids": ids, "weight": torch.ones(2, 2)}, folder / "model.safetensors")
    found = load_file(shipped(folder, tmp_path / "small") / "model.safetensors")
    assert torch.equal(found["ids"], ids) and found["weight"].dtype == torch.int8


def test_quantised_in_memory_it_loses_nothing_more(tmp_path: Path) -> None:
    original = decoder(tmp_path / "decoder")
    small = shipped(original, tmp_path / "small")
    whole, bits = anyorder.Engine(small), anyorder.Engine(small, quantize="int8")
    text = "the same numbers"
    assert bits.score(text).logprobs == pytest.approx(whole.score(text).logprobs, abs=0.02)


def test_fine_tuned_copies_are_whole_again(tmp_path: Path) -> None:
    small = shipped(decoder(tmp_path / "decoder"), tmp_path / "small")
    data = json.loads((small / "config.json").read_text())
    assert data["quantization_config"] == {"quant_method": "anyorder_int8"}
    save_model(tmp_path / "again", weights_of(small), data, small)
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text()
    weights_of(tmp_path / "again")


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    model = decoder(tmp_path / "decoder")
    small = shipped(model, tmp_path / "small")
    for source, target, words in (
        (tmp_path / "none", "x", "there is no folder"),
        (model, "small", "exists already"),
        (small, "x", "is quantised already"),
    ):
        with pytest.raises(UserError, match=words):
            pack(source, tmp_path / target, description="", licence="")
        assert not (tmp_path / "x").exists()
    data = json.loads((small / "config.json").read_text())
    data["quantization_config"] = {"quant_method": "gptq"}
    (small / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="holds quantised safetensors"):
        open_folder(small)


# ------------------------------------------------------------------------------------- by name
@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that came with one model, called small-one."""
    monkeypatch.setattr(shipping, "SHIPPED", tmp_path / "shipped")
    return shipped(decoder(tmp_path / "decoder"), tmp_path / "shipped" / "small-one")


def test_a_shipped_model_is_found_by_name(packaged: Path) -> None:
    found = catalog.resolve("small-one")
    assert (found.kind, found.path, found.name) == ("folder", packaged, "small-one")
    assert catalog.pull("small-one") == packaged
    assert catalog.list_models()[-1] == catalog.show("small-one")
    facts = catalog.show("small-one")
    assert (facts.description, facts.licence, facts.quantization) == ("a test", "MIT", "int8")
    assert facts.path == packaged and facts.num_parameters and facts.context_length == 64
    out = anyorder.Engine("small-one").generate("a", max_new_tokens=3)
    assert out.report.num_new_tokens <= 3
    with pytest.raises(ModelUnavailable, match="came with the package"):
        catalog.remove("small-one")
    with pytest.raises(UnknownName, match="did you mean 'small-one'"):
        catalog.resolve("smal-one")


def test_a_folder_that_is_not_whole_is_no_model(packaged: Path) -> None:
    (packaged.parent / "half").mkdir()
    assert list(shipped_models()) == ["small-one"]


# ------------------------------------------------------------------------------ what is shipped
def test_the_package_stays_small_and_takes_its_models_along() -> None:
    files = [path for path in shipping.SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 32 * 2**20
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["anyorder"]
    package = shipping.SHIPPED.parent
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert packed.issuperset(files)


DRAFTERS = [name for name, folder in shipped_models().items() if drafter_loader(folder)]


@pytest.mark.parametrize("name", [name for name in shipped_models() if name not in DRAFTERS])
def test_every_shipped_model_runs(name: str) -> None:
    folder, facts = shipped_models()[name], catalog.show(name)
    assert facts.description and facts.licence and facts.num_parameters
    assert {"recipe.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}
    if is_classifier(folder):
        (verdict,) = load_classifier(folder).classify([[5, 6, 7]], threshold=0.5)
        assert verdict.num_layers
        return
    engine = anyorder.Engine(name)
    texts = {}
    for method in lookup.names("methods"):
        with contextlib.suppress(UnsupportedMethod):
            texts[method] = engine.generate("It was the", method=method, max_new_tokens=8)
    assert any(out.report.num_new_tokens for out in texts.values()), "no method ran"


@pytest.mark.weights
@pytest.mark.parametrize("name", DRAFTERS)
def test_every_shipped_drafter_drafts(name: str) -> None:
    engine = anyorder.Engine(DEFAULT_MODEL, draft=name)
    out = engine.generate("Once upon a time", method="speculative", max_new_tokens=16)
    assert out.report.mean_accepted_length is not None
