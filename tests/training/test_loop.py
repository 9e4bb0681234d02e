"""The loop: bit-equal resuming, optimizers against torch's, averaged weights, learning rates, stopping, history."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from avila_diffusion.checkpoint.safetensors import TensorFile
from avila_diffusion.errors import Cancelled, FileProblem, NotFinite
from avila_diffusion.training.data import generator, order, read_dataset
from avila_diffusion.training.loop import Trainer, averaged, update_average
from avila_diffusion.training.optimizers import optimize, orthogonalise
from avila_diffusion.training.settings import LoopSettings
from avila_diffusion.training.state import Trained

Make = Callable[..., Any]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with TensorFile(path, mapped=False) as file:
        return {name: file.tensor(name) for name in file.names}


def same(one: Path, other: Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", ["vae", "unet"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_stopped_and_resumed_gives_the_same_bits(
    kind: str, optimizer: str, loop: Make, vae_task: Make, unet_task: Make, tmp_path: Path
) -> None:
    make = vae_task if kind == "vae" else unet_task
    settings = loop(optimizer=optimizer)
    whole = tmp_path / "whole.safetensors"
    list(Trainer(make(settings), settings, tmp_path / "one", whole).run())

    cancel = threading.Event()

    class Stopping:
        """The task, cancelled in its fourth step."""

        def __init__(self, task: Any) -> None:
            self.task = task

        def __getattr__(self, name: str) -> Any:
            return getattr(self.task, name)

        def loss(self, step: int) -> dict[str, torch.Tensor]:
            if step == 3:
                cancel.set()
            losses: dict[str, torch.Tensor] = self.task.loss(step)
            return losses

    parts = tmp_path / "parts.safetensors"
    with pytest.raises(Cancelled, match="after step 4"):
        list(Trainer(Stopping(make(settings)), settings, tmp_path / "two", parts).run(cancel))
    assert not parts.exists()
    list(Trainer(make(settings), settings, tmp_path / "two", parts).run())
    assert same(whole, parts)
    assert same(tmp_path / "one" / "state.safetensors", tmp_path / "two" / "state.safetensors")
    other = tmp_path / "other.safetensors"
    list(Trainer(make(replace(settings, seed=1)), replace(settings, seed=1), tmp_path / "three", other).run())
    assert not same(whole, other)


def test_a_killed_process_goes_on_to_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    """Killed without warning in the middle of a step, by the operating system."""
    config = """
        out = "{out}"
        state = "{state}"
        data = {{ folder = {folder}, size = 32 }}
        model = {{ encoder_channels = [32, 32], decoder_channels = [32, 32] }}
        train = {{ steps = 8, batch = 2, keep_every = 3, sample_every = 99, ema = 0.9 }}
    """
    for name in ("whole", "killed"):
        text = config.format(out=f"{name}.safetensors", state=name, folder=json.dumps(str(pictures)))
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    kill = (
        "import os, sys, avila_diffusion.training.vae as vae; from avila_diffusion.cli import main\n"
        "before = vae.VAETask.loss\n"
        "vae.VAETask.loss = lambda self, step: os._exit(9) if step == 5 else before(self, step)\n"
        "main(['train', 'vae', '-q', '-t', '1', '--config', sys.argv[1]])"
    )
    run = (
        "import sys; from avila_diffusion.cli import main\n"
        "sys.exit(main(['train', 'vae', '-q', '-t', '1', '--config', sys.argv[1]]))"
    )
    codes = [
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{name}.toml")], check=False).returncode
        for name, code in (("killed", kill), ("whole", run), ("killed", run))
    ]
    assert codes == [9, 0, 0]
    assert same(tmp_path / "whole.safetensors", tmp_path / "killed.safetensors")


def test_a_state_of_another_model_is_refused(loop: Make, vae_task: Make, unet_task: Make, tmp_path: Path) -> None:
    settings = loop(steps=1)
    list(Trainer(vae_task(settings), settings, tmp_path / "state", tmp_path / "out.safetensors").run())
    with pytest.raises(FileProblem, match="state of a run with another model"):
        list(Trainer(unet_task(settings), settings, tmp_path / "state", tmp_path / "out.safetensors").run())


def test_a_longer_run_goes_on_from_a_finished_one(loop: Make, vae_task: Make, tmp_path: Path) -> None:
    short, long = loop(steps=3, decay=0.0), loop(steps=6, decay=0.0)
    list(Trainer(vae_task(short), short, tmp_path / "one", tmp_path / "one.safetensors").run())
    list(Trainer(vae_task(long), long, tmp_path / "one", tmp_path / "one.safetensors").run())
    list(Trainer(vae_task(long), long, tmp_path / "two", tmp_path / "two.safetensors").run())
    assert same(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    rows = [json.loads(line) for line in (tmp_path / "one" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert all(row["loss"] > 0 for row in rows)


class Plain:
    """A task of one matrix and one vector, drawn towards fixed values; its layout is not the plain one."""

    fingerprint = "plain"

    def __init__(self) -> None:
        rng = generator(0, 0)
        kernel = torch.randn(8, 6, 3, 3, generator=rng).to(memory_format=torch.channels_last)
        self.parameters = {"kernel": nn.Parameter(kernel), "bias": nn.Parameter(torch.randn(8, generator=rng))}
        self.wanted = [torch.randn(8, 6, 3, 3, generator=rng), torch.randn(8, generator=rng)]
        self.broken_at = -1

    def loss(self, step: int) -> dict[str, torch.Tensor]:
        pairs = zip(self.parameters.values(), self.wanted, strict=True)
        total = torch.stack([(p - wanted).square().sum() for p, wanted in pairs]).sum()
        return {"loss": total * float("nan") if step == self.broken_at else total}

    def sheet(self, path: Path) -> None:
        path.write_text(str(float(self.parameters["bias"].detach()[0])))

    def export(self, path: Path) -> None:
        path.write_text("done")


def test_adamw_is_torchs_with_clipping(loop: Make, tmp_path: Path) -> None:
    settings = loop(steps=5, ema=0.0, weight_decay=0.1, learning_rate=0.02, clip=3.0, warmup=0, decay=0.0)
    ours, theirs = Plain(), Plain()
    list(Trainer(ours, settings, tmp_path / "state", tmp_path / "out").run())
    groups = [
        {"params": [theirs.parameters["kernel"]], "weight_decay": 0.1},
        {"params": [theirs.parameters["bias"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.99))
    before = theirs.parameters["kernel"].detach().clone()
    for step in range(5):
        optimizer.zero_grad()
        torch.autograd.backward(theirs.loss(step)["loss"])
        torch.nn.utils.clip_grad_norm_(list(theirs.parameters.values()), 3.0)
        optimizer.step()
    for name, parameter in theirs.parameters.items():
        torch.testing.assert_close(ours.parameters[name], parameter, rtol=1e-5, atol=1e-6)
    assert float((theirs.parameters["kernel"].detach() - before).abs().max()) > 0.05


def test_muon_turns_by_orthogonal_steps_of_the_stated_size() -> None:
    matrix = torch.randn(3, 24, 40, generator=generator(1, 1))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = torch.nn.functional.cosine_similarity(orthogonalise(matrix).flatten(1), (u @ vh).flatten(1))
    assert float(turned.min()) > 0.97
    settings = LoopSettings(
        steps=1, batch=1, optimizer="muon", learning_rate=0.1, warmup=0, decay=0.0, weight_decay=0.5
    )
    weight = nn.Parameter(torch.zeros(24, 40))
    trained = Trained.begin({"layer.weight": weight}, averaged=False)
    optimize(trained, {"layer.weight": matrix[0]}, 0, settings)
    # a matrix with singular values near 1 has root-mean-square near 1 / sqrt(longer side); times 0.2 sqrt(longer side)
    assert 0.7 * 0.1 * 0.2 < float(weight.detach().square().mean().sqrt()) < 1.3 * 0.1 * 0.2


def test_muon_leaves_tables_and_vectors_to_adamw() -> None:
    settings = LoopSettings(
        steps=1, batch=1, optimizer="muon", learning_rate=0.1, warmup=0, decay=0.0, weight_decay=0.0
    )
    weights = {name: nn.Parameter(torch.zeros(4, 4)) for name in ("token_embedding.weight", "to_q.weight")}
    trained = Trained.begin({**weights, "bias": nn.Parameter(torch.zeros(4))}, averaged=False)
    values = (torch.diag(torch.tensor([1.0, 2, 3, 4])), torch.eye(4), torch.ones(4))
    gradients = dict(zip(trained.weight, values, strict=True))
    optimize(trained, gradients, 0, settings)
    table = weights["token_embedding.weight"].detach()
    torch.testing.assert_close(table, -0.1 * torch.eye(4), rtol=1e-5, atol=1e-6)
    assert float(trained.square["to_q.weight"].abs().max()) == 0
    assert float(trained.square["bias"].min()) > 0


def test_the_average_is_that_of_diffusers() -> None:
    weight = nn.Parameter(torch.zeros(5))
    trained = Trained.begin({"w": weight}, averaged=True)
    theirs = EMAModel([weight], decay=0.95)
    for step in range(40):
        with torch.no_grad():
            weight.copy_(torch.randn(5, generator=generator(2, step)))
        update_average(trained, step, 0.95)
        theirs.step([weight])
    shifted = Trained.begin({"w": nn.Parameter(torch.zeros(5))}, averaged=True)
    for step in range(40):
        with torch.no_grad():
            shifted.weight["w"].copy_(torch.randn(5, generator=generator(2, step)))
        if step:  # theirs takes the first weights as they are, and then has the same decays
            update_average(shifted, step, 0.95)
        else:
            shifted.average["w"].copy_(shifted.weight["w"])
    torch.testing.assert_close(theirs.shadow_params[0], shifted.average["w"])
    before = weight.detach().clone()
    with averaged(trained):
        assert torch.equal(weight, trained.average["w"])
    assert torch.equal(weight, before)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = LoopSettings(steps=100, batch=1, learning_rate=2.0, warmup=10, decay=0.2)
    assert [settings.rate(step) for step in (0, 4, 9, 50, 80, 90, 99)] == pytest.approx([0.2, 1, 2, 2, 2, 1, 0.1])


def test_a_loss_that_is_no_number_leaves_the_kept_state_alone(loop: Make, tmp_path: Path) -> None:
    settings, task = loop(steps=5, keep_every=2), Plain()
    task.broken_at = 3
    with pytest.raises(NotFinite, match="not finite at step 4"):
        list(Trainer(task, settings, tmp_path / "state", tmp_path / "out").run())
    with TensorFile(tmp_path / "state" / "state.safetensors") as file:
        assert file.header.metadata["step"] == "2"
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_share_a_state_folder(loop: Make, tmp_path: Path) -> None:
    settings = loop(steps=40)
    one = Trainer(Plain(), settings, tmp_path / "state", tmp_path / "out").run()
    next(one)
    with pytest.raises(FileProblem, match="another run is using"):
        list(Trainer(Plain(), settings, tmp_path / "state", tmp_path / "out").run())
    assert list(one)[-1].step == 40
    list(Trainer(Plain(), settings, tmp_path / "state", tmp_path / "out").run())


@pytest.mark.parametrize("damage", [b"", b"12345678", b"\xff" * 400])
def test_a_damaged_state_is_said_to_be_one(loop: Make, tmp_path: Path, damage: bytes) -> None:
    settings = loop(steps=2)
    list(Trainer(Plain(), settings, tmp_path / "state", tmp_path / "out").run())
    (tmp_path / "state" / "state.safetensors").write_bytes(damage)
    with pytest.raises(FileProblem, match=r"damaged; delete .*state to begin anew"):
        list(Trainer(Plain(), settings, tmp_path / "state", tmp_path / "out").run())


def test_a_torn_history_costs_its_tail_only(loop: Make, tmp_path: Path) -> None:
    list(Trainer(Plain(), loop(steps=40), tmp_path / "state", tmp_path / "out").run())
    path = tmp_path / "state" / "history.jsonl"
    path.write_text(path.read_text()[:-10])
    list(Trainer(Plain(), loop(steps=60), tmp_path / "state", tmp_path / "out").run())
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [20, 60]


def test_an_average_that_comes_later_begins_as_the_weights(loop: Make, tmp_path: Path) -> None:
    list(Trainer(Plain(), loop(steps=3, ema=0.0), tmp_path / "state", tmp_path / "out").run())
    task = Plain()
    list(Trainer(task, loop(steps=4, ema=0.9), tmp_path / "state", tmp_path / "out").run())
    kept = tensors(tmp_path / "state" / "state.safetensors")
    assert float((kept["average.kernel"] - kept["weight.kernel"]).abs().max()) < 0.1


@pytest.mark.parametrize("change", [{"optimizer": "muon"}, {"size": 40}])
def test_a_run_with_another_optimizer_or_other_data_is_refused(
    loop: Make, vae_task: Make, pictures: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = loop(steps=1)
    list(Trainer(vae_task(settings), settings, tmp_path / "state", tmp_path / "out.safetensors").run())
    other = loop(steps=2, **{name: value for name, value in change.items() if name == "optimizer"})
    task = vae_task(other)
    task.data = read_dataset(pictures, change.get("size", 32))
    with pytest.raises(FileProblem, match="another model, optimizer or data"):
        list(Trainer(task, other, tmp_path / "state", tmp_path / "out.safetensors").run())


def test_the_time_limit_keeps_the_state(loop: Make, tmp_path: Path) -> None:
    settings = loop(steps=10**9, minutes=0.002)
    list(Trainer(Plain(), settings, tmp_path / "state", tmp_path / "out").run())
    assert (tmp_path / "state" / "state.safetensors").exists()
    assert (tmp_path / "out").read_text() == "done"


def test_every_item_comes_equally_often_and_by_step_alone() -> None:
    seen = [index for step in range(15) for index in order(10, 4, step, seed=3)]
    assert all(seen.count(index) == 6 for index in range(10))
    assert order(10, 4, 7, seed=3) == order(10, 4, 7, seed=3) != order(10, 4, 7, seed=4)
    assert len(set(seen[:10])) == 10
    assert seen[:10] != seen[10:20]
