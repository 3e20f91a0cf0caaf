"""LoRA and DoRA against PEFT; what is trained, kept and written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.model.checkpoints import random_ids, reference, save
from tests.training.runs import byte_tokenizer, memory_data, small_recipe

import anyorder
from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import load
from anyorder.model.loading import load_network
from anyorder.model.transformer import Transformer
from anyorder.training.adapters import adapt, adapted, merged, save_adapter
from anyorder.training.config import build_recipe
from anyorder.training.metrics import read_metrics
from anyorder.training.sections import AdapterRecipe
from anyorder.training.trainer import Trainer

NO_SIZES: dict[str, Any] = dict.fromkeys(
    ("width", "layers", "heads", "kv_heads", "mlp_width", "context")
)


def adapted_network(folder: Path, recipe: AdapterRecipe) -> Transformer:
    """The folder's network with adapters that do something."""
    config, source = open_folder(folder)
    network = load_network(config, source, dtype=torch.float32)
    adapt(network, recipe, seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, module in adapted(network):
            for up in module.up:
                up.normal_(0.0, 0.2, generator=rng)
            if module.length is not None:
                scales = torch.empty_like(module.length).uniform_(0.5, 1.5, generator=rng)
                module.length.mul_(scales)
    return network


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("case", ["llama-biased", "gpt2", "gpt_neox"])
def test_peft_reads_what_is_written_and_computes_the_same(
    tmp_path: Path, case: str, dora: bool
) -> None:
    import peft

    recipe = AdapterRecipe(rank=4, alpha=6.0, dora=dora)
    folder = save(reference(case), tmp_path / "base")
    network = adapted_network(folder, recipe)
    save_adapter(
        tmp_path / "adapter", network, recipe, str(folder), byte_tokenizer(tmp_path / "words")
    )
    theirs = peft.PeftModel.from_pretrained(
        copy.deepcopy(reference(case)), tmp_path / "adapter", is_trainable=True
    )
    ids = random_ids(2, 11)
    logits = theirs(ids).logits
    ours = network.logits(network.hidden(dense_batch(ids))).view_as(logits)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    for result in (ours, logits):
        (result * weights).sum().backward()
    name = {
        "llama-biased": "model.layers.1.self_attn.o_proj",
        "gpt2": "transformer.h.1.attn.c_proj",
    }
    name["gpt_neox"] = "gpt_neox.layers.1.attention.dense"
    theirs_at = theirs.base_model.model.get_submodule(name[case])
    module = network.get_submodule("layers.1.attention.out")
    pairs = [
        (module.down[0], theirs_at.lora_A["default"].weight),
        (module.up[0], theirs_at.lora_B["default"].weight),
    ]
    if dora:
        pairs.append((module.length, theirs_at.lora_magnitude_vector["default"].weight))
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
        scale = float(other.grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("dora", [False, True])
def test_merged_and_as_the_formulas_say(tmp_path: Path, dora: bool) -> None:
    recipe = AdapterRecipe(rank=2, alpha=3.0, dora=dora)
    network = adapted_network(save(reference("llama"), tmp_path / "base"), recipe)
    ids = random_ids(1, 9)
    whole = merged(network)
    assert not list(adapted(whole)) and list(adapted(network))
    with torch.no_grad():
        torch.testing.assert_close(
            whole.logits(whole.hidden(dense_batch(ids))),
            network.logits(network.hidden(dense_batch(ids))),
            rtol=1e-4,
            atol=1e-4,
        )
    for name, module in adapted(network):
        starts = [0, *torch.tensor(module.rows).cumsum(0).tolist()]
        for index, (up, down) in enumerate(zip(module.up, module.down, strict=True)):
            rows = slice(starts[index], starts[index + 1])
            weight = module.base.weight[rows] + 1.5 * up @ down
            if module.length is not None:
                weight = F.normalize(weight, dim=1) * module.length[rows, None]
            torch.testing.assert_close(whole.get_submodule(name).weight[rows], weight)


def test_at_first_an_adapter_changes_nothing(tmp_path: Path) -> None:
    config, source = open_folder(save(reference("llama"), tmp_path / "base"))
    ids = random_ids(1, 9)
    for dora in (False, True):
        network = load_network(config, source, dtype=torch.float32)
        before = network.hidden(dense_batch(ids))
        adapt(network, AdapterRecipe(dora=dora), seed=0)
        torch.testing.assert_close(network.hidden(dense_batch(ids)), before)


@pytest.mark.parametrize("targets", ["attention", "mlp", "all"])
def test_targets(tmp_path: Path, targets: Any) -> None:
    config, source = open_folder(save(reference("llama"), tmp_path / "base"))
    network = load_network(config, source, dtype=torch.float32)
    adapt(network, AdapterRecipe(targets=targets), seed=0)
    names = {name.split(".", 2)[2] for name, _ in adapted(network)}
    attention, mlp = {"attention.qkv", "attention.out"}, {"mlp.gate_up", "mlp.down"}
    assert names == {"attention": attention, "mlp": mlp, "all": attention | mlp}[targets]
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained and all(".up." in name or ".down." in name for name in trained)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Trainer(small_recipe(tmp_path / "base"), data=memory_data(tmp_path)).run()


def tune(folder: Path, name: str, base: Path, **changes: Any) -> Trainer:
    changes = {"model": {**NO_SIZES, "init": str(base)}, "data": {"vocabulary": None}, **changes}
    return Trainer(small_recipe(folder / name, **changes), data=memory_data(folder))


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_a_run_trains_keeps_and_resumes_adapters_alone(
    tmp_path: Path, base: Path, export: str
) -> None:
    adapter = {"rank": 2, "dora": True, "export": export}
    run = {"ema": 0.5, "steps": 6, "checkpoint_every": 3}
    trainer = tune(tmp_path, "tuned", base, adapter=adapter, run=run)
    trained = dict(trainer._passes.parameters())
    # Queries, keys, values; output; gate and up; down: two matrices each, and lengths.
    assert len(trained) == 2 * ((3 + 1 + 2 + 1) * 2 + 4)
    folder = trainer.run()
    place = tmp_path / "tuned" / "checkpoints" / "step-00000006"
    assert set(load_file(place / "weights.safetensors")) == set(trained)
    before = load_file(base / "model.safetensors")
    network = trainer._passes.trainee.network
    assert torch.equal(network.embedding.weight, before["model.embed_tokens.weight"])

    def stop(metrics: Any) -> None:
        if metrics.step == 4:
            raise KeyboardInterrupt

    halted = tune(tmp_path, "halted", base, adapter=adapter, run=run)
    halted._watch = stop
    with pytest.raises(KeyboardInterrupt):
        halted.run()
    again = tune(tmp_path, "halted", base, adapter=adapter, run=run)
    assert again.step == 3
    again.run()
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("tuned", "halted")]
    assert [x["loss"] for x in lines[0]] == [x["loss"] for x in lines[1]]
    if export == "merged":
        after = load_file(folder / "model.safetensors")
        assert set(after) == set(before)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all("_proj" in name for name in changed)
        assert anyorder.Engine(str(folder), dtype="float32").generate("a", max_new_tokens=2).tokens
    else:
        assert {path.name for path in folder.iterdir()} >= {
            "adapter_model.safetensors",
            "adapter_config.json",
            "tokenizer.json",
        }
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base) and config["use_dora"]
    ids = random_ids(1, 9) % 50
    found, plain = (load(path, dtype="float32", device="cpu").network for path in (folder, base))
    logits, before_it = (
        each.logits(each.hidden(dense_batch(ids), None)) for each in (found, plain)
    )
    assert not torch.allclose(logits, before_it, atol=1e-4)


def test_adapters_need_a_model_to_fine_tune(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\[adapter\] needs a model to fine-tune"):
        small_recipe(tmp_path, adapter={"rank": 2})
    recipe = small_recipe(
        tmp_path,
        model={**NO_SIZES, "init": "x"},
        data={"vocabulary": None},
        adapter={"rank": 2},
    )
    assert recipe.adapter == AdapterRecipe(rank=2)
    assert build_recipe(recipe.fields()) == recipe
