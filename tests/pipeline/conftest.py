"""diffusers' networks with the weights of a tiny checkpoint, and its way through them, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from avila_diffusion.checkpoint.keys import unet_from_diffusers, vae_from_diffusers
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.device import choose_policy
from avila_diffusion.pipeline import run as run_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.latents import decode
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress
from avila_diffusion.sampling.denoiser import Cond, Denoiser
from avila_diffusion.text.tokenizer import clip_tokenizer

ATTENTION = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 64, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 64, "attention_head_dim": [1, 2], "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 128,
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 64 + 6 * 16,
    },
    "sdxl_refiner": {
        "cross_attention_dim": 64,
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 64 + 5 * 16,
    },
}
TOWERS = {
    "sd1": (("cond_stage_model.transformer.", "quick_gelu"),),
    "sd2": (("cond_stage_model.model.", "gelu"),),
    "sdxl": (("conditioner.embedders.0.transformer.", "quick_gelu"), ("conditioner.embedders.1.model.", "gelu")),
    "sdxl_refiner": (("conditioner.embedders.0.model.", "gelu"),),
}
State = dict[str, Tensor]


def _under(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _transformers_names(state: State) -> State:
    """An OpenCLIP tower under transformers' names."""
    if "token_embedding.weight" not in state:
        return state
    head = "text_model."
    theirs = {
        f"{head}embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{head}embeddings.position_embedding.weight": state["positional_embedding"],
        f"{head}final_layer_norm.weight": state["ln_final.weight"],
        f"{head}final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    index = 0
    while f"transformer.resblocks.{index}.ln_1.weight" in state:
        ours, mine = f"transformer.resblocks.{index}.", f"{head}encoder.layers.{index}."
        for leaf in ("weight", "bias"):
            for part, tensor in zip("qkv", state[f"{ours}attn.in_proj_{leaf}"].chunk(3), strict=True):
                theirs[f"{mine}self_attn.{part}_proj.{leaf}"] = tensor
            for name, translated in names.items():
                theirs[f"{mine}{translated}.{leaf}"] = state[f"{ours}{name}.{leaf}"]
        index += 1
    return theirs


@dataclass(frozen=True, eq=False)
class Reference:
    """The independent implementation of a tiny model."""

    family: str
    unet: Any
    vae: Any
    towers: tuple[Any, ...]

    @torch.no_grad()
    def context(self, text: str) -> tuple[Tensor, Tensor | None]:
        """What the family takes from its towers, by the rules of diffusers' pipelines."""
        hidden, pooled = [], None
        for index, tower in enumerate(self.towers):
            last = index == len(self.towers) - 1
            pad = 49407 if self.family == "sd1" or (self.family == "sdxl" and index == 0) else 0
            tokens = torch.tensor([clip_tokenizer().encode_padded(text, pad=pad)])
            out = tower(tokens, output_hidden_states=True)
            if self.family == "sd1":
                hidden.append(out.last_hidden_state)
            elif self.family == "sd2":
                hidden.append(tower.text_model.final_layer_norm(out.hidden_states[-2]))
            else:
                hidden.append(out.hidden_states[-2])
                pooled = out.text_embeds if last else None
        return torch.cat(hidden, dim=-1), pooled

    @torch.no_grad()
    def predict(self, x: Tensor, t: float, context: Tensor, pooled: Tensor | None, ids: list[float]) -> Tensor:
        """The UNet's output for x (1, 4, h, w), already scaled."""
        extra = {}
        if pooled is not None:
            extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.tensor([ids])}
        return self.unet(x, torch.tensor([t], dtype=torch.float64), context, **extra).sample


class MakeReference(Protocol):
    """change: as that of `MakeEngine`."""

    def __call__(self, family: str, change: Callable[[State], None] | None = None) -> Reference: ...


@pytest.fixture
def reference(tiny_state: Callable[[str], State]) -> MakeReference:
    def make(family: str, change: Callable[[State], None] | None = None) -> Reference:
        state = tiny_state(family)
        if change is None:
            state = {name: tensor.half() for name, tensor in state.items()}  # as they come back from the file
        else:
            change(state)
        state = {name: tensor.double() for name, tensor in state.items()}
        unet: Any = UNet2DConditionModel(
            in_channels=state["model.diffusion_model.input_blocks.0.0.weight"].shape[1],
            block_out_channels=(64, 128),
            layers_per_block=1,
            down_block_types=(ATTENTION[0],) * 2,
            up_block_types=(ATTENTION[1],) * 2,
            time_embedding_dim=128,
            **UNETS[family],
        )
        _load(unet, _under(state, "model.diffusion_model."), unet_from_diffusers(unet.state_dict()))
        vae: Any = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        _load(vae, _under(state, "first_stage_model."), vae_from_diffusers(vae.state_dict()))
        towers = []
        for prefix, activation in TOWERS[family]:
            config = CLIPTextConfig(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=1,
                projection_dim=64,
                hidden_act=activation,
                eos_token_id=49407,
                bos_token_id=49406,
            )
            tower: Any = CLIPTextModelWithProjection(config)
            weights = _transformers_names(_under(state, prefix))
            weights.setdefault("text_projection.weight", torch.eye(64, dtype=torch.float64))
            tower.double().load_state_dict(weights, strict=False)
            towers.append(tower.eval())
        return Reference(family, unet, vae, tuple(towers))

    return make


def _load(model: Any, ours: State, names: dict[str, str]) -> None:
    shapes = model.state_dict()
    state = {theirs: ours[name].reshape(shapes[theirs].shape) for name, theirs in names.items()}
    model.double().load_state_dict(state)
    model.eval().requires_grad_(False)


@pytest.fixture
def model_path(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    return tiny_checkpoint


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only lose by a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of files of these tests are not remembered on this machine."""
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))


class MakeEngine(Protocol):
    """change: what is done to the tensors before they are written, in float32; without it they are float16."""

    def __call__(
        self,
        family: str = "sd1",
        change: Callable[[State], None] | None = None,
        dtype: str = "float32",
        **metadata: str,
    ) -> ModelEngine: ...


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Model]:
    """The tiny model of a family, loaded once."""
    return cache(lambda family: load_model(tiny_checkpoint(family)))


@pytest.fixture
def make_engine(tmp_path: Path, tiny_state: Callable[[str], State], tiny_model: Callable[[str], Model]) -> MakeEngine:
    """Engines of tiny models, as they are or changed; `avila.` is put before the names of metadata."""

    def make(
        family: str = "sd1",
        change: Callable[[State], None] | None = None,
        dtype: str = "float32",
        **metadata: str,
    ) -> ModelEngine:
        policy = choose_policy("cpu", dtype)
        if change is None and not metadata:
            return ModelEngine.of(tiny_model(family), policy)
        state = tiny_state(family)
        if change is not None:
            change(state)
        path = tmp_path / "changed.safetensors"
        told = {"size": "64", "family": family, **metadata}
        write_safetensors(path, state, {f"avila.{name}": value for name, value in told.items()})
        return ModelEngine.of(load_model(path), policy)

    return make


@pytest.fixture
def finish() -> Callable[[Iterator[Progress | GenerateResult]], GenerateResult]:
    """Runs a run to its end."""

    def finish(run: Iterator[Progress | GenerateResult]) -> GenerateResult:
        *events, result = run
        assert all(isinstance(event, Progress) for event in events)
        assert isinstance(result, GenerateResult)
        return result

    return finish


@pytest.fixture
def latents_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModelEngine, GenerateRequest], list[Tensor]]:
    """The latents that a run hands to the decoder."""

    def run(engine: ModelEngine, request: GenerateRequest) -> list[Tensor]:
        kept: list[Tensor] = []

        def keep(vae: Any, x: Tensor, *rest: Any) -> Tensor:
            kept.append(x)
            return decode(vae, x, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(run_module, "decode", keep)
            list(engine.generate(request))
        return kept

    return run


@pytest.fixture
def concats(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What networks are given beside latents, call by call."""
    seen: list[Tensor] = []
    right = Denoiser.predict

    def predict(self: Denoiser, x: Tensor, sigma: float, conds: list[Cond]) -> list[Tensor]:
        seen.extend(cond.concat for cond in conds[:1] if cond.concat is not None)
        return right(self, x, sigma, conds)

    monkeypatch.setattr(Denoiser, "predict", predict)
    return seen
