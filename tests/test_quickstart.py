"""The quickstart: shifts that are what their names say, a loss that is what it says, and the run end to end."""

import functools
import re
import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from test_report import check

import jaxclip
from jaxclip import quickstart
from jaxclip.errors import InputError
from jaxclip.zero_shot import zero_shot_head

KEY = jax.random.key(0)
SHORT = 40


@functools.cache
def held_out() -> np.ndarray:
    return quickstart.digits(KEY)[1][0]


def grey(images: np.ndarray) -> np.ndarray:
    assert (images == images[..., :1]).all(), "the pictures are grey, so all channels are equal"
    return images[..., 0].astype(float)


# --- data ---------------------------------------------------------------------------------------------------------


def test_the_split_is_a_stratified_seeded_partition_of_real_digits():
    (a, a_labels), (b, b_labels) = quickstart.digits(KEY)
    assert (len(a), len(b)) == (1198, 599)
    together = {x.tobytes() for x in a} & {x.tobytes() for x in b}
    assert not together, "a held-out picture was trained on"
    assert sorted(np.concatenate([a_labels, b_labels])) == sorted(load_digits().target)
    assert np.ptp(np.bincount(b_labels)) <= 4, "the held-out digits are not stratified"
    again = quickstart.digits(KEY)
    assert np.array_equal(again[1][0], b) and np.array_equal(again[0][1], a_labels), "one key gives one split"
    assert not np.array_equal(quickstart.digits(jax.random.key(1))[1][0], b), "the key does not matter"


def test_pictures_are_the_originals_enlarged_within_a_black_margin():
    (a, a_labels), (b, b_labels) = quickstart.digits(KEY)
    images, labels = np.concatenate([a, b]), np.concatenate([a_labels, b_labels])
    data = load_digits()
    small = np.stack(
        [np.asarray(Image.fromarray(x[4:28, 4:28, 0]).resize((8, 8), Image.Resampling.BOX)) for x in images]
    )
    for i in range(0, len(images), 97):
        distance = np.abs(data.images * (255 / 16) - small[i]).mean(axis=(1, 2))
        assert data.target[distance.argmin()] == labels[i], f"picture {i} is nearest to a digit of another class"
        assert distance.min() < 16, f"picture {i} is none of scikit-learn's"
    margin = np.ones((32, 32), bool)
    margin[4:28, 4:28] = False
    assert not images[:, margin].any(), "training moves digits by 3 pixels, and may not push ink over the edge"


def test_captions_name_their_digit_and_all_fit():
    from jaxclip.tokenizer import load_tokenizer

    tokens = quickstart.captions()
    assert tokens.shape[:2] == (len(quickstart.CLASSNAMES), len(quickstart.TEMPLATES))
    assert (tokens.max(axis=2) == 49407).all(), "a caption lost its end-of-text token: it does not fit"
    for digit, name in enumerate(quickstart.CLASSNAMES):
        (word,) = (t for t in load_tokenizer(3)(name)[0] if t < 49406)
        assert (tokens[digit] == word).any(axis=1).all(), f"a caption of {name} does not say {name}"


# --- shifts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quickstart.SHIFTS)
def test_every_shift_is_seeded_and_leaves_its_input_alone(name):
    shift, images = quickstart.SHIFTS[name], held_out()[:50]
    before = images.copy()
    out = shift(images, KEY)
    assert np.array_equal(images, before), "the held-out digits were changed in place"
    assert out.shape == images.shape and out.dtype == np.uint8
    assert (out != images).any(axis=(1, 2, 3)).all(), "a picture is not shifted"
    assert np.array_equal(shift(images, KEY), out), "one key gives one result"
    grey(out)
    if name not in ("inverted", "outline"):
        assert not np.array_equal(shift(images, jax.random.key(1)), out), "the key does not matter"


def test_inversion_is_an_involution():
    images = held_out()
    once = quickstart.inverted(images, KEY)
    assert (images.astype(int) + once == 255).all() and np.array_equal(quickstart.inverted(once, KEY), images)


def test_occlusion_changes_one_grey_square_only():
    images = held_out()
    corners = set()
    for image, out in zip(grey(images), grey(quickstart.occluded(images, KEY)), strict=True):
        rows, columns = np.nonzero(image != out)
        y, x = min(rows.min(), 16), min(columns.min(), 16)
        square = [
            (r, c)
            for r in range(max(0, rows.max() - 11), y + 1)
            for c in range(max(0, columns.max() - 11), x + 1)
            if (out[r : r + 12, c : c + 12] == 128).all()
        ]
        assert square, "the changed pixels are not covered by one 12x12 square of grey"
        corners.add(square[0])
    assert len(corners) > 50, "the square is always in the same places"


def test_rotation_turns_by_25_to_45_degrees_both_ways_and_keeps_the_ink():
    bar = np.zeros((200, 32, 32, 3), np.uint8)
    bar[:, 14:18, 6:26] = 255
    y, x = np.mgrid[:32, :32] - 15.5
    angles = []
    for ink in grey(quickstart.rotated(bar, KEY)):
        mass = ink.sum()
        assert abs(mass / (255 * 80) - 1) < 0.03, "ink is lost or made"
        assert abs((ink * x).sum() / mass) < 0.2 and abs((ink * y).sum() / mass) < 0.2, "the centre moved"
        xx, yy, xy = ((ink * a * b).sum() for a, b in ((x, x), (y, y), (x, y)))
        angles.append(np.degrees(np.arctan2(2 * xy, xx - yy) / 2))  # of the principal axis
    sizes = np.abs(angles)
    assert sizes.min() > 24 and sizes.max() < 46 and np.ptp(sizes) > 15, "angles are not 25 to 45 degrees"
    assert 60 < (np.array(angles) > 0).sum() < 140, "pictures do not turn both ways alike"
    ink = grey(held_out()).sum(axis=(1, 2))
    assert np.allclose(grey(quickstart.rotated(held_out(), KEY)).sum(axis=(1, 2)), ink, rtol=0.05)


def test_noise_is_normal_independent_and_of_the_stated_size():
    flat = np.full((60, 32, 32, 3), 128, np.uint8)
    noise = grey(quickstart.noisy(flat, KEY)) - 128
    sigma = 0.3 * 255
    for k, share in ((0.5, 0.3829), (1.0, 0.6827), (1.5, 0.8664)):
        assert abs((np.abs(noise) <= k * sigma).mean() - share) < 0.01, f"wrong share within {k} standard deviations"
    assert abs(noise.mean()) < 1.5
    rows = noise.reshape(60, -1)
    assert abs(np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1]) < 0.02, "neighbours are not independent"
    assert abs(np.corrcoef(rows[0], rows[1])[0, 1]) < 0.15, "two pictures have the same noise"


def test_outline_is_zero_inside_and_outside_and_full_on_the_edge():
    square = np.zeros((1, 32, 32, 3), np.uint8)
    square[:, 10:20, 8:24] = 200
    edge = np.zeros((32, 32), bool)
    edge[9:21, 7:25] = True
    edge[11:19, 9:23] = False
    assert np.array_equal(grey(quickstart.outline(square, KEY))[0], np.where(edge, 200, 0))
    assert not quickstart.outline(np.full((2, 32, 32, 3), 90, np.uint8), KEY).any(), "a flat picture has no outline"


# --- training -----------------------------------------------------------------------------------------------------


def loss_of(image, text, labels, scale):
    """The quickstart's loss where both towers' outputs are given: one template, so captions are looked up by label."""
    model: Any = SimpleNamespace(
        encode_image=lambda x: (x, []), encode_text=lambda tokens: text[tokens[:, 0]], logit_scale=jnp.log(scale)
    )
    captions = jnp.arange(len(text))[:, None, None]
    return float(quickstart.contrastive_loss(model, image, jnp.asarray(labels), KEY, captions=captions))


def test_the_contrastive_loss_is_clip_s_where_no_caption_repeats():
    image, text = np.random.default_rng(0).normal(size=(2, 6, 5))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    logits = 7.0 * unit[0] @ unit[1].T
    expected = sum(
        optax.losses.softmax_cross_entropy_with_integer_labels(x, np.arange(6)).mean() for x in (logits, logits.T)
    )
    assert np.isclose(loss_of(image, jnp.asarray(text), range(6), 7.0), expected / 2, rtol=1e-5)


def test_captions_that_repeat_are_positives_of_equal_weight():
    labels = [0, 1, 0, 2, 1, 0]
    image, text = np.random.default_rng(1).normal(size=(6, 5)), np.random.default_rng(2).normal(size=(3, 5))
    a, b = image / np.linalg.norm(image, axis=1, keepdims=True), text / np.linalg.norm(text, axis=1, keepdims=True)
    logits = 3.0 * a @ b[labels].T
    total = 0.0
    for x in (logits, logits.T):
        for i, label in enumerate(labels):
            log_p = x[i] - np.log(np.exp(x[i]).sum())
            positives = [j for j, other in enumerate(labels) if other == label]
            total += np.mean([np.log(1 / len(positives)) - log_p[j] for j in positives])
    assert np.isclose(loss_of(image, jnp.asarray(text), labels, 3.0), total / 12, rtol=1e-5)


def test_zero_is_the_loss_of_perfect_towers():
    labels = [0, 1, 0, 2, 1, 0]
    assert abs(loss_of(10.0 * np.eye(3)[labels], jnp.eye(3), labels, 100.0)) < 1e-6


# --- the run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of a few steps: enough to be above chance, not to be good."""
    return quickstart.quickstart(tmp_path_factory.mktemp("short") / "out", seed=3, steps=SHORT)


def check_result(result: quickstart.Quickstart) -> None:
    for name in quickstart.CONFIGS:
        assert list(result.accuracy[name]) == ["held-out", "rotated", "noisy", "inverted", "outline", "occluded"]
        for pictures, accuracy in result.accuracy[name].items():
            assert accuracy.total == 599 and 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
            pruned = result.pruned[name].accuracy[pictures]
            assert np.isclose(pruned[0], accuracy.value, atol=2 / 599), "with nothing pruned the sweep is the accuracy"
            assert pruned[-1] < 0.2, "with everything pruned one class is left"
            assert 0 <= result.cka[pictures] <= 1
        assert np.isfinite(result.losses[name]).all() and result.losses[name].min() >= 0
        assert 1 <= result.activations[name].kurtosis <= 64
        assert np.isfinite(result.directions[name].importance).all()
        assert result.concepts[name].unique["permuted_labels"] == 0, "concepts are found where there are none"
    page = result.report.read_text(encoding="utf-8")
    parsed = check(page)
    for title in (
        "Pictures",
        "Accuracy",
        "Outlier features",
        "Privileged directions",
        "Pruning the head",
        "Concepts",
        "Similarity of the representations",
        "Training",
        "Method",
        "Provenance",
    ):
        assert f">{title}</h2>" in page, f"the report has no section {title}"
    assert quickstart.TOY.partition(":")[0] in page, "the report does not say that it is a toy"
    shown = re.findall(r'<figure class="(?:data|plot)">.*?</figure>', page, re.DOTALL)
    assert shown and all("toy" in figure for figure in shown), "a figure or table does not say that it is of a toy"
    assert [tag for tag, _ in parsed.elements].count("img") == 60, "ten pictures of each set"


def test_a_short_run_learns_and_reports(short):
    check_result(short)
    for name, losses in short.losses.items():
        assert len(losses) == SHORT and losses[-5:].mean() < 0.9 * losses[:5].mean(), f"{name} does not learn"
        assert short.accuracy[name]["held-out"].low > 0.15, f"{name} is not above chance (0.1)"


def test_the_checkpoints_are_whole_models(short):
    """What the run measured can be had again from its checkpoints by jaxclip's public functions."""
    split, *_ = jax.random.split(jax.random.key(3), 3)
    _, (images, labels) = quickstart.digits(split)
    model = jaxclip.load_model(short.report.parent / "clip")
    W = zero_shot_head(model, quickstart.CLASSNAMES, quickstart.TEMPLATES)
    right = (np.asarray(model.encode_image(images) @ W.T).argmax(axis=1) == labels).sum()
    assert abs(int(right) - short.accuracy["clip"]["held-out"].right) <= 1
    W, b = jaxclip.load_model(short.report.parent / "supervised").head
    assert W.shape == (10, 64) and b.shape == (10,)


def test_the_same_seed_gives_the_same_numbers_and_bytes(short, capsys):
    report = short.report.read_bytes()
    again = quickstart.quickstart(short.report.parent, seed=3, steps=SHORT)  # also: an earlier run's output is replaced
    for name, losses in short.losses.items():
        assert np.array_equal(again.losses[name], losses), f"the training of {name} is not determined by the seed"
    assert again.accuracy == short.accuracy and again.cka == short.cka
    assert again.report.read_bytes() == report, "the report has something that changes from run to run"
    assert "toy" in capsys.readouterr().out, "the console does not say that it is a toy"


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused_before_anything_is_written(tmp_path, seed):
    with pytest.raises(InputError, match="seed is"):
        quickstart.quickstart(tmp_path / "out", seed)
    assert not (tmp_path / "out").exists()


def test_what_is_no_quickstart_s_is_not_replaced(tmp_path, short):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="clip"):
        quickstart.quickstart(tmp_path, steps=SHORT)
    assert (tmp_path / "clip" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        quickstart.quickstart(tmp_path / "file", steps=SHORT)
    (short.report.parent / "clip").rename(tmp_path / "swapped")
    (tmp_path / "swapped").rename(tmp_path / "supervised")
    (tmp_path / "clip" / "thesis.tex").unlink()
    (tmp_path / "clip").rmdir()
    with pytest.raises(InputError, match="not a quickstart's"):
        quickstart.quickstart(tmp_path, steps=SHORT)


@pytest.mark.slow
def test_the_whole_run_is_accurate_and_takes_three_minutes_at_most(tmp_path):
    wall, cpu = time.monotonic(), time.process_time()
    result = quickstart.quickstart(tmp_path / "out")
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    check_result(result)
    assert result.accuracy["supervised"]["held-out"].value >= 0.95
    assert result.accuracy["clip"]["held-out"].value >= 0.90
    # On an idle machine the run takes less wall time than processor time; on a busy one, more.
    assert min(wall, cpu) < 180, f"{wall:.0f} s, {cpu:.0f} s of processor time"
