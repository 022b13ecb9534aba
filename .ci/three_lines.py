"""README's first example, to the letter, on a tiny pipeline with random weights.

python .ci/three_lines.py          # without words: the package's own dependencies are enough
python .ci/three_lines.py --text   # Stable Diffusion, with transformers
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def without_words() -> Any:
    """A pipeline whose only part with weights is the U-Net."""
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    return diffusers.DDIMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler())


def stable_diffusion() -> Any:
    """Stable Diffusion, with a text encoder whose tokenizer spells."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["<|startoftext|>", *(f"{chr(sign)}</w>" for sign in range(33, 127)), "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {word: number for number, word in enumerate(words)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    """Run the example, and say what it did.

    Raises:
        SystemExit: If no call was shallow, or the pipeline is not as it was.
    """
    torch.manual_seed(0)
    pipe = stable_diffusion() if "--text" in sys.argv else without_words()
    pipe.set_progress_bar_config(disable=True)
    example = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None, "README has no example"
    code = example[1]
    if "--text" not in sys.argv:
        code = code.replace('pipe("...")', "pipe()")
    print(code)
    before = picture(pipe)
    names: dict[str, Any] = {"pipe": pipe}
    exec(code, names)
    stats, images = names["helper"].stats, names["images"]
    unchanged = np.array_equal(picture(pipe), before)
    print(f"{type(pipe).__name__}: {len(images)} picture of {images[0].size}, {stats}")
    print(f"the pipeline afterwards makes the same picture as before: {unchanged}", flush=True)
    if not stats.shallow_calls or not unchanged:
        sys.exit("the example did not do what it says")


def picture(pipe: Any) -> np.ndarray:
    """Of the plain pipeline, from a seed."""
    prompt = {"prompt": "a fox"} if "--text" in sys.argv else {}
    generator = torch.Generator().manual_seed(0)
    made = pipe(**prompt, num_inference_steps=5, generator=generator, output_type="np")
    return np.asarray(made.images)


if __name__ == "__main__":
    main()
