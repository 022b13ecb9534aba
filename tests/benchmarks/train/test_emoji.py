"""The emoji that a model learns: which they are, what asks for them, and how they are drawn."""

import hashlib
from base64 import b64encode
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.train import emoji as artwork
from benchmarks.train.emoji import PACKAGES, Emoji, Look, draw, fetch, sample_look, select
from benchmarks.train.evaluate_emoji import drawn_prompts
from benchmarks.train.noise import noise_scheduler, weighted_noise_loss
from benchmarks.train.own_cell import cell_of_places, ridge
from benchmarks.train.train_emoji import CELL, as_cells, start_embeddings, typical_latents
from benchmarks.train.train_text_to_image import kept_tokenizer


def entry(name, category="Food & Drink", *, google=True, twitter=True):
    return {
        "name": name,
        "category": category,
        "image": f"{name.lower()}.png",
        "has_img_google": google,
        "has_img_twitter": twitter,
    }


def one_pixel(x, y):
    picture = Image.new("RGBA", (64, 64))
    picture.putpixel((x, y), (255, 0, 0, 255))
    return picture


def test_emoji_of_the_five_categories_are_chosen_in_both_styles():
    entries = [
        entry("TACO"),
        entry("KING", "People & Body"),
        entry("CAT", "Animals & Nature"),
        entry("ARROW", "Symbols"),
        entry("FRANCE", "Flags"),
    ]
    assert select(entries) == [
        Emoji("taco", "noto", "taco.png"),
        Emoji("cat", "noto", "cat.png"),
        Emoji("taco", "twemoji", "taco.png"),
        Emoji("cat", "twemoji", "cat.png"),
    ]


def test_an_emoji_that_one_package_lacks_is_left_out():
    assert select([entry("TACO", google=False), entry("PIE", twitter=False)]) == []


def test_a_prompt_names_the_emoji_and_the_style():
    assert [each.prompt for each in select([entry("RESCUE WORKER’S HELMET")])] == [
        "rescue workers helmet, noto",
        "rescue workers helmet, twemoji",
    ]


def test_a_look_follows_from_its_seed_and_stays_within_its_bounds():
    looks = [sample_look(np.random.default_rng([7, index])) for index in range(200)]
    assert looks == [sample_look(np.random.default_rng([7, index])) for index in range(200)]
    assert len(set(looks)) == 200
    for look in looks:
        assert max(map(abs, look.shift)) <= 2
        assert 0.84 <= look.scale <= 0.93
        assert min(look.shade) >= 130
        assert max(look.shade) <= 245
        assert max(look.shade) - min(look.shade) <= 20


def test_an_artwork_is_never_mirrored_or_turned():
    # One pixel near the upper left corner: mirrored or turned, it would appear in another quarter.
    for index in range(100):
        look = replace(sample_look(np.random.default_rng([7, index])), shade=(0, 0, 0))
        red = np.asarray(draw(one_pixel(8, 20), look))[..., 0].astype(float)
        rows, columns = np.indices(red.shape) + 0.5
        # Its centre is 23.5 to the left of the middle, 11.5 above it.
        expected = [32 + look.shift[axis] - look.scale * (23.5, 11.5)[axis] for axis in (0, 1)]
        centre = [(red * each).sum() / red.sum() for each in (columns, rows)]
        assert centre == pytest.approx(expected, abs=0.5)  # bytes round the faint edges away


def test_an_artwork_is_never_cut_off():
    full = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    red = np.asarray(draw(full, Look((2.0, -2.0), 0.93, (0, 0, 0))))[..., 0].astype(float)
    side = 0.93 * 64
    assert red.sum() / 255 == pytest.approx(side**2, abs=side)  # a row of pixels is more
    assert side / 2 + 2.0 < 32


def test_what_is_transparent_shows_the_shade():
    picture = np.asarray(draw(one_pixel(32, 32), Look((0.0, 0.0), 0.9, (200, 190, 180))))
    assert picture.shape == (64, 64, 3)
    assert picture[0, 0].tolist() == [200, 190, 180]
    assert picture[32, 32].tolist() != [200, 190, 180]


def test_pictures_go_through_the_artworks_again_and_again(tmp_path):
    artworks = [Image.new("RGBA", (64, 64), colour) for colour in ("red", "blue")]
    pictures = artwork.training_pictures(artworks, 5, tmp_path)
    assert pictures.shape == (5, 3, 64, 64)
    assert pictures[:, 0, 32, 32].tolist() == [255, 0, 255, 0, 255]
    assert not torch.equal(pictures[0], pictures[2])
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "old.npy")
    assert torch.equal(artwork.training_pictures(artworks, 5, tmp_path), pictures)


def test_an_archive_is_taken_only_if_it_is_the_one_that_was_meant(tmp_path, monkeypatch):
    package = PACKAGES[0]
    (tmp_path / f"{package.name}-{package.version}.tgz").write_bytes(b"another")
    with pytest.raises(RuntimeError, match="is not the emoji-datasource-google that was meant"):
        fetch(package, tmp_path)
    digest = b64encode(hashlib.sha512(b"another").digest()).decode()
    monkeypatch.setattr(artwork.subprocess, "run", pytest.fail)  # what is there is not fetched
    assert fetch(replace(package, integrity=f"sha512-{digest}"), tmp_path).is_file()


def test_prompts_are_drawn_with_a_seed_and_none_twice():
    emoji = select([entry(f"N{number}") for number in range(20)])
    judged, tuning = drawn_prompts(emoji, 25, 10)
    assert (len(judged), len(tuning), len({*judged, *tuning})) == (25, 10, 35)
    assert drawn_prompts(emoji, 25, 10) == [judged, tuning]


def test_cells_are_cut_row_by_row():
    latents = torch.arange(2 * 4 * 16 * 16).reshape(2, 4, 16, 16).float()
    cells = as_cells(latents)
    assert cells.shape == (2, 16, 64)
    for number in range(16):
        row, column = CELL * (number // 4), CELL * (number % 4)
        expected = latents[:, :, row : row + CELL, column : column + CELL].flatten(1)
        assert torch.equal(cells[:, number], expected)


def test_typical_latents_are_those_of_each_artwork_and_of_all():
    latents = torch.tensor([1.0, 10.0, 3.0, 20.0, 999.0])[:, None, None, None].expand(5, 4, 16, 16)
    typical = typical_latents(latents, 2)  # the fifth has no partner: the round is not complete
    assert typical[:, 0, 0, 0].tolist() == [2.0, 15.0, 8.5]


def test_embeddings_begin_near_each_other_where_the_pictures_are_alike():
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=8,
            hidden_size=2,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=3,
            bos_token_id=0,
            eos_token_id=7,
        )
    )
    before = text_encoder.get_input_embeddings().weight.detach().clone()
    # Token 0 begins and token 7 ends all prompts; 1 and 2 mean one picture, 3 and 4 another.
    ids = torch.tensor([[0, word, 7] for word in (1, 2, 3, 4)])
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4, 16, 16, generator=generator)
    start_embeddings(text_encoder, ids, torch.stack([one, one, other, other]) - other)
    after = text_encoder.get_input_embeddings().weight.detach()
    # The second component is nothing but rounding here, and its root is larger than it is.
    torch.testing.assert_close(after[1], after[2], rtol=0, atol=1e-3)
    torch.testing.assert_close(after[3], after[4], rtol=0, atol=1e-3)
    assert (after[1] - after[3]).norm() > 0.1
    assert torch.equal(after[[0, 5, 6, 7]], before[[0, 5, 6, 7]])


def test_places_lie_in_the_cell_around_them():
    assert cell_of_places(16, 4).view(4, 4).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [2, 2, 3, 3],
        [2, 2, 3, 3],
    ]
    assert cell_of_places(4, 4).tolist() == [0, 1, 2, 3]


def test_a_ridge_regression_finds_the_map_and_shrinks_it_a_little():
    inputs = torch.eye(3).repeat(5, 1)
    found = ridge(inputs, inputs @ torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 2.0, 3.0])) / 1.01)


def test_a_training_that_is_resumed_keeps_its_vocabulary(tmp_path):
    # The pairs of letters are equally frequent: each process may number them in another order.
    texts = [f"{one}{other}" for one in "abcdef" for other in "uvwxyz"]
    ids = kept_tokenizer(texts, tmp_path)(texts).input_ids
    assert kept_tokenizer(["other", "texts"], tmp_path)(texts).input_ids == ids
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_the_parts_of_a_batch_have_its_loss_together():
    clean = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def loss(part):
        generator = torch.Generator().manual_seed(1)
        predict = lambda noisy, steps: noisy * (1 + steps[:, None, None, None] / 1000)  # noqa: E731
        return weighted_noise_loss(predict, clean, noise_scheduler(), generator, part=part)

    parts = torch.stack([loss(slice(first, None, 2)) for first in (0, 1)])
    assert parts[0] != parts[1]
    torch.testing.assert_close(parts.mean(), loss(slice(None)))  # sums in another order
