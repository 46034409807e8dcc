"""Text → token ids: transformers' CLIP tokenizer, built from the merges that ship with the package.

open_clip's cleaning and splitting into words come before it, so that the ids are those of ``open_clip.tokenize`` for
any text: transformers' own normaliser knows neither mended encoding nor HTML, and its splitter knows an older Unicode.
"""

import functools
import gzip
import html
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from jaxclip.data import read_bytes
from jaxclip.errors import InputError

START, END = "<start_of_text>", "<end_of_text>"
_WORD = rf"(?i){START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


def load_tokenizer(context_length: int = 77) -> Callable[[str | Sequence[str]], Int[np.ndarray, "n t"]]:
    """Makes the function that turns sentences into token ids, int32 [n, context_length].

    Each row is a start token, the sentence, an end token, then zeros; of a sentence that is too long the end is cut,
    and the end token kept.

    Args:
        context_length: How many tokens a row has.

    Raises:
        InputError: ``context_length`` is below 2; or, from the function, something is no string.
    """
    if context_length < 2:
        raise InputError(f"context_length is {context_length}: it must hold a start and an end token")
    tokenizer = _clip_tokenizer()

    def tokenize(texts: str | Sequence[str]) -> Int[np.ndarray, "n t"]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {i} is {text!r}, not a string")
        out = np.zeros((len(texts), context_length), np.int32)
        rows = tokenizer([_words(text) for text in texts], is_split_into_words=True)["input_ids"] if texts else []
        for i, row in enumerate(rows):
            out[i, : len(row)] = row[:context_length]
            if len(row) > context_length:
                out[i, -1] = tokenizer.eos_token_id
        return out

    return tokenize


def vocabulary() -> int:
    """How many token ids there are."""
    return len(_clip_tokenizer())


def _words(text: str) -> list[str]:
    """Mends encoding, resolves HTML entities (twice), joins white space, makes lower case, and splits."""
    import ftfy
    import regex

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.findall(_WORD, " ".join(text.split()).lower())


@functools.cache
def _clip_tokenizer():
    from tokenizers import normalizers, pre_tokenizers
    from transformers import CLIPTokenizer

    lines = gzip.decompress(read_bytes("bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]  # a header line, and more than is used
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,  # type: ignore[arg-type]
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in the merges file, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
