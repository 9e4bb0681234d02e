"""Conditioning against transformers' towers with emphasis, chunks and embeddings worked by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from avila_diffusion.checkpoint.embeddings import Embedding
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.errors import WeightMismatch
from avila_diffusion.text import chunks, conditioner, reading
from avila_diffusion.text.chunks import Part, chunk_a1111
from avila_diffusion.text.conditioner import Conditioner
from avila_diffusion.text.tokenizer import END, START, clip_tokenizer

TOLERANCE = 1e-5
WIDTH = 64
SIZE: dict[str, Any] = {"width": 64, "height": 64}
encode_text = clip_tokenizer().encode
PREFIXES = {
    "sd1": ["cond_stage_model.transformer."],
    "sd2": ["cond_stage_model.model."],
    "sdxl": ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."],
}


def _transformers_names(state: dict[str, Tensor], layers: int = 3) -> dict[str, Tensor]:
    """An OpenCLIP tower under transformers' names."""
    head = "text_model."
    if "token_embedding.weight" not in state:
        return state
    theirs = {
        f"{head}embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{head}embeddings.position_embedding.weight": state["positional_embedding"],
        f"{head}final_layer_norm.weight": state["ln_final.weight"],
        f"{head}final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for index in range(layers):
        ours, mine = f"transformer.resblocks.{index}.", f"{head}encoder.layers.{index}."
        for leaf in ("weight", "bias"):
            for part, tensor in zip("qkv", state[f"{ours}attn.in_proj_{leaf}"].chunk(3), strict=True):
                theirs[f"{mine}self_attn.{part}_proj.{leaf}"] = tensor
            theirs |= {f"{mine}{new}.{leaf}": state[f"{ours}{old}.{leaf}"] for old, new in names.items()}
    return theirs


class Rows(nn.Module):
    """transformers' table of tokens with rows of some places replaced."""

    def __init__(self, table: Any, rows: dict[int, Tensor]) -> None:
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.table(ids).clone()
        for place, row in self.rows.items():
            x[0, place] = row
        return x


@dataclass(frozen=True, eq=False)
class World:
    """A tiny model of ours, and its towers in transformers."""

    model: Model
    towers: Sequence[Any]

    def ours(self, **options: Any) -> Conditioner:
        options = {"emphasis": "Original", **options}
        return Conditioner(self.model.spec, self.model.text, torch.device("cpu"), torch.float64, **options)

    @torch.no_grad()
    def run(self, tower: int, ids: Sequence[int], rows: dict[int, Tensor] | None = None) -> Any:
        """A tower's output for 77 ids, with `rows` in place of token vectors."""
        network = self.towers[tower]
        inner = network.text_model.embeddings
        table = inner.token_embedding
        inner.token_embedding = Rows(table, rows or {})
        try:
            return network(torch.tensor([list(ids)]), output_hidden_states=True)
        finally:
            inner.token_embedding = table


def framed(ids: Sequence[int], pad: int = END) -> list[int]:
    """START, the ids, END, and padding: 77."""
    return [START, *ids, END, *[pad] * (75 - len(ids))]


def column(weights: Sequence[float]) -> Tensor:
    return torch.tensor([1.0, *weights, *[1.0] * (76 - len(weights))], dtype=torch.float64)[None, :, None]


def original(z: Tensor, weights: Sequence[float]) -> Tensor:
    weighed = z * column(weights)
    return weighed * (z.mean() / weighed.mean())


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    top = float(theirs.abs().max())
    assert 0.3 < top < 100
    assert float((ours - theirs).abs().max()) <= TOLERANCE * top


@pytest.fixture(scope="module")
def world(tiny_checkpoint: Any, tiny_state: Any) -> Callable[[str], World]:
    made: dict[str, World] = {}

    def make(family: str) -> World:
        if family in made:
            return made[family]
        state = {name: tensor.half().double() for name, tensor in tiny_state(family).items()}
        towers = []
        for prefix in PREFIXES[family]:
            own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            config = CLIPTextConfig(
                hidden_size=WIDTH,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=1,
                projection_dim=WIDTH,
                hidden_act="quick_gelu" if "transformer." in prefix else "gelu",
                eos_token_id=END,
                bos_token_id=START,
            )
            tower: Any = CLIPTextModelWithProjection(config)
            weights = _transformers_names(own)
            weights.setdefault("text_projection.weight", torch.eye(WIDTH, dtype=torch.float64))
            tower.double().load_state_dict(weights, strict=False)
            towers.append(tower.eval())
        made[family] = World(load_model(tiny_checkpoint(family)), towers)
        return made[family]

    return make


@pytest.fixture
def sd1(world: Callable[[str], World]) -> World:
    return world("sd1")


@torch.no_grad()
def encode(one: Conditioner, text: str, **options: Any) -> Tensor:
    return one.encode(text, **SIZE, **options).context


def pieces(*parts: tuple[str, float]) -> tuple[list[int], list[float]]:
    """Ids and weights of pieces, each tokenized alone."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in parts:
        new = encode_text(text)
        ids += new
        weights += [weight] * len(new)
    return ids, weights


EMPHASISED = "a (red:1.5) cat, [calm] (((loud)))"
PARTS = (("a ", 1.0), ("red", 1.5), (" cat, ", 1.0), ("calm", 1 / 1.1), (" ", 1.0), ("loud", 1.1**3))


def test_emphasis_and_its_modes(sd1: World) -> None:
    ids, weights = pieces(*PARTS)
    z = sd1.run(0, framed(ids)).last_hidden_state
    close(encode(sd1.ours(), EMPHASISED), original(z, weights))
    close(encode(sd1.ours(emphasis="No norm"), EMPHASISED), z * column(weights))
    close(encode(sd1.ours(emphasis="Ignore"), EMPHASISED), z)
    literal = sd1.run(0, framed(encode_text(EMPHASISED))).last_hidden_state
    close(encode(sd1.ours(emphasis="None"), EMPHASISED), literal)


def test_comfyui_weighs_the_way_from_the_empty_prompt(sd1: World) -> None:
    text = "a (red:1.5) cat ((very (calm:0.5)))"
    ids, weights = pieces(("a ", 1.0), ("red", 1.5), (" cat ", 1.0), ("very ", 1.1**2), ("calm", 0.5))
    z, empty = (sd1.run(0, framed(one)).last_hidden_state for one in (ids, []))
    close(encode(sd1.ours(dialect="comfyui"), text), empty + column(weights) * (z - empty))


def test_diffusers_reads_no_weights_and_75_tokens(sd1: World) -> None:
    text = "a (red:1.5) cat BREAK " + "dog " * 90
    one = sd1.ours(dialect="diffusers")
    close(encode(one, text), sd1.run(0, framed(encode_text(text)[:75])).last_hidden_state)
    (note,) = one.split(text).notes
    assert f"the last {len(encode_text(text)) - 75} of a prompt were left out" in note


def test_break_and_clip_skip(sd1: World) -> None:
    ids, weights = pieces(("a ", 1.0), ("cat", 1.3))
    runs = [sd1.run(0, framed(one)) for one in (ids, [], encode_text("rain"))]
    norm = sd1.towers[0].text_model.final_layer_norm
    for skip in (1, 2, 3):
        expected = []
        for run, own in zip(runs, (weights, [], []), strict=True):
            with torch.no_grad():
                expected.append(original(norm(run.hidden_states[-skip]), own))
        close(encode(sd1.ours(), "a (cat:1.3) BREAK BREAK rain", clip_skip=skip), torch.cat(expected, dim=1))


def test_a_prompt_of_400_tokens(sd1: World) -> None:
    """Mean and weights per chunk; a comma 20 tokens back moves what follows it."""
    first = "cat " * 55 + ", " + "dog " * 19  # 75 tokens, the comma at place 55
    text = f"({first.strip()}:1.2) (fox:0.7) " + "bird " * 330
    pad = encode_text("cat")[0], encode_text("dog")[0], encode_text("fox")[0], encode_text("bird")[0]
    plan = [
        ([pad[0]] * 55 + [267], [1.2] * 56),
        ([pad[1]] * 19 + [pad[2]] + [pad[3]] * 55, [1.2] * 19 + [0.7] + [1.0] * 55),
        *[([pad[3]] * 75, [1.0] * 75)] * 3,
        ([pad[3]] * 50, [1.0] * 50),
    ]
    expected = [original(sd1.run(0, framed(ids)).last_hidden_state, weights) for ids, weights in plan]
    ours = encode(sd1.ours(), text)
    assert sum(len(ids) for ids, _ in plan) == 406
    close(ours, torch.cat(expected, dim=1))


def test_sdxl_weighs_each_tower_alone(world: Callable[[str], World]) -> None:
    xl = world("sdxl")
    ids, weights = pieces(*PARTS)
    left, right = xl.run(0, framed(ids)), xl.run(1, framed(ids, 0))
    expected = torch.cat([original(run.hidden_states[-2], weights) for run in (left, right)], dim=-1)
    with torch.no_grad():
        found = xl.ours().encode(EMPHASISED, **SIZE, clip_skip=2)
    close(found.context, expected)
    assert found.vector is not None
    close(found.vector[:, :WIDTH], right.text_embeds)  # untouched by the weights


@pytest.mark.parametrize(("dialect", "zero"), [("a1111", True), ("comfyui", False), ("diffusers", True)])
def test_an_empty_negative_prompt_of_sdxl(dialect: str, zero: bool, world: Callable[[str], World]) -> None:
    one = world("sdxl").ours(dialect=dialect)
    assert (float(encode(one, "", negative=True).abs().max()) == 0) == zero
    with torch.no_grad():
        both = one.encode_all(["", "rain"], **SIZE, negative=True)
    assert float(both[0].context.abs().max()) > 0


def test_texts_of_a_schedule_are_a_batch(sd1: World) -> None:
    """The mean that is restored is the batch's; a shorter text is filled up by an empty chunk."""
    long = "(bird:1.4) " + "bird " * 80
    (one, own), (two, other) = pieces(("a ", 1.0), ("cat", 0.6)), pieces(("bird", 1.4), (" " + "bird " * 80, 1.0))
    z = [sd1.run(0, framed(ids)).last_hidden_state for ids in (one, two[:75], [], two[75:])]
    batch, weights = torch.cat([z[0], z[1], z[0]]), torch.cat([column(own), column(other[:75]), column(own)])
    first = batch * weights * (batch.mean() / (batch * weights).mean())
    with torch.no_grad():
        found = sd1.ours().encode_all(["a (cat:0.6)", long, "a (cat:0.6)"], **SIZE)
    close(found[0].context, torch.cat([first[:1], z[2]], dim=1))
    close(found[1].context, torch.cat([first[1:2], z[3]], dim=1))
    assert found[2] is found[0]
    with torch.no_grad():
        alone = sd1.ours(dialect="comfyui").encode_all(["a cat", long], **SIZE)
    assert [item.context.shape[1] for item in alone] == [77, 154]


def rows(count: int, seed: int, width: int = WIDTH) -> Tensor:
    return 0.5 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def word(name: str, count: int = 3) -> Embedding:
    return Embedding(name, {"": rows(count, 7)}, Path("word.pt"))


def test_an_embedding_in_the_prompt(sd1: World) -> None:
    vectors = rows(3, 7)
    one = sd1.ours(embeddings={"sks style": word("sks style"), "sks": word("sks", 1)})
    ids = [*encode_text("a"), 0, 0, 0, *encode_text("house")]
    weights = [1.0, 1.4, 1.4, 1.4, 1.0]
    z = sd1.run(0, framed(ids), {2 + index: row for index, row in enumerate(vectors)}).last_hidden_state
    close(encode(one, "a (SKS Style:1.4) house"), original(z, weights))  # the longest name, in any case
    assert list(one.split("sks styled").used) == ["sks"]
    assert not one.split("masks").used
    comfy = sd1.ours(dialect="comfyui", embeddings={"sks": word("sks")})
    close(encode(comfy, "a embedding:sks house"), z)
    taken = comfy.split("a embedding:nope, house")
    assert "no embedding 'nope'" in taken.notes[0]
    assert taken.chunks[0].tokens == (*encode_text("a"), *encode_text(", house"))
    close(encode(sd1.ours(dialect="diffusers", embeddings={"sks": word("sks")}), "a sks house"), z)


def test_an_embedding_of_both_towers(world: Callable[[str], World]) -> None:
    xl = world("sdxl")
    both = {"clip_l": rows(2, 1), "clip_g": rows(2, 2)}
    one = xl.ours(embeddings={"sks": Embedding("sks", both, Path("sks.pt"))})
    ids = [*encode_text("a"), 0, 0]
    runs = [
        xl.run(tower, framed(ids, pad), {2 + index: row for index, row in enumerate(both[key])})
        for tower, (key, pad) in enumerate((("clip_l", END), ("clip_g", 0)))
    ]
    close(encode(one, "a sks"), torch.cat([run.hidden_states[-2] for run in runs], dim=-1))


def test_an_embedding_of_another_family(sd1: World, world: Callable[[str], World]) -> None:
    wide = Embedding("sks", {"": rows(1, 1, 96)}, Path("sks.pt"))
    one = sd1.ours(embeddings={"sks": wide})
    one.split("a cat")
    with pytest.raises(WeightMismatch, match=r"embedding 'sks' is 1 vectors, 96 wide.* 64 wide.*sks.pt"):
        one.split("a sks")
    assert not word("x").fits(world("sdxl").model.spec.text)
    both = Embedding("sks", {"clip_l": rows(2, 1), "clip_g": rows(2, 2)}, Path("sks.pt"))
    assert both.fits(world("sdxl").model.spec.text)
    assert not both.fits(sd1.model.spec.text)


def test_a_moved_embedding_leaves_its_vectors_behind_and_says_so(sd1: World) -> None:
    one = sd1.ours(embeddings={"sks": word("sks")})
    taken = one.split("cat " * 60 + ", sks " + "dog " * 30)
    first, second = taken.chunks
    assert (len(first.tokens), first.stranded[0].place, second.tokens[:3], second.moved) == (61, 61, (0, 0, 0), 14)
    assert "embedding sks" in taken.notes[0]
    place = first.stranded[0].place
    vectors = {1 + place + index: row for index, row in enumerate(rows(3, 7))}
    expected = [sd1.run(0, framed(first.tokens), vectors), sd1.run(0, framed(second.tokens))]
    ours = encode(one, "cat " * 60 + ", sks " + "dog " * 30)
    close(ours, torch.cat([run.last_hidden_state for run in expected], dim=1))


def _wrong(name: str, patch: pytest.MonkeyPatch) -> None:
    if name == "mean restore left out":
        patch.setattr(conditioner, "restoring", lambda before, after, counts: 1.0)
    elif name == "mean over the wrong axes":

        def per_row(before: Sequence[Tensor], after: Sequence[Tensor], counts: Sequence[int]) -> Any:
            return before[0].mean(dim=(0, 1)) / after[0].mean(dim=(0, 1))

        patch.setattr(conditioner, "restoring", per_row)
    elif name == "comma rule off by one":
        patch.setattr(reading, "chunk_a1111", lambda parts, find: chunk_a1111(parts, find, backtrack=19))
    else:
        right = chunk_a1111

        def shifted(parts: Any, find: Any) -> list[chunks.Chunk]:
            found = right(parts, find)
            return [
                replace(chunk, placed=tuple(replace(item, place=item.place + 1) for item in chunk.placed))
                for chunk in found
            ]

        patch.setattr(reading, "chunk_a1111", shifted)


@pytest.mark.parametrize(
    ("mistake", "seen_by"),
    [
        ("mean restore left out", test_emphasis_and_its_modes),
        ("mean over the wrong axes", test_emphasis_and_its_modes),
        ("comma rule off by one", test_a_prompt_of_400_tokens),
        ("embedding at the wrong place", test_an_embedding_in_the_prompt),
    ],
)
def test_mistakes_are_seen(
    mistake: str, seen_by: Callable[[World], None], sd1: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong(mistake, monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        seen_by(sd1)


def test_weights_that_bring_the_mean_to_nothing() -> None:
    ones = torch.ones(1, 2, 1)
    assert conditioner.restoring([ones], [torch.zeros(1, 2, 1)], [1]) == 1
    assert conditioner.restoring([ones, 3 * ones], [2 * ones, ones], [2, 1]) == pytest.approx(5 / 5)
    assert conditioner.restoring([ones, 3 * ones], [2 * ones, ones], [1, 1]) == pytest.approx(4 / 3)


def test_comfyui_moves_short_groups_and_tears_long_ones() -> None:
    short, long = [1] * 7, [2] * 8
    cut = chunks.chunk_comfyui([Part([9] * 70), Part(short, 1.5)])
    assert [len(chunk.tokens) for chunk in cut] == [70, 7]
    cut = chunks.chunk_comfyui([Part([9] * 70), Part(long, 1.5)])
    assert [len(chunk.tokens) for chunk in cut] == [75, 3]
    assert cut[1].weights == (1.5,) * 3
    assert [len(chunk.tokens) for chunk in chunks.chunk_comfyui([Part([9] * 75)])] == [75]
    assert [len(chunk.tokens) for chunk in chunks.chunk_comfyui([])] == [0]
    torn = chunks.chunk_comfyui([Part([9] * 70), Part(embedding=chunks.Found("sks", 10))])
    assert [[(item.place, item.vectors) for item in chunk.placed] for chunk in torn] == [[(70, 10)], [(-5, 10)]]


def test_break_closes_even_an_empty_chunk() -> None:
    close_it = Part(is_break=True)
    lengths = [
        [len(chunk.tokens) for chunk in chunk_a1111(parts)]
        for parts in (
            [close_it],
            [Part([1]), close_it],
            [close_it, Part([1])],
            [Part([1]), close_it, close_it, Part([2])],
        )
    ]
    assert lengths == [[0], [1], [0, 1], [1, 0, 1]]


def test_an_embedding_that_does_not_fit_begins_a_chunk() -> None:
    def find(tokens: Sequence[int], place: int) -> chunks.Found | None:
        return chunks.Found("sks", 4, 1) if tokens[place] == 7 else None

    for before, lengths in ((71, [75]), (72, [72, 4])):
        made = chunk_a1111([Part([1] * before + [7])], find)
        assert [len(chunk.tokens) for chunk in made] == lengths
        assert made[-1].placed[0].place == (71 if before == 71 else 0)
