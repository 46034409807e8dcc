"""Token ids are open_clip's for any text."""

import html.entities
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxclip.data import imagenet_classnames, imagenet_templates
from jaxclip.errors import InputError
from jaxclip.tokenizer import load_tokenizer

START, END = 49406, 49407


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("open_clip").tokenizer.SimpleTokenizer()


def _compare(texts, reference, context_length=77):
    ours = load_tokenizer(context_length)(texts)
    theirs = reference(texts, context_length=context_length).numpy()
    assert ours.dtype == np.int32 and ours.shape == (len(texts), context_length)
    for text, a, b in zip(texts, ours, theirs, strict=True):
        assert (a == b).all(), f"{text!r}: ids {a[a > 0]} are not open_clip's {b[b > 0]}"


NAMED = [
    "",
    " \t\n ",
    "a photo of a cat.",
    "It's we're I'LL they'd don't O'Neill's 'tis 'S ''s",
    "it'\u017f 'LL \u212aelvin",  # letters that fold to s and k
    "<start_of_text> in <END_OF_TEXT> text <|startoftext|> !!<start_of_text> <\u017ftart_of_text>",
    "&amp;lt;b&amp;gt; &eacute; &#x1F600; &notanentity; &amp;amp;amp;",
    "< &amp;lt;b&amp;gt;",  # beside which ftfy resolves no entity
    "&eacute;e&#769; &nbsp; &#0; &#xD800;",
    "cafe\u0301 caf\u00e9 \ufb01ne \u00df \u0149 \u0130stanbul ΟΔΟΣ ﬀ",
    "schÃ¶n â€œquotedâ€\x9d sÃ£o",  # mojibake, which ftfy mends
    "\x00\x01\x1b[31mred\x1b[0m\x7f\x85\u2028\ufeff\u200b",
    "\ud800 lone surrogate \udfff",
    "3.14159 1,000,000 ١٢٣ ²³ Ⅷ ½",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇭 ☃︎",
    "汉字 かな カナ 한국어 العربية עברית ไทย हिन्दी ქართული ᏣᎳᎩ 𝔣𝔯𝔞𝔨𝔱𝔲𝔯 ｆｕｌｌ",
    "snake_case CamelCase kebab-case a/b\\c e-mail@example.com https://x.org/?q=1&r=2",
    "\u0345 \U00010940 \U000323af \U0001fae8 \ue000 \U0010ffff",  # combining, newest letters, private, last
    "word " * 200,
    "supercalifragilistic" * 50,
    "x" * 10_000,
    "🦙" * 100,
]


@pytest.mark.parametrize("text", NAMED, ids=lambda text: ascii(text)[:30])
def test_named(text, reference):
    """Each is a place where transformers' own normaliser or splitter, or a careless copy of open_clip's, differs."""
    _compare([text], reference)


def _made_up(seed: int, n: int) -> list[str]:
    """Sentences glued together from pieces of every kind, from one word to several times the context length."""
    rng = random.Random(seed)
    names, templates = imagenet_classnames(), imagenet_templates()
    scripts = [(0, 0x20), (0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x780), (0x900, 0xE80), (0x1100, 0x1200),
               (0x2000, 0x2C00), (0x3040, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A0), (0xE000, 0xE100),
               (0xF900, 0xFFFF), (0x10000, 0x11000), (0x1D400, 0x1D800), (0x1F300, 0x1FB00)]  # fmt: skip
    entities = [f"&{name}" for name in html.entities.html5] + ["&amp;lt;", "&#39;", "&#x2F;", "&#128512;", "&#55296;"]

    def piece() -> str:
        match rng.randrange(8):
            case 0:
                return rng.choice(templates).format(rng.choice(names))
            case 1 | 2:
                low, high = rng.choice(scripts)
                return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 20)))
            case 3:
                return rng.choice(entities)
            case 4:
                return rng.choice(
                    ["I'm", "you're", "'s", "won't", "we'll", "he'd", "I've", "ain't", "’s"]
                ) * rng.randint(1, 2)
            case 5:
                return str(rng.choice([rng.randrange(10**9), rng.random(), -rng.randrange(99), f"{rng.random():e}"]))
            case 6:
                return rng.choice(names).encode().decode("latin-1") + "Ã©" * rng.randint(0, 2)
            case _:
                return "".join(rng.choice("ab <>|_-.,!?#%&;:'\"()[]{}\t\n") for _ in range(rng.randint(1, 30)))

    return [rng.choice(["", " "]).join(piece() for _ in range(rng.choice([1, 2, 4, 15]))) for _ in range(n)]


def test_ten_thousand(reference):
    """10,000 made-up strings of words, scripts, entities, numbers, contractions, punctuation and mojibake."""
    texts = _made_up(0, 10_000)
    _compare(texts, reference)
    lengths = (load_tokenizer()(texts[:1000]) > 0).sum(1)
    assert lengths.min() < 10 and (lengths == 77).sum() > 100, "the strings are all short or all long"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=())), min_size=1, max_size=8))
@example(["\u0345'\u017f"])
def test_any_text(reference, texts):
    """Whatever Unicode hypothesis thinks of, lone surrogates included."""
    _compare(texts, reference)


@pytest.mark.parametrize("context_length", [2, 3, 10, 77, 300])
def test_context_length(context_length, reference):
    """Longer sentences lose their end but keep the end token, in the last place."""
    texts = ["a", "one two three four five six seven eight nine", "word " * 400]
    _compare(texts, reference, context_length)
    assert load_tokenizer(context_length)("word " * 400)[0, -1] == END


def test_prompts(reference):
    """The prompts that make the heads: a sample of the 80,000."""
    prompts = [t.format(name) for t in imagenet_templates() for name in imagenet_classnames()[::25]]
    _compare(prompts, reference)


def test_layout():
    """Start, text, end, zeros: what the text tower's pooling relies on."""
    row = load_tokenizer()("a cat")[0]
    assert row[0] == START and row[3] == END and not row[4:].any() and row[1:3].all()


def test_one_string_or_several():
    """A string is a batch of one, not a batch of letters; an empty batch is an empty array."""
    tokenize = load_tokenizer()
    np.testing.assert_array_equal(tokenize("a cat"), tokenize(("a cat",)))
    assert tokenize([]).shape == (0, 77)


def test_bad_input():
    """What is no string is named by its place."""
    with pytest.raises(InputError, match="text 1 is None"):
        load_tokenizer()(["a", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="context_length is 1"):
        load_tokenizer(1)


def test_without_torch():
    """The tokenizer needs no torch, and importing the module does not yet pay for transformers."""
    code = (
        "import sys; sys.modules['torch'] = None; import jaxclip.tokenizer as t;"
        "assert 'transformers' not in sys.modules; print(t.load_tokenizer(4)('a').tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out == f"[[{START}, 320, {END}, 0]]\n"


def test_commands_say_nothing_of_a_torch_that_they_do_not_need():
    """Whoever installs jaxclip alone would read that models won't be available, which are transformers' own."""
    code = (
        "import sys; from jaxclip import cli, tokenizer; cli.main(['models']);"
        "sys.modules['torch'] = None; tokenizer.load_tokenizer()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""
