"""A server of several replicas with Ray Serve, and a switch for each request.

`POST /generate {"prompt": "...", "fast": false}` is answered by the plain pipeline. Requests that
come together are drawn together, if their settings are the same.
For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`.
"""

import argparse
import asyncio
import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from fastapi import FastAPI, Response
from pydantic import BaseModel
from ray import serve

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"
app = FastAPI()


class Order(BaseModel):
    """The JSON of a request; all but the prompt may be left out."""

    prompt: str
    fast: bool = True
    seed: int = 0
    steps: int = 50

    @property
    def settings(self) -> tuple[bool, int]:
        """What must be the same for all that is drawn in one call of the pipeline."""
        return self.fast, self.steps


def as_png(picture: Any) -> bytes:
    """The bytes of a file."""
    picture.save(file := io.BytesIO(), "png")
    return file.getvalue()


@serve.deployment
@serve.ingress(app)
class Painter:
    """A replica: a pipeline with a helper that is enabled as long as it runs."""

    def __init__(self, model: str) -> None:
        on_gpu = torch.cuda.is_available()  # Ray hides those that are not this replica's
        device, dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
        self.pipe = DiffusionPipeline.from_pretrained(model, dtype=dtype).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.helper = DeepCacheHelper(self.pipe).enable()

    @app.post("/generate")
    async def generate(self, order: Order) -> Response:
        """Answers with a picture, and says what its call of the pipeline ran."""
        picture, headers = await self.draw(order)
        return Response(picture, media_type="image/png", headers=headers)

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.05)
    async def draw(self, orders: list[Order]) -> list[tuple[bytes, dict[str, str]]]:
        """Draws what came together, one call of the pipeline for each kind of settings."""
        drawn: dict[int, Any] = {}
        for settings in {order.settings for order in orders}:
            mine = [at for at, order in enumerate(orders) if order.settings == settings]
            # In a thread, so that the replica can take requests meanwhile.
            made = await asyncio.to_thread(self.paint, [orders[at] for at in mine], *settings)
            drawn.update(zip(mine, made, strict=True))
        return [drawn[at] for at in range(len(orders))]

    def paint(
        self, orders: list[Order], fast: bool, steps: int
    ) -> list[tuple[bytes, dict[str, str]]]:
        """One call of the pipeline, plain or accelerated."""
        before = self.helper.stats
        # `paused()` is for the thread that enters it; `draw` runs one of these at a time.
        with nullcontext() if fast else self.helper.paused():
            pictures = self.pipe(
                [order.prompt for order in orders],
                num_inference_steps=steps,
                guidance_scale=4,  # 7.5 for Stable Diffusion
                generator=[torch.Generator().manual_seed(order.seed) for order in orders],
            ).images
        shallow = self.helper.stats.shallow_calls - before.shallow_calls
        headers = {"x-drawn-together": str(len(orders)), "x-shallow-calls": str(shallow)}
        return [(as_png(picture), headers) for picture in pictures]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(SHAPES), help="a folder, or a name on the hub")
    parser.add_argument("--replicas", type=int, default=2)
    here = int(torch.cuda.is_available())
    parser.add_argument("--gpus", type=float, default=here, help="for each replica")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    serve.start(http_options={"port": options.port})
    print(f"POST http://127.0.0.1:{options.port}/generate", flush=True)
    painter = Painter.options(
        num_replicas=options.replicas, ray_actor_options={"num_gpus": options.gpus}
    )
    serve.run(painter.bind(options.model), blocking=True)
