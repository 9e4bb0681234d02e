"""What a model is, told from names, shapes, small tensors and metadata; `inspect`, which says it without loading."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from avila_diffusion.checkpoint.detect import detect
from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.checkpoint.keys import count_numbers
from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.parts import gather
from avila_diffusion.checkpoint.shapes import read_unet_config
from avila_diffusion.config import Defaults, ModelSpec, TransformerConfig, UNetBlockConfig, UNetConfig
from avila_diffusion.errors import HeaderError, PickleRefused, RequestError, Unsupported, WeightMismatch
from avila_diffusion.models.unet import UNet
from avila_diffusion.sampling.schedules import NoiseTable

Shapes = dict[str, tuple[int, ...]]
USUAL = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
V_NORM = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture
def spec_of(write_values: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[ModelSpec, Any]]:
    """The spec and the report of a file of these shapes, values and metadata."""

    def read(shapes: Shapes, prediction: str | None = None, metadata: Any = None, **values: torch.Tensor) -> Any:
        path = write_values(tmp_path / "model.safetensors", shapes, values, metadata)
        parts = gather(path)
        return detect(parts, prediction)[0], parts.report

    return read


def decided(report: Any, what: str) -> list[tuple[str, str]]:
    return [(decision.value, decision.reason) for decision in report.decisions if decision.what == what]


# --- the UNet's architecture from shapes


def shapes_of(config: UNetConfig) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in build(lambda: UNet(config)).named_parameters()}


@st.composite
def unets(draw: st.DrawFn) -> UNetConfig:
    """Any UNet of rows that fit together: levels, depths, attention or none, text-only attention, middle or none."""
    widths = st.sampled_from((32, 64, 96))
    context = draw(st.sampled_from((40, 48, 80)))  # never a width, or attention over text could not be told from self

    def transformer() -> TransformerConfig | None:
        depth = draw(st.integers(0, 2))
        return TransformerConfig(depth=depth, heads=1, self_attention=draw(st.booleans())) if depth else None

    width = draw(widths)
    inputs = [UNetBlockConfig(in_channels=draw(st.sampled_from((4, 5, 9))), out_channels=width, residual=False)]
    skips = [width]
    levels = draw(st.integers(1, 3))
    for level in range(levels):
        out = draw(widths)
        for _ in range(draw(st.integers(1, 2))):
            inputs.append(UNetBlockConfig(in_channels=width, out_channels=out, transformer=transformer()))
            width = out
            skips.append(width)
        if level < levels - 1:
            inputs.append(UNetBlockConfig(in_channels=width, out_channels=width, residual=False, resample="down"))
            skips.append(width)
    middle = None
    if draw(st.booleans()):
        out = draw(widths)
        middle = UNetBlockConfig(in_channels=width, out_channels=out, transformer=transformer())
        width = out
    ups = draw(st.sets(st.integers(0, len(skips) - 2), min_size=levels - 1, max_size=levels - 1))
    outputs = []
    for index in range(len(skips)):
        out = draw(widths)
        up: Any = "up" if index in ups else "none"
        outputs.append(
            UNetBlockConfig(in_channels=width + skips.pop(), out_channels=out, transformer=transformer(), resample=up)
        )
        width = out
    attention = any(row is not None and row.transformer for row in (*inputs, middle, *outputs))
    assume(attention)
    return UNetConfig(
        in_channels=inputs[0].in_channels,
        out_channels=4,
        model_channels=draw(st.sampled_from((32, 64))),
        embed_channels=draw(st.sampled_from((32, 128))),
        context_channels=context,
        input_blocks=tuple(inputs),
        middle=middle,
        output_blocks=tuple(outputs),
        linear_projection=draw(st.booleans()),
        adm_channels=draw(st.sampled_from((None, 100))),
        guidance_channels=draw(st.sampled_from((None, 24))),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(unets())
def test_a_unet_is_read_back_from_its_shapes(config: UNetConfig) -> None:
    assert read_unet_config(shapes_of(config), lambda channels: 1) == config


def test_whether_the_first_attention_reads_the_text_is_read_block_by_block() -> None:
    """SDXS: no self-attention at the first level; there attn1 has keys as wide as the text."""
    own = TransformerConfig(depth=1, heads=1)
    rows = [
        UNetBlockConfig(in_channels=32, out_channels=32, transformer=replace(own, self_attention=False)),
        UNetBlockConfig(in_channels=32, out_channels=64, transformer=own),
    ]
    config = UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=32,
        embed_channels=64,
        context_channels=48,
        input_blocks=(UNetBlockConfig(in_channels=4, out_channels=32, residual=False), *rows),
        middle=None,
        output_blocks=tuple(UNetBlockConfig(in_channels=n, out_channels=32, transformer=None) for n in (128, 64, 64)),
    )
    shapes = shapes_of(config)
    assert shapes["input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"] == (32, 48)
    assert shapes["input_blocks.2.1.transformer_blocks.0.attn1.to_k.weight"] == (64, 64)
    assert read_unet_config(shapes, lambda channels: 1) == config


def drop(shapes: Shapes, *prefixes: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize("kind", ["ssd_1b", "koala"])
def test_pruned_sdxl(kind: str, manifest: Any, spec_of: Any) -> None:
    """SSD-1B and Vega keep one residual block of the middle, KOALA nothing; all are SDXL by their text and vector."""
    unet = "model.diffusion_model."
    shapes = manifest("sdxl_base")
    left = {name: shape for name, shape in shapes.items() if ".transformer_blocks.9." not in name}
    left = drop(left, f"{unet}middle_block.1.", f"{unet}middle_block.2.")
    left = drop(left, f"{unet}middle_block.") if kind == "koala" else left
    spec, report = spec_of(left)
    assert (spec.family, spec.size, report.unknown) == ("sdxl", 1024, [])
    assert max(row.transformer.depth for row in spec.unet.input_blocks if row.transformer) == 9
    if kind == "koala":
        assert spec.unet.middle is None
    else:
        assert spec.unet.middle == UNetBlockConfig(in_channels=1280, out_channels=1280)
    assert [row.transformer.heads for row in spec.unet.input_blocks if row.transformer] == [10, 10, 20, 20]


def test_heads(manifest: Any, spec_of: Any, tiny: Any) -> None:
    def heads(spec: ModelSpec) -> set[tuple[int, int]]:
        return {(row.out_channels, row.transformer.heads) for row in spec.unet.input_blocks if row.transformer}

    assert heads(spec_of(manifest("sd1"))[0]) == {(320, 8), (640, 8), (1280, 8)}
    assert heads(spec_of(manifest("sd2"))[0]) == {(320, 5), (640, 10), (1280, 20)}
    assert [spec.config.heads for spec in spec_of(manifest("sdxl_base"))[0].text] == [12, 20]
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny("sd1").items()}
    assert heads(spec_of(shapes)[0]) == {(64, 8), (128, 8)}
    assert heads(spec_of(shapes, metadata={"avila.unet_heads": "4"})[0]) == {(64, 4), (128, 4)}
    assert heads(spec_of(shapes, metadata={"avila.unet_head_channels": "16"})[0]) == {(64, 4), (128, 8)}
    assert spec_of(shapes, metadata={"avila.text_heads": "4"})[0].text[0].config.heads == 4
    assert spec_of(shapes, metadata={"avila.text_activation": "gelu"})[0].text[0].config.activation == "gelu"
    with pytest.raises(WeightMismatch, match=r"avila\.unet_heads"):
        spec_of(shapes, metadata={"avila.unet_heads": "7"})
    with pytest.raises(WeightMismatch, match=r"avila\.text_heads"):
        spec_of(shapes, metadata={"avila.text_heads": "7"})
    with pytest.raises(Unsupported, match="'relu'"):
        spec_of(shapes, metadata={"avila.text_activation": "relu"})


def test_what_is_taken_from_the_towers(manifest: Any, spec_of: Any) -> None:
    def taken(name: str) -> list[tuple[Any, ...]]:
        return [
            (t.skip, t.final_norm, t.clip_skip, t.pooled, t.pad, t.config.activation)
            for t in spec_of(manifest(name))[0].text
        ]

    assert taken("sd1") == [(1, True, True, False, 49407, "quick_gelu")]
    assert taken("sd2") == [(2, True, False, False, 0, "gelu")]
    assert taken("sdxl_base") == [
        (2, False, False, False, 49407, "quick_gelu"),
        (2, False, False, True, 0, "gelu"),
    ]
    assert taken("sdxl_refiner") == [(2, False, False, True, 0, "gelu")]
    base, refiner = (spec_of(manifest(name))[0] for name in ("sdxl_base", "sdxl_refiner"))
    assert (base.adm, base.size_channels, base.unet.adm_channels) == ("sizes", 256, 2816)
    assert (refiner.adm, refiner.size_channels, refiner.unet.adm_channels) == ("aesthetic", 256, 2560)


# --- kin without a pipeline


def test_kin_without_a_pipeline_are_named(manifest: Any, spec_of: Any, micro: Shapes) -> None:
    unet = "model.diffusion_model."
    unclip = manifest("sd2") | {f"{unet}label_emb.0.0.weight": (1280, 2048)}
    with pytest.raises(Unsupported, match="unCLIP"):
        spec_of(unclip)
    seven = micro | {f"{unet}input_blocks.0.0.weight": (32, 7, 3, 3)}
    with pytest.raises(Unsupported, match="takes 7 channels and gives 4"):
        spec_of(seven)
    for name in ("out.2.scale_weight", "scaled_fp8", "out.2.weight.absmax"):
        with pytest.raises(Unsupported, match="quantized"):
            spec_of(micro | {unet + name: (1,)})


def test_networks_that_do_not_fit_each_other(micro: Shapes, spec_of: Any) -> None:
    wide = {n: (s[0], 48) if "attn2.to_k" in n or "attn2.to_v" in n else s for n, s in micro.items()}
    with pytest.raises(WeightMismatch, match=r"64 wide, the UNet's cross-attention wants 48; give .* --text-encoder"):
        spec_of(wide)
    sixteen = {
        "first_stage_model.post_quant_conv.weight": (4, 16, 1, 1),
    }
    with pytest.raises(WeightMismatch, match=r"VAE's latents have 16 channels, the UNet gives 4; .* --vae"):
        spec_of(micro | sixteen)
    rows = drop(micro, "model.diffusion_model.output_blocks.2.")
    with pytest.raises(WeightMismatch, match="3 input_blocks and 2 output_blocks"):
        spec_of(rows)
    narrow = micro | {"model.diffusion_model.output_blocks.1.0.in_layers.2.weight": (32, 96, 3, 3)}
    with pytest.raises(WeightMismatch, match=r"output_blocks\.1 takes 96 channels; 64 come to it"):
        spec_of(narrow)
    table = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    with pytest.raises(WeightMismatch, match=r"32,005 tokens in 77 places; .*--text-encoder"):
        spec_of(micro | {table: (32005, 64)})


# --- prediction and training noise


def test_prediction_in_its_order_of_precedence(micro: Shapes, spec_of: Any) -> None:
    """Each source alone, and against all that come after it, which say otherwise."""
    metadata: list[tuple[str, str, str]] = [
        ("avila.prediction", "v", "epsilon"),
        ("modelspec.prediction_type", "v", "epsilon"),
        ("modelspec.predict_key", "v", "epsilon"),
        ("ss_v_parameterization", "True", "False"),
    ]
    marker = {"v_pred": torch.zeros(0)}
    for index, (key, yes, no) in enumerate(metadata):
        later = {other: no_ for other, _, no_ in metadata[index + 1 :]}
        spec, report = spec_of(micro, metadata={key: yes, **later})
        assert spec.noise.prediction == report.prediction == "v", key
        assert decided(report, "prediction") == [("v", f"metadata {key}")]
        if no == "epsilon":
            spec, report = spec_of(micro, metadata={key: no, **{o: y for o, y, _ in metadata[index + 1 :]}}, **marker)
            assert decided(report, "prediction") == [("epsilon", f"metadata {key}")]
    everything = {key: no for key, _, no in metadata}
    assert spec_of(micro, "v", everything)[0].noise.prediction == "v"
    assert spec_of(micro, "V_prediction", everything)[0].noise.prediction == "v"
    assert spec_of(micro, "epsilon", None, **marker)[0].noise.prediction == "epsilon"
    assert spec_of(micro, "edm")[0].noise.prediction == "edm"
    assert spec_of(micro)[0].noise.prediction == "epsilon"
    assert spec_of(micro, metadata={"modelspec.prediction_type": "a secret"})[0].noise.prediction == "epsilon"
    with pytest.raises(RequestError, match="'banana' is unknown; it is epsilon, v or edm"):
        spec_of(micro, "banana")


def test_v_marker(micro: Shapes, spec_of: Any) -> None:
    spec, report = spec_of(micro, v_pred=torch.zeros(0))
    assert spec.noise.prediction == "v"
    assert not spec.noise.zero_terminal_snr
    assert report.unknown == []
    assert list(report.ignored) == ["v_pred"]


def test_playground(micro: Shapes, spec_of: Any) -> None:
    values = {"edm_mean": torch.tensor([[-1.6], [1.2], [0.3], [-2.0]]), "edm_std": torch.tensor([8.4, 5.5, 6.6, 5.2])}
    spec, report = spec_of(micro, v_pred=torch.zeros(0), **{k: v.view(1, 4, 1, 1) for k, v in values.items()})
    noise = spec.noise
    assert (noise.prediction, noise.continuous, noise.sigma_data) == ("edm", True, 0.5)
    assert (noise.edm_sigma_min, noise.edm_sigma_max) == (0.002, 80.0)
    assert spec.latent.scale == 0.5
    assert spec.latent.mean == pytest.approx((-1.6, 1.2, 0.3, -2.0))
    assert spec.latent.std == pytest.approx((8.4, 5.5, 6.6, 5.2))
    assert set(report.ignored) == {"edm_mean", "edm_std", "v_pred"}
    NoiseTable.from_config(noise)
    for damaged in (torch.ones(3), torch.full((4,), float("nan")), torch.zeros(4), torch.ones(4, dtype=torch.int32)):
        spec, report = spec_of(micro, edm_mean=torch.ones(4), edm_std=damaged)
        assert spec.latent.mean is None
        assert "damaged" in decided(report, "latent mean")[0][1]


def test_cosxl(micro: Shapes, spec_of: Any) -> None:
    both = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor([0.002])}
    spec, _ = spec_of(micro, **both)
    noise = spec.noise
    assert (noise.prediction, noise.continuous, noise.sigma_data) == ("v", True, 1.0)
    assert (noise.edm_sigma_min, noise.edm_sigma_max) == pytest.approx((0.002, 120.0))
    assert NoiseTable.from_config(noise).sigma_max == pytest.approx(120.0)
    other = spec_of(micro, **{"edm_vpred.sigma_max": torch.tensor([64.0], dtype=torch.float16)})[0].noise
    assert (other.edm_sigma_min, other.edm_sigma_max) == (0.002, 64.0)
    for damaged in (float("nan"), -1.0, 0.001):
        spec, report = spec_of(micro, **{"edm_vpred.sigma_max": torch.tensor(damaged)})
        assert spec.noise.edm_sigma_max == 120.0
        assert "damaged" in decided(report, "noise schedule")[0][1]


@pytest.mark.parametrize(("deviation", "prediction", "size"), [(0.088, "epsilon", 512), (0.092, "v", 768)])
def test_sd2_by_its_statistic(deviation: float, prediction: str, size: int, manifest: Any, spec_of: Any) -> None:
    bias = torch.randn(320, generator=torch.Generator().manual_seed(0))
    bias = ((bias - bias.mean()) / bias.std(correction=0) * deviation + 0.5).half()
    spec, report = spec_of(manifest("sd2"), **{V_NORM: bias})
    assert (spec.noise.prediction, spec.size) == (prediction, size)
    assert f"{deviation:.3f}" in decided(report, "prediction")[0][1]
    spec, _ = spec_of(manifest("sd2_inpainting"), **{V_NORM: bias})
    assert (spec.noise.prediction, spec.size) == ("epsilon", 512), "SD 2 inpainting models are of epsilon"


def test_zero_terminal_snr(micro: Shapes, spec_of: Any) -> None:
    assert spec_of(micro, ztsnr=torch.zeros(0))[0].noise.zero_terminal_snr
    assert spec_of(micro, metadata={"ss_zero_terminal_snr": "True"})[0].noise.zero_terminal_snr
    spec, report = spec_of(micro, metadata={"ss_zero_terminal_snr": "False"})
    assert not spec.noise.zero_terminal_snr
    assert decided(report, "noise schedule") == []


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_the_usual_schedule_is_not_worth_a_word(kind: str, micro: Shapes, spec_of: Any) -> None:
    spec, report = spec_of(micro, alphas_cumprod=USUAL.to(getattr(torch, kind)))
    assert spec.noise.alphas_cumprod is None
    assert decided(report, "noise schedule") == []
    assert list(report.ignored) == ["alphas_cumprod"]


def test_another_schedule_is_used(micro: Shapes, spec_of: Any) -> None:
    other = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0).float()
    spec, report = spec_of(micro, alphas_cumprod=other)
    assert spec.noise.alphas_cumprod == pytest.approx(other.tolist())
    assert spec.noise.steps == 1000
    assert decided(report, "noise schedule")[0][0] == "the file's own"
    assert list(report.ignored) == ["alphas_cumprod"]
    table = NoiseTable.from_config(spec.noise)
    assert table.sigma_max == pytest.approx(float(((1 - other[-1]) / other[-1]) ** 0.5), rel=1e-6)
    half, _ = spec_of(micro, alphas_cumprod=USUAL[::2].float())
    assert half.noise.steps == 500
    ended, _ = spec_of(micro, alphas_cumprod=torch.cat([other[:-1], torch.zeros(1)]))
    assert ended.noise.zero_terminal_snr
    assert NoiseTable.from_config(ended.noise).sigma_max == pytest.approx(4518.76, rel=1e-5)


DAMAGED = {
    "not a number": torch.cat([USUAL[:-1], torch.tensor([float("nan")])]).float(),
    "rising": USUAL.flip(0).float(),
    "one rise": torch.cat([USUAL[:500], USUAL[499:999]]).float(),
    "zeros": torch.zeros(1000),
    "above one": USUAL.float() * 2,
    "a scalar": torch.tensor(0.5),
    "empty": torch.zeros(0),
    "huge": torch.linspace(0.99, 0.01, 100_000),
    "whole numbers": torch.arange(1000, 0, -1),
    "complex": torch.zeros(1000, dtype=torch.complex64),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_schedule_is_ignored_and_said_so(damage: str, micro: Shapes, spec_of: Any) -> None:
    spec, report = spec_of(micro, alphas_cumprod=DAMAGED[damage])
    assert spec.noise.alphas_cumprod is None
    assert not spec.noise.zero_terminal_snr
    assert len(report.ignored) == 1
    assert "the usual one is used" in report.ignored["alphas_cumprod"]
    assert NoiseTable.from_config(spec.noise).sigma_max == pytest.approx(14.6146, rel=1e-5)


def test_sizes_and_scales(micro: Shapes, spec_of: Any, manifest: Any) -> None:
    def size(**metadata: str) -> int:
        found: int = spec_of(micro, metadata={k.replace("__", "."): v for k, v in metadata.items()})[0].size
        return found

    assert size(a="b") == 512
    assert size(modelspec__resolution="768x640") == 768
    assert size(modelspec__resolution="1x99999999999") == 512
    assert size(modelspec__resolution="9" * 5000 + "x64") == 512
    assert size(modelspec__resolution="768x768", avila__size="324") == 320
    assert size(avila__size="7" * 5000) == size(avila__size="999999") == size(avila__size="-8") == 512
    scale = spec_of(micro)[0].latent.scale
    assert scale == 0.18215
    assert spec_of(manifest("sdxl_base"))[0].latent.scale == 0.13025
    assert spec_of(micro, metadata={"avila.latent_scale": "0.25"})[0].latent.scale == 0.25
    for bad in ("nan", "inf", "-1", "0", "x", "1e999"):
        assert spec_of(micro, metadata={"avila.latent_scale": bad})[0].latent.scale == 0.18215


def test_a_model_of_one_size(micro: Shapes, spec_of: Any) -> None:
    for told, fixed in (("true", True), (" True ", True), ("1", True), ("false", False), ("", False), ("maybe", False)):
        spec, report = spec_of(micro, metadata={"avila.size": "128", "avila.fixed_size": told})
        assert (spec.size, spec.fixed_size) == (128, fixed)
        assert bool(decided(report, "other sizes")) == fixed
    assert not spec_of(micro)[0].fixed_size


def test_recommended_values(micro: Shapes, spec_of: Any) -> None:
    def read(**metadata: str) -> tuple[Defaults, list[tuple[str, str]]]:
        spec, report = spec_of(micro, metadata={f"avila.default_{name}": value for name, value in metadata.items()})
        return spec.defaults, decided(report, "defaults")

    assert read() == (Defaults(), [])
    assert read(size="516", steps="12", guidance="4.5", sampler="dpmpp_2m_karras") == (
        Defaults(size=512, steps=12, guidance_scale=4.5, sampler="dpmpp_2m_karras"),
        [
            (
                "size 512, steps 12, guidance scale 4.5, sampler dpmpp_2m_karras",
                "metadata avila.default_*",
            )
        ],
    )
    assert read(guidance="0", steps="1000")[0] == Defaults(guidance_scale=0.0, steps=1000)
    for bad in ("", "nan", "inf", "-1", "1e999", "many", "9" * 5000, "\n"):
        assert read(size=bad, steps=bad, guidance=bad, sampler=bad) == (Defaults(), [])
    assert read(size="56", steps="1001", guidance="101") == (Defaults(), [])


def test_lcm(micro: Shapes, spec_of: Any) -> None:
    for name in ("time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"):
        spec, report = spec_of(micro | {f"model.diffusion_model.{name}": (32, 24)})
        assert spec.unet.guidance_channels == 24
        assert decided(report, "guidance")
    assert spec_of(micro)[0].unet.guidance_channels is None


# --- names


def test_numbers_are_counted_from_zero_in_one_pass() -> None:
    names = [f"a.{n}.w" for n in (0, 1, 2, 4)] + ["a.01.w", "b.1.w", "c.0", "a.0.x.0.y", "0.z", "d.٣.w", "e.-1.w"]
    assert count_numbers(names) == {"a": 3, "c": 1, "a.0.x": 1}
    start = time.process_time()
    assert count_numbers(["x." + "9" * 5000 + ".y", ".".join("0" * 200_000), *(f"r.{n}.w" for n in range(50_000))])
    assert time.process_time() - start < 5


# --- inspect


def test_inspect_is_quick_and_reads_little(manifest: Any, write_values: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """SDXL's 2,515 tensors in well under half a second of processor time, and no byte but header and small tensors."""
    shapes = manifest("sdxl_base")
    path = write_values(tmp_path / "model.safetensors", shapes, {"alphas_cumprod": USUAL, "ztsnr": torch.zeros(1)})
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    read: list[tuple[int, int]] = []

    class Watched(io.FileIO):
        def readinto(self, buffer: Any) -> Any:
            start = self.tell()
            count = super().readinto(buffer)
            read.append((start, start + (count or 0)))
            return count

        def read(self, size: int | None = -1) -> Any:
            start = self.tell()
            data = super().read(-1 if size is None else size)
            read.append((start, start + len(data or b"")))
            return data

    def watched(place: Path) -> io.BufferedReader:
        return io.BufferedReader(Watched(str(place), "rb"))

    monkeypatch.setattr(Path, "open", lambda self, *mode: watched(self))
    inspect(path)
    assert read, "the watch must see the reads"
    beyond = sum(end - max(start, header) for start, end in read if end > header)
    assert 8000 <= beyond <= 65536
    assert sum(end - start for start, end in read) <= header + 65536 + 1024, "the header is read once"
    monkeypatch.undo()
    times = []
    for _ in range(3):
        start = time.process_time()
        inspect(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.5


def test_inspect_says_what_there_is(manifest: Any, write_values: Any, tmp_path: Path) -> None:
    shapes = manifest("sdxl_base")
    values = {"banana.weight": torch.zeros(2, 2), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    metadata = {"modelspec.title": "A\nmodel " + "x" * 300}
    found = inspect(write_values(tmp_path / "model.safetensors", shapes, values, metadata))
    assert found.problem == ""
    assert found.report is not None
    assert found.report.unknown == ["banana.weight"]
    assert found.dtypes == {"F16": len(shapes), "F32": 3}
    assert found.tensors == len(shapes) + 3
    plain = json.loads(json.dumps(found.to_dict()))
    assert (plain["family"], plain["variant"], plain["prediction"]) == ("sdxl", "base", "v")
    lines = found.lines()
    assert lines[0] == "model.safetensors: a Stable Diffusion checkpoint"
    assert lines[1].startswith("6.94 GB, 2,518 tensors (F16 2,515, F32 3)")
    assert all(len(line) < 200 and "\n" not in line for line in lines)
    assert any(line.startswith("prediction") and "v" in line and "v_pred" in line for line in lines)
    assert any(line.startswith("unknown") and "banana.weight" in line for line in lines)
    assert any(line.startswith("metadata modelspec.title: A model xxx") and line.endswith("…") for line in lines)


def test_inspect_says_why_a_load_would_fail(micro: Shapes, write_values: Any, tmp_path: Path) -> None:
    def look(shapes: Shapes) -> Any:
        return inspect(write_values(tmp_path / "model.safetensors", shapes))

    assert look(micro).problem == ""
    alone = look({n.removeprefix("model.diffusion_model."): s for n, s in micro.items() if "diffusion" in n})
    assert alone.kind.key == "unet"
    assert alone.kind.title == "a Stable Diffusion 1.x UNet alone"
    assert "no text encoder and no VAE" in alone.problem
    assert any("cannot be used as it is" in line for line in alone.lines())
    no_vae = look(drop(micro, "first_stage_model."))
    assert no_vae.kind.key == "checkpoint"
    assert "--vae" in no_vae.problem
    assert "missing" in look(drop(micro, "model.diffusion_model.out.")).problem
    assert "expected a whole UNet" in look({"x.input_blocks.0.0.weight": (4, 4)}).problem


def test_inspect_refuses_what_is_not_safetensors(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(PickleRefused, match="avila convert"):
        inspect(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"hello, this is no model")
    with pytest.raises(HeaderError, match="not a safetensors file"):
        inspect(tmp_path / "b.safetensors")
