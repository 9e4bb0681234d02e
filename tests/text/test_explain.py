"""What `avila prompt` says of a prompt."""

from __future__ import annotations

from avila_diffusion.errors import WeightMismatch
from avila_diffusion.text.attention import parse_attention
from avila_diffusion.text.chunks import Part, chunk_a1111, find_names
from avila_diffusion.text.explain import explain_prompt
from avila_diffusion.text.tokenizer import clip_tokenizer


def test_calls_of_the_schedule() -> None:
    (part,) = explain_prompt("a [b:0.5]", steps=4, calls=8).parts
    assert [(segment.calls, segment.text) for segment in part.segments] == [((0, 4), "a "), ((5, 7), "a b")]
    (part,) = explain_prompt("[a:b:9]", steps=10).parts
    assert [segment.calls for segment in part.segments] == [(0, 9), None]


def test_parts_and_networks() -> None:
    report = explain_prompt("a <lora:ink:0.8:0.5:8> AND b:0.3 <hypernet:x:1><lora:y:z>", steps=2)
    assert [(part.text, part.weight) for part in report.parts] == [("a", 1.0), (" b", 0.3)]
    assert (
        report.networks[0] == "<lora:ink:0.8:0.5:8>: text encoders 0.8, UNet 0.5, cut to rank 8 where it is plain LoRA"
    )
    assert [note.partition(" ")[0] for note in report.notes] == ["<hypernet:x:1>", "<lora:y:z>"]
    assert "refused" in report.notes[0]


def test_negative_prompts_have_neither() -> None:
    report = explain_prompt("a <lora:ink:1> AND b:2", steps=2, negative=True)
    assert (report.networks, len(report.parts), len(report.notes)) == ((), 1, 2)
    assert report.parts[0].segments[0].text == "a <lora:ink:1> AND b:2"


def test_tokens_have_the_weight_of_their_piece() -> None:
    chunk = explain_prompt("a (red:1.25) car", steps=1).parts[0].segments[0].chunks[0]
    ids = clip_tokenizer().encode("a red car")
    assert chunk.tokens == ((ids[0], "a</w>", 1.0), (ids[1], "red</w>", 1.25), (ids[2], "car</w>", 1.0))
    assert (chunk.closed, chunk.moved) == ("end", 0)


def test_chunks() -> None:
    def chunks(text: str) -> list[tuple[int, str, int]]:
        found = explain_prompt(text, steps=1).parts[0].segments[0].chunks
        return [(len(chunk.tokens), chunk.closed, chunk.moved) for chunk in found]

    assert chunks("") == [(0, "end", 0)]
    assert chunks("a BREAK BREAK b") == [(1, "BREAK", 0), (0, "BREAK", 0), (1, "end", 0)]
    assert chunks("a BREAK") == [(1, "BREAK", 0)]
    assert chunks("BREAK a") == [(0, "BREAK", 0), (1, "end", 0)]
    assert chunks("cat " * 80) == [(75, "full", 0), (5, "end", 0)]
    assert chunks("cat " * 65 + ", " + "dog " * 20) == [(66, "comma", 9), (20, "end", 0)]


def test_embeddings_are_found_by_name() -> None:
    segments = (
        explain_prompt("a [easynegative:0.5] hill", steps=4, embeddings=["EasyNegative", "other"]).parts[0].segments
    )
    assert [segment.embeddings for segment in segments] == [(), ("EasyNegative",)]


def test_lines() -> None:
    lines = explain_prompt("a [b|c] :2", steps=3, calls=6).lines()
    assert lines[1].startswith("  note: the prompt ends in :2,")
    assert lines[2] == "  part 1 of 1, weight 2: 'a [b|c]'"
    assert lines[3] == "  calls 1 to 2 of 6 (step 1): 'a b'"
    assert "  call 4 of 6 (step 2): 'a b', as above" in lines
    assert lines[-1] == "  never: 'a c'"
    (line,) = (line for line in explain_prompt("cat " * 70 + "," + " dog" * 6, steps=1).lines() if "chunk 1" in line)
    assert line == "    chunk 1: 71 of 75 tokens; 4 after the last comma moved to the next chunk"


def test_an_embedding_counts_as_its_vectors_and_moves_as_in_the_picture() -> None:
    def explained(text: str) -> list[tuple[int, str, int]]:
        report = explain_prompt(text, steps=1, embeddings=["easynegative"], vectors=lambda name: 8)
        return [(len(chunk.tokens), chunk.closed, chunk.moved) for chunk in report.parts[0].segments[0].chunks]

    assert explained("cat easynegative") == [(9, "end", 0)]
    assert explained("cat " * 70 + "easynegative") == [(70, "embedding", 0), (8, "end", 0)]
    lines = explain_prompt("a easynegative", steps=1, embeddings=["easynegative"], vectors=lambda name: 2).lines()
    assert "    embedding easynegative, 2 vectors" in lines
    assert lines[-1].split() == ["a=320", "[easynegative]", "[easynegative]"]


def test_an_embedding_that_cannot_be_used_is_a_note() -> None:
    def vectors(name: str) -> int:
        raise WeightMismatch(f"{name} is of another family")

    report = explain_prompt("a easynegative, easynegative", steps=1, embeddings=["easynegative"], vectors=vectors)
    assert report.notes == ("embedding easynegative is refused: easynegative is of another family",)


def test_the_chunks_are_those_of_the_conditioner() -> None:
    text = "cat " * 60 + "(, easynegative:1.2) " + "dog " * 14 + "BREAK [x]"
    chunks = (
        explain_prompt(text, steps=1, embeddings=["easynegative"], vectors=lambda name: 3).parts[0].segments[0].chunks
    )
    encode = clip_tokenizer().encode
    parts = [
        Part(is_break=True) if piece.is_break else Part(encode(piece.text), piece.weight)
        for piece in parse_attention(text)
    ]
    done = chunk_a1111(parts, find_names({"easynegative": encode("easynegative")}, lambda name: 3))
    assert [[(token[0], token[2]) for token in chunk.tokens] for chunk in chunks] == [
        list(zip(chunk.tokens, chunk.weights, strict=True)) for chunk in done
    ]
    assert [chunk.closed for chunk in chunks] == ["comma", "BREAK", "end"]
