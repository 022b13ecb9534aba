"""Judges the model `emoji`: is the nearest training picture the one that the prompt names?

Near is what the classifier's features call near. The guidance scale is chosen on other prompts
than those that are judged. Figures go to ``benchmarks/results/emoji.json``; a contact sheet, for
the eye, to ``--sheet``. Run from the project's root: ``python -m benchmarks.train.evaluate_emoji``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from benchmarks.train.emoji import Emoji, load, training_pictures
from benchmarks.train.emoji_classifier import EmojiClassifier
from benchmarks.train.evaluate import EVALUATION_SEED, contact_sheet, generate, provenance
from benchmarks.train.shape_classifier import as_batch
from benchmarks.train.train_emoji import ARTWORKS, LOOKS
from benchmarks.train.train_emoji_classifier import features, fresh_pictures
from benchmarks.train.training import MODELS, saves

RESULTS = Path(__file__).resolve().parents[1] / "results" / "emoji.json"


def drawn_prompts(emoji: list[Emoji], *counts: int) -> list[list[Emoji]]:
    """Lists of emoji to ask for, drawn with a seed; none is in two lists, or in one twice."""
    order = np.random.default_rng(EVALUATION_SEED).permutation(len(emoji)).tolist()
    ends = np.cumsum(counts).tolist()
    return [
        [emoji[index] for index in order[end - count : end]]
        for count, end in zip(counts, ends, strict=True)
    ]


class Judge:
    """Finds the nearest training picture.

    Args:
        classifier: Gives the features.
        emoji: All of them; training picture ``r`` shows emoji ``r % len(emoji)``.
        pictures: The training pictures, uint8 of shape ``(count, 3, 64, 64)``.
    """

    def __init__(
        self, classifier: EmojiClassifier, emoji: list[Emoji], pictures: torch.Tensor
    ) -> None:
        self._classifier, self._emoji = classifier, emoji
        self._known = features(classifier, pictures)

    def nearest(self, pictures: torch.Tensor) -> list[Emoji]:
        """The emoji of the training picture nearest to each picture, floats in [0, 1]."""
        rows = (features(self._classifier, pictures) @ self._known.T).argmax(1).tolist()
        return [self._emoji[row % len(self._emoji)] for row in rows]

    def shares(self, pictures: torch.Tensor, wanted: list[Emoji]) -> dict[str, float]:
        """How many of the pictures are what was wanted, with one standard error."""
        found = self.nearest(pictures)
        read = self._classifier.read(pictures)
        hits = {
            "name_and_style": [a == b for a, b in zip(found, wanted, strict=True)],
            "name": [a.name == b.name for a, b in zip(found, wanted, strict=True)],
            "style": [a.style == b.style for a, b in zip(found, wanted, strict=True)],
            "read_by_the_classifier_alone": [
                a == b.prompt for a, b in zip(read, wanted, strict=True)
            ],
        }
        figures = {name: round(float(np.mean(hit)), 4) for name, hit in hits.items()}
        share = figures["name_and_style"]
        figures["standard_error"] = round((share * (1 - share) / len(wanted)) ** 0.5, 4)
        return figures


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures, floats in [0, 1], encoded and decoded: the best that the pipeline could draw."""
    parts = torch.split(pictures * 2 - 1, 128)
    coded = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in parts]
    return (torch.cat(coded) / 2 + 0.5).clamp(0, 1)


def choose_guidance(
    pipeline: StableDiffusionPipeline,
    judge: Judge,
    wanted: list[Emoji],
    options: argparse.Namespace,
) -> tuple[float, dict[str, float]]:
    """The guidance scale at which most names and styles are right, and the share at each."""
    shares: dict[str, float] = {}
    for scale in options.guidance_scales:
        pictures = draw_all(pipeline, wanted, scale, options)
        shares[str(scale)] = judge.shares(as_batch(pictures), wanted)["name_and_style"]
        print(f"guidance scale {scale}: {shares[str(scale)]}")
    best = max(shares, key=lambda scale: shares[scale])
    return float(best), shares


def draw_all(
    pipeline: StableDiffusionPipeline,
    wanted: list[Emoji],
    guidance: float,
    options: argparse.Namespace,
) -> list[Image.Image]:
    """One picture for each emoji, the n-th from seed n."""
    return generate(
        pipeline,
        [each.prompt for each in wanted],
        steps=options.steps,
        guidance=guidance,
        batch_size=options.batch_size,
    )


def main() -> None:
    """Choose the guidance scale, generate, judge, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the models")
    parser.add_argument("--prompts", type=int, default=200, help="prompts to judge")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps")
    parser.add_argument(
        "--guidance-scales",
        type=float,
        nargs="+",
        default=[1.5, 3.0, 5.0],
        help="the best is chosen on the tuning prompts",
    )
    parser.add_argument("--tuning-prompts", type=int, default=40, help="to choose the scale on")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=LOOKS * ARTWORKS, help="as in training")
    parser.add_argument("--checkpoint-dir", type=Path, default=Path("build/train-emoji"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write")
    parser.add_argument("--sheet", type=Path, help="PNG file for a contact sheet of 64 pictures")
    options = parser.parse_args()

    emoji, artworks = load(options.checkpoint_dir / "npm")
    known = training_pictures(artworks, options.pictures, options.checkpoint_dir)
    classifier = EmojiClassifier.from_pretrained(options.models / "emoji-classifier")
    judge = Judge(classifier, emoji, known)
    pipeline = StableDiffusionPipeline.from_pretrained(
        options.models / "emoji", dtype=torch.float32
    ).to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    wanted, others = drawn_prompts(emoji, options.prompts, options.tuning_prompts)
    guidance, tuning = options.guidance_scales[0], {}
    if len(options.guidance_scales) > 1:
        guidance, tuning = choose_guidance(pipeline, judge, others, options)
    pictures = draw_all(pipeline, wanted, guidance, options)
    if not saves():
        return
    if options.sheet:
        contact_sheet(pictures[:64], options.sheet, columns=8)
        print([each.prompt for each in wanted[:64]])
    fresh = fresh_pictures(artworks)
    part = np.random.default_rng(EVALUATION_SEED).choice(len(emoji), options.prompts, replace=False)
    coded = through(pipeline.vae.cpu(), fresh[part])
    report: dict[str, Any] = provenance("benchmarks.train.evaluate_emoji", options.device) | {
        "prompts": len(wanted),
        "prompt_seed": EVALUATION_SEED,
        "picture_seeds": f"0 to {len(wanted) - 1}",
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": options.steps,
        "guidance_scale": guidance,
        "guidance_scales_tried": {
            "prompts": len(others) if tuning else 0,
            "name_and_style": tuning,
        },
        "nearest_training_picture": judge.shares(as_batch(pictures), wanted),
        "the_judge_itself": {
            "fresh_pictures_of_the_artwork": judge.shares(fresh, emoji),
            "some_of_them_through_the_autoencoder": {
                "pictures": len(part),
                "psnr": round(-10 * (coded - fresh[part]).square().mean().log10().item(), 2),
                **judge.shares(coded, [emoji[index] for index in part]),
            },
        },
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
