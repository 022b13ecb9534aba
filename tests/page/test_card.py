"""What a model's card says of how to call it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcache_patch.page.card import Card, card_of

MODELS = Path(__file__).parents[2] / "benchmarks" / "models"


def of(folder: Path, text: str | None = None) -> Card:
    if text is not None:
        (folder / "README.md").write_text(text, encoding="utf-8")
    return card_of(SimpleNamespace(name_or_path=str(folder)))


def test_the_demo_model_says_its_guidance_and_prompts() -> None:
    card = of(MODELS / "shapes")
    assert card.defaults == {"guidance_scale": 4.0}
    assert card.prompts[0] == "a small red circle above a large blue square"
    assert len(card.prompts) == 4


def test_the_prompts_of_the_emoji_model_are_of_names_that_it_knows() -> None:
    card, names = of(MODELS / "emoji"), (MODELS / "emoji" / "names.txt").read_text().splitlines()
    assert card.defaults == {"guidance_scale": 4.0}
    assert [prompt.rpartition(", ")[0] in names for prompt in card.prompts] == [True, True]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "# a model\n",
        "---\n---\n# a model\n",
        "---\n[1\n---\n",
        "---\n- a list\n---\n",
        "---\ninference: false\nwidget: []\n---\n",
        "---\ninference:\n  parameters: 4\nwidget: a fox\n---\n",
        "---\nwidget: true\n---\n",
        "---\nwidget:\n  - 1\n  - src: picture.png\n  - text: 4\n---\n",
        "---\ninference:\n  parameters:\n    guidance_scale: high\n    height: true\n---\n",
    ],
)
def test_a_card_that_says_nothing_of_use(tmp_path: Path, text: str | None) -> None:
    assert of(tmp_path, text) == Card()


def test_only_numbers_that_the_page_has_fields_for(tmp_path: Path) -> None:
    text = "---\ninference:\n  parameters:\n    num_inference_steps: 20\n    eta: 1.0\n---\n"
    assert of(tmp_path, text).defaults == {"num_inference_steps": 20}


@pytest.mark.parametrize("name", ["", None, "nobody/has-this-model", "no id : at all"])
def test_a_model_without_a_card_at_hand(name: str | None) -> None:
    assert card_of(SimpleNamespace(name_or_path=name)) == Card()
