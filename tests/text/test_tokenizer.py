"""The tokenizer against published token ids and, string by string, against the library that transformers uses."""

import importlib.util
import json
import random
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from avila_diffusion.errors import RequestError
from avila_diffusion.text.characters import normalise, shape
from avila_diffusion.text.tokenizer import END, START, ClipTokenizer, clip_tokenizer

DATA = json.loads((Path(__file__).parent / "published_tokens.json").read_text(encoding="utf-8"))
STRINGS = 100_000

PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORDS: list[str] = DATA["words"]
SPACES = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
CONTEXTS = "a{0}b {0}'s !{0}{0}1 "


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    """Built as `transformers.CLIPTokenizer` builds it, from the same merges."""
    ours = clip_tokenizer()
    vocabulary = {ours.token(number): number for number in range(len(ours))}
    pairs = (line.split(" ") for line in ours._merges)
    merges = [(left, right) for left, right in pairs]
    model = models.BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|startoftext|>", "<|endoftext|>")
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    return tokenizer


def compare(reference: Tokenizer, texts: list[str]) -> None:
    """Fails on the first of `texts` that we and the reference read differently."""
    ours = clip_tokenizer()
    for text, expected in zip(texts, reference.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        if ours.encode(text) != expected.ids:
            pytest.fail(f"{text!r}: {ours.encode(text)}, expected {expected.ids}")


def random_texts(count: int) -> list[str]:
    """Prompts of words, contractions, pieces of Unicode blocks, stray marks and white space, repeated characters."""
    draw = random.Random(20210226)
    assigned = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")]
    marks = [character for character in assigned if unicodedata.combining(character)]
    cased = [character for character in assigned if character.lower() != character.upper()]

    def part() -> str:
        kind = draw.random()
        if kind < 0.5:
            word = draw.choice(WORDS)
            return word if draw.random() < 0.6 else draw.choice((word.upper(), word.title(), word.swapcase()))
        if kind < 0.6:
            return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz'", k=draw.randint(1, 12)))
        if kind < 0.7:
            return "".join(map(chr, draw.choices(range(0x20, 0x7F), k=draw.randint(1, 8))))
        if kind < 0.8:
            block = draw.randrange(0, 0x20000, 128)
            codes = draw.choices(range(block, block + 128), k=draw.randint(1, 6))
            return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        if kind < 0.88:
            return draw.choice(assigned) + "".join(draw.choices(marks, k=draw.randint(1, 4)))
        if kind < 0.94:
            return "".join(draw.choices(cased, k=draw.randint(1, 5)))
        if kind < 0.97:
            return draw.choice("aA1!'é🙂\u0301") * draw.randint(1, 40)
        return chr((draw.randrange(0x10F800) + 0xE000) % 0x110000)

    def gap() -> str:
        return draw.choices((" ", "", ", ", draw.choice(SPACES) * draw.randint(1, 3)), (5, 2, 2, 1))[0]

    return ["".join(part() + gap() for _ in range(draw.randint(1, 5))) for _ in range(count)]


@pytest.mark.parametrize(("text", "ids"), DATA["published"], ids=lambda value: str(value)[:30])
def test_published_prompts_have_their_published_ids(text: str, ids: list[int]) -> None:
    assert [START, *clip_tokenizer().encode(text), END] == ids


def test_random_texts_give_the_ids_of_the_library(reference: Tokenizer) -> None:
    texts = random_texts(STRINGS)
    assert len(texts) == STRINGS
    compare(reference, texts)


def test_every_code_point_gives_the_ids_of_the_library(reference: Tokenizer) -> None:
    # Ideographs and code points above them behave alike: of those one in 64, and all of them in the next test.
    plain = [code for code in CODES if 0x3400 <= code < 0xA000 or code >= 0x20000]
    rich = sorted(set(CODES) - set(plain))
    texts = ["".join(CONTEXTS.format(chr(code)) for code in rich[at : at + 64]) for at in range(0, len(rich), 64)]
    texts += ["1".join(f"a{chr(code)}" for code in plain[at : at + 4096 : 64]) for at in range(0, len(plain), 4096)]
    compare(reference, texts)


def test_every_code_point_is_taken_for_what_the_library_takes_it_for(reference: Tokenizer) -> None:
    numbers, letters = (
        normalizers.Replace(Regex(pattern), mark) for pattern, mark in ((r"\p{N}", "0"), (r"\p{L}", "z"))
    )
    others = normalizers.Replace(Regex(r"[^\s0z]"), "!")
    for at in range(0, len(CODES), 4096):
        text = normalise(" ".join(map(chr, CODES[at : at + 4096])))
        assert text == reference.normalizer.normalize_str(" ".join(map(chr, CODES[at : at + 4096])))
        expected = others.normalize_str(numbers.normalize_str(letters.normalize_str(text)))
        assert re.sub("[^ 0z]", "!", re.sub("[0-9]", "0", re.sub("[a-z]", "z", shape(text)))) == expected


def test_every_mark_is_ordered_and_joined_as_the_library_does(reference: Tokenizer) -> None:
    partners = "\u0334\u3099\u094d\u05b0\u0327\u031b\u0316\u0301\u0315\u0345\u1161\u11a8\u11930"
    codes = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    texts = [
        " ".join(f"a{chr(code)}{mark} a{mark}{chr(code)}" for mark in partners) for code in [*codes, 0x11935, 0x11930]
    ]
    compare(reference, texts)


def test_decoding_gives_the_text_of_the_library(reference: Tokenizer) -> None:
    draw = random.Random(5)
    ours = clip_tokenizer()
    for _ in range(2000):
        ids = draw.choices(range(len(ours)), k=draw.randint(0, 12))
        expected = reference.decode(ids, skip_special_tokens=False).replace("</w>", " ").strip()
        assert ours.decode(ids) == expected


def test_transformers_builds_the_pipeline_compared_with() -> None:
    found = importlib.util.find_spec("transformers")  # found, not imported: that takes seconds
    if found is None or found.origin is None:
        pytest.skip("transformers is not installed")
    source = Path(found.origin).parent / "models" / "clip" / "tokenization_clip.py"
    text = source.read_text(encoding="utf-8")
    assert PATTERN in text
    assert 'normalizers.NFC(), normalizers.Replace(Regex(r"\\s+"), " "), normalizers.Lowercase()' in text
    assert 'behavior="removed",' in text
    assert "pre_tokenizers.ByteLevel(add_prefix_space=False)" in text


def test_lone_surrogates_count_as_the_replacement_character() -> None:
    ours = clip_tokenizer()
    assert ours.encode("a\ud800b") == ours.encode("a\ufffdb")
    assert ours.encode("\udfff\ud800") == ours.encode("\ufffd\ufffd")
    assert ours.encode("\ud83d\udc36") == ours.encode("🐶")


def test_marks_written_in_the_text_are_the_marks() -> None:
    ours = clip_tokenizer()
    assert ours.encode("a<|endoftext|>b<|startoftext|>") == [320, END, 321, START]
    capitals = ours.encode("a<|ENDOFTEXT|>b")
    assert END not in capitals
    assert ours.decode(capitals) == "a <| endoftext |> b"


def test_a_shorter_list_of_merges_gives_a_smaller_vocabulary() -> None:
    toy = ClipTokenizer(DATA["toy"]["merges"])
    ids = toy.encode(DATA["toy"]["text"])
    assert [toy.token(number) for number in ids] == DATA["toy"]["tokens"]
    assert len(toy) == 512 + 3 + 2
    assert toy.encode("<|startoftext|>low<|endoftext|>") == [515, 513, 516]
    assert toy.encode_padded("low", length=5) == [515, 513, 516, 516, 516]
    assert toy.decode(ids) == "lower newer"
    assert len(ClipTokenizer([])) == 514


def test_padding_follows_the_two_rules() -> None:
    ours = clip_tokenizer()
    assert ours.encode_padded("a cat") == [START, 320, 2368, END, *[END] * 73]
    assert ours.encode_padded("a cat", pad=END) == ours.encode_padded("a cat")
    assert ours.encode_padded("a cat", pad=0) == [START, 320, 2368, END, *[0] * 73]
    assert ours.pad_chunk([320, END, 2368], length=8) == [START, 320, END, 2368, END, END, END, END]
    assert ours.pad_chunk([320, END, 2368], length=8, pad=0) == [START, 320, END, 0, 0, 0, 0, 0]
    assert ours.pad_chunk([]) == [START, *[END] * 76]
    with pytest.raises(RequestError, match="76 tokens do not fit a chunk of 77; at most 75 do"):
        ours.pad_chunk([320] * 76)


def test_a_long_text_keeps_its_first_75_tokens() -> None:
    ours = clip_tokenizer()
    text = " ".join(f"cat {number}" for number in range(100))
    padded = ours.encode_padded(text)
    assert padded == [START, *ours.encode(text)[:75], END]
    assert len(padded) == 77
    exact = ours.encode_padded("cat " * 75, pad=0)
    assert exact == [START, *[2368] * 75, END]


@pytest.mark.parametrize("number", [-1, 49408, 10**9])
def test_an_unknown_id_is_refused(number: int) -> None:
    with pytest.raises(RequestError, match=f"token id {number} is not in the vocabulary; ids go from 0 to 49,407"):
        clip_tokenizer().decode([number])


def test_tokens_are_named_as_in_the_vocabulary() -> None:
    ours = clip_tokenizer()
    named = {0: "!", 255: "Ń", 256: "!</w>", 2368: "cat</w>", 512: "in", START: "<|startoftext|>", END: "<|endoftext|>"}
    assert {number: ours.token(number) for number in named} == named
    assert len(ours) == 49408


@pytest.mark.parametrize("unit", ["a", "ab", "日", "!", "é"])
def test_a_very_long_word_takes_no_quadratic_time(unit: str) -> None:
    ours = clip_tokenizer()
    began = time.perf_counter()
    short = len(ours.encode(unit * 1_000))
    ids = ours.encode(unit * (100_000 // len(unit)))
    assert time.perf_counter() - began < 60  # about half a second; quadratic would be minutes
    assert len(ids) > short


def test_the_cache_of_words_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avila_diffusion.text.tokenizer._MAX_WORDS", 10)
    ours = ClipTokenizer(clip_tokenizer()._merges)
    for number in range(100):
        assert ours.encode(f"{chr(97 + number % 26)}{chr(97 + number // 26)}x") != []
        assert len(ours._words) <= 10
    ours.encode("y" * 1000)
    assert all(len(word) <= 64 for word in ours._words)


def test_neither_torch_nor_a_table_of_characters_is_loaded_for_ascii() -> None:
    code = (
        "import sys; from avila_diffusion.text import tokenizer, characters;"
        "tokenizer.clip_tokenizer().encode('A cat');"
        "assert characters._tables.cache_info().currsize == 0; tokenizer.clip_tokenizer().encode('é');"
        "assert characters._tables.cache_info().currsize == 1;"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'tokenizers', 'regex', 'transformers'}))"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
