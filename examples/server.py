"""A server with a switch for each request: `POST /generate {"prompt": "...", "fast": false}`.

For a real model: `--model stable-diffusion-v1-5/stable-diffusion-v1-5`.
"""

import argparse
import io
import threading
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import uvicorn
from diffusers import DiffusionPipeline
from fastapi import FastAPI, Response
from pydantic import BaseModel

from deepcache_patch import DeepCacheHelper

SHAPES = Path(__file__).resolve().parents[1] / "benchmarks" / "models" / "shapes"


class Order(BaseModel):
    """The JSON of a request; all but the prompt may be left out."""

    prompt: str
    fast: bool = True
    seed: int = 0
    steps: int = 50


def create_app(pipe: DiffusionPipeline) -> FastAPI:
    """Returns an app that serves one pipeline, whose helper is enabled as long as it runs."""
    app, helper, turn = FastAPI(), DeepCacheHelper(pipe).enable(), threading.Lock()

    @app.post("/generate")
    def generate(order: Order) -> Response:  # not `async`: FastAPI then runs it in a thread
        call = {"num_inference_steps": order.steps, "guidance_scale": 4}  # 7.5 for real ones
        # A pipeline serves one request at a time. `paused()` is for the thread that enters it.
        with turn, nullcontext() if order.fast else helper.paused():
            generator = torch.Generator().manual_seed(order.seed)
            picture = pipe(order.prompt, generator=generator, **call).images[0]
        picture.save(file := io.BytesIO(), "png")
        return Response(file.getvalue(), media_type="image/png")

    app.get("/stats")(lambda: asdict(helper.stats))
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SHAPES, help="a folder, or a name on the hub")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = DiffusionPipeline.from_pretrained(options.model, dtype=dtype).to(device)
    print(f"POST http://127.0.0.1:{options.port}/generate", flush=True)
    uvicorn.run(create_app(pipe), port=options.port)
