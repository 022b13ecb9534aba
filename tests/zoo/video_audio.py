"""Tiny pipelines of diffusers that make video or sound, and UniDiffuser, each in its main uses.

Their denoisers are of every kind that diffusers has beside the plain `UNet2DConditionModel`: with
motion modules, of three dimensions, spatio-temporal, of one dimension, with two encoder streams,
and a transformer with the skips of a U-Net. What they return goes from frames to a waveform or
latents of text.
"""

from __future__ import annotations

import functools
import warnings
from string import ascii_lowercase, digits
from typing import Any, TypeVar

import numpy as np
import torch
from builders.cases import ABSENT, PROMPT, Case, make_case, picture, run_pipeline
from builders.models import MODELS, load_pipeline, model_folder
from builders.parts import (
    UNCHECKED,
    from_vocabulary,
    sd_parts,
    sdxl_parts,
    text_config,
    tokenizer,
    vae,
)
from builders.schedulers import sd_scheduler
from builders.unets import SDXL, SIDE, TEXT_WIDTH, seeded, unet2d, unet2d_condition
from builders.versions_needed import deprecated
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    DanceDiffusionPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    IPNDMScheduler,
    MotionAdapter,
    MusicLDMPipeline,
    PIAPipeline,
    SparseControlNetModel,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    TextToVideoZeroPipeline,
    TextToVideoZeroSDXLPipeline,
    UNet1DModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
    UniDiffuserModel,
    UniDiffuserPipeline,
    UniDiffuserTextDecoder,
    VideoToVideoSDPipeline,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

# `diffusers.AudioDiffusionPipeline` is a stand-in that refuses to work without librosa.
AudioDiffusionPipeline = deprecated(
    "audio_diffusion.pipeline_audio_diffusion"
).AudioDiffusionPipeline

#: Frames of a video, where a case says nothing else.
FRAMES = 3

Model = TypeVar("Model", bound=torch.nn.Module)


def woken(model: Model) -> Model:
    """`model`, with small random weights where diffusers starts from zeros.

    Those are the last layers of what training adds to a finished model, such as a ControlNet's
    convolutions or the convolutions over frames. With zeros nothing in front of them would matter.
    """
    for weight in model.parameters():
        if weight.dim() > 1 and not weight.any():
            torch.nn.init.xavier_uniform_(weight, gain=0.5)
    return model


def frames(count: int = FRAMES, side: int = SIDE, *, seed: int = 0) -> list[Image.Image]:
    return [picture(side, seed=seed + frame) for frame in range(count)]


# --- motion modules ---------------------------------------------------------------------------


def motion_adapter(unet: torch.nn.Module, **options: Any) -> MotionAdapter:
    """The motion modules that fit `unet`."""
    return woken(
        MotionAdapter(
            block_out_channels=unet.config.block_out_channels,
            motion_layers_per_block=unet.config.layers_per_block,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
            motion_max_seq_length=8,
            **options,
        )
    )


def with_motion(parts: dict[str, Any], **adapter: Any) -> dict[str, Any]:
    return {**parts, "motion_adapter": motion_adapter(parts["unet"], **adapter)}


#: Shared by a U-Net and its ControlNet.
CONTROLLED: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 2}


def animatediff() -> AnimateDiffPipeline:
    return AnimateDiffPipeline(**with_motion(sd_parts(layers_per_block=1)))


def animatediff_controlnet() -> AnimateDiffControlNetPipeline:
    controlnet = ControlNetModel(
        **CONTROLLED,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 8),
    )
    return AnimateDiffControlNetPipeline(
        **with_motion(sd_parts(**CONTROLLED)), controlnet=woken(controlnet)
    )


def animatediff_sdxl() -> AnimateDiffSDXLPipeline:
    unet = unet2d_condition(**SDXL, cross_attention_dim=2 * TEXT_WIDTH, layers_per_block=1)
    return AnimateDiffSDXLPipeline(
        **with_motion({**sdxl_parts(), "unet": unet}, use_motion_mid_block=False)
    )


def animatediff_sparse() -> AnimateDiffSparseControlNetPipeline:
    layout = {**CONTROLLED, "layers_per_block": 1}
    controlnet = SparseControlNetModel(
        **layout,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )
    return AnimateDiffSparseControlNetPipeline(
        **with_motion(sd_parts(**layout)), controlnet=woken(controlnet)
    )


def pia() -> PIAPipeline:
    # The adapter brings the U-Net's first convolution for latents, mask and picture.
    parts = sd_parts(block_out_channels=(8, 8, 16), layers_per_block=1)
    return PIAPipeline(**with_motion(parts, conv_in_channels=9))


def load_free_noise() -> DiffusionPipeline:
    """AnimateDiff that attends over windows of four frames, two apart; its latents are shuffled."""
    pipe = load_pipeline(AnimateDiffPipeline, animatediff)
    pipe.enable_free_noise(context_length=4, context_stride=2)
    return pipe


# --- three dimensions -------------------------------------------------------------------------


def vision_encoder(side: int) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=side,
            patch_size=side // 2,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=TEXT_WIDTH,
        )
    )


def image_processor(side: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)


#: The layout of both U-Nets that have convolutions and attention over frames.
UNET_3D: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": TEXT_WIDTH,
}


def text_to_video() -> TextToVideoSDPipeline:
    return TextToVideoSDPipeline(**{**sd_parts(), "unet": woken(UNet3DConditionModel(**UNET_3D))})


def i2vgen_xl() -> I2VGenXLPipeline:
    return I2VGenXLPipeline(
        **{**sd_parts(), "unet": woken(I2VGenXLUNet(**{**UNET_3D, "layers_per_block": 2}))},
        image_encoder=vision_encoder(32),
        feature_extractor=image_processor(32),
    )


def stable_video_diffusion() -> StableVideoDiffusionPipeline:
    # The groups of its last norms are 32, whatever the config says.
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=TEXT_WIDTH,
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=3 * 4,
    )
    return StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            layers_per_block=1,
            force_upcast=False,
        ),
        # The pipeline resizes the picture to this side.
        image_encoder=vision_encoder(224),
        feature_extractor=image_processor(224),
        unet=woken(unet),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        ),
    )


#: In the 50 steps that are usual, 44 and 47 of them before the end. A first frame goes alone down
#: to `t1`, then to `t0`; after that all frames are denoised together, from `t1` on.
ZERO: dict[str, Any] = {"t0": 1, "t1": 3, "video_length": 4}


def load_zero() -> DiffusionPipeline:
    # It wants to be told that there is no safety checker, whatever its folder says.
    pipe = TextToVideoZeroPipeline.from_pretrained(
        model_folder(MODELS["sd"]), local_files_only=True, **UNCHECKED
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_zero(pipe: DiffusionPipeline, **options: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        # Torch's words on how the pipelines shift the latents of their frames.
        warnings.filterwarnings("ignore", "torch.meshgrid|Default grid_sample", UserWarning)
        return run_pipeline(pipe, defaults={**PROMPT, **ZERO}, **options)


# --- sound ------------------------------------------------------------------------------------

#: Mel channels of the sound pipelines' spectrograms.
MELS = 16


def roberta_tokenizer() -> RobertaTokenizer:
    """Spells, as `tiny.tokenizer` does. `Ġ` is a space."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *ascii_lowercase, *digits]
    vocab = {word: index for index, word in enumerate(words)}
    return from_vocabulary(RobertaTokenizer, vocab=vocab, merges=[], model_max_length=77)


def clap_text_config() -> ClapTextConfig:
    return ClapTextConfig(
        vocab_size=len(roberta_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
        projection_dim=TEXT_WIDTH,
        # With the default all prompts would have nearly the same embedding.
        initializer_factor=20.0,
    )


def clap() -> ClapModel:
    # The pipelines use the half for text only.
    audio = {
        "spec_size": 16,
        "num_mel_bins": 16,
        "window_size": 2,
        "patch_size": 2,
        "patch_stride": [2, 2],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "projection_dim": TEXT_WIDTH,
    }
    return ClapModel(
        ClapConfig(
            text_config=clap_text_config().to_dict(),
            audio_config=audio,
            projection_dim=TEXT_WIDTH,
        )
    )


def spectrogram_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
    )


def vocoder() -> SpeechT5HifiGan:
    """Makes four samples of each step of a spectrogram."""
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=MELS,
            upsample_initial_channel=8,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
            # With the default the waveform would hardly depend on the spectrogram.
            initializer_range=0.2,
        )
    )


def sound_parts(**unet: Any) -> dict[str, Any]:
    """The parts that AudioLDM and MusicLDM share: text comes in as class labels."""
    channels = unet.get("block_out_channels", (8, 16, 16))
    return {
        "vae": spectrogram_vae(),
        "tokenizer": roberta_tokenizer(),
        "unet": unet2d_condition(
            # Without hidden states of an encoder the attention is to the blocks' own.
            cross_attention_dim=channels,
            class_embed_type="simple_projection",
            class_embeddings_concat=True,
            projection_class_embeddings_input_dim=TEXT_WIDTH,
            **unet,
        ),
        "scheduler": sd_scheduler(),
        "vocoder": vocoder(),
    }


def audioldm() -> AudioLDMPipeline:
    return AudioLDMPipeline(
        **sound_parts(), text_encoder=ClapTextModelWithProjection(clap_text_config())
    )


def musicldm() -> MusicLDMPipeline:
    return MusicLDMPipeline(
        **sound_parts(block_out_channels=(8, 16), layers_per_block=1),
        text_encoder=clap(),
        feature_extractor=ClapFeatureExtractor(),
    )


def audioldm2() -> AudioLDM2Pipeline:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *ascii_lowercase, *digits]
    with seeded(0):
        unet = AudioLDM2UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            # Of each block's three attentions: to itself, the language model's and T5's states.
            cross_attention_dim=([None, 16, TEXT_WIDTH],) * 2,
        )
    return AudioLDM2Pipeline(
        vae=spectrogram_vae(),
        text_encoder=clap(),
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(pieces),
                d_model=TEXT_WIDTH,
                d_ff=16,
                d_kv=8,
                num_heads=2,
                num_layers=2,
            )
        ),
        projection_model=AudioLDM2ProjectionModel(TEXT_WIDTH, TEXT_WIDTH, 16),
        language_model=GPT2LMHeadModel(
            GPT2Config(
                vocab_size=8,
                n_embd=16,
                n_head=2,
                n_layer=2,
                n_positions=99,
                max_new_tokens=4,
                bos_token_id=0,
                eos_token_id=0,
            )
        ),
        tokenizer=roberta_tokenizer(),
        tokenizer_2=from_vocabulary(
            T5Tokenizer,
            vocab=[(piece, -2.0) for piece in pieces],
            extra_ids=0,
            model_max_length=77,
        ),
        feature_extractor=ClapFeatureExtractor(),
        unet=unet,
        scheduler=sd_scheduler(),
        vocoder=vocoder(),
    )


def dance_diffusion() -> DanceDiffusionPipeline:
    # Three levels, a skip for each; attention wants 32 channels at least.
    unet = UNet1DModel(
        sample_size=64,
        sample_rate=16000,
        block_out_channels=(8, 32, 32),
        # The time, as channels beside the sound's.
        extra_in_channels=16,
    )
    # As it comes, it makes so much noise that half of the sound would end clamped.
    last = unet.up_blocks[-1].resnets[-1]
    with torch.no_grad():
        for weight in (*last.conv_2.parameters(), *last.conv_skip.parameters()):
            weight *= 0.2
    return DanceDiffusionPipeline(unet=unet, scheduler=IPNDMScheduler())


class Mel(ConfigMixin):
    """In place of diffusers' `Mel`, which wants librosa: a picture's "sound" is its pixels.

    The pipeline asks it for the sound of the pictures that it made, after all the denoising.
    """

    config_name = "mel_config.json"

    @register_to_config
    def __init__(self, sample_rate: int = 16000) -> None:
        self.sample_rate = sample_rate

    def get_sample_rate(self) -> int:
        return self.sample_rate

    def image_to_audio(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, dtype=np.float32).ravel() / 255


def load_audio_diffusion() -> DiffusionPipeline:
    # Not `from_pretrained`: that looks for `Mel` below diffusers, where it wants librosa.
    unet = unet2d(
        sample_size=(SIDE, SIDE),
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    # With the usual betas, up to 0.02, most pixels would end clamped.
    scheduler = DDIMScheduler(beta_end=0.002)
    pipe = AudioDiffusionPipeline(vqvae=None, unet=unet, mel=Mel(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_audio_diffusion(
    pipe: DiffusionPipeline, *, steps: int = 5, seed: int = 0, **overrides: Any
) -> torch.Tensor:
    # `steps` is what the pipeline itself calls them.
    arguments = {"steps": steps, "generator": torch.Generator().manual_seed(seed), **overrides}
    return torch.as_tensor(pipe(**arguments).audios)


# --- UniDiffuser ------------------------------------------------------------------------------


def unidiffuser() -> UniDiffuserPipeline:
    words = ["<|endoftext|>", "Ġ", *ascii_lowercase]
    with seeded(0):
        # Blocks in, one in the middle and as many out: three skips.
        unet = UniDiffuserModel(
            text_dim=8,
            clip_img_dim=TEXT_WIDTH,
            num_text_tokens=77,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            norm_num_groups=4,
            sample_size=8,
            patch_size=2,
            activation_fn="gelu",
            norm_type="layer_norm",
            block_type="unidiffuser",
            use_timestep_embedding=False,
            ff_final_dropout=True,
            use_data_type_embedding=True,
        )
    text_decoder = UniDiffuserTextDecoder(
        prefix_length=77,
        prefix_inner_dim=TEXT_WIDTH,
        prefix_hidden_dim=8,
        vocab_size=len(words),
        n_positions=160,
        n_embd=16,
        n_layer=1,
        n_head=2,
    )
    # It cannot be saved with one tensor under two names.
    head = text_decoder.transformer.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return UniDiffuserPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()),
        image_encoder=vision_encoder(32),
        clip_image_processor=image_processor(32),
        clip_tokenizer=tokenizer(),
        text_decoder=text_decoder,
        text_tokenizer=from_vocabulary(
            GPT2Tokenizer, vocab={word: index for index, word in enumerate(words)}, merges=[]
        ),
        unet=woken(unet),
        scheduler=DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, solver_order=3
        ),
    )


def load_joint() -> DiffusionPipeline:
    pipe = load_pipeline(UniDiffuserPipeline, unidiffuser)
    # It would find the mode by itself, and log that it had to.
    pipe.set_joint_mode()
    return pipe


def run_to_latents(
    pipe: DiffusionPipeline,
    *,
    defaults: dict[str, Any],
    steps: int = 5,
    seed: int = 0,
    **overrides: Any,
) -> torch.Tensor:
    """The last latents, of everything made: a text's letters would hide small differences."""
    seen: list[torch.Tensor] = []
    pipe(
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        callback=lambda _step, _timestep, latents: seen.append(latents),
        **{**defaults, **overrides},
    )
    return seen[-1]


# --- cases ------------------------------------------------------------------------------------

#: Two prompts, where a pipeline does not make several results of one.
PROMPTS: dict[str, Any] = {"prompt": ["a small red circle", "two blue squares"]}
VIDEO = frames()
SIZE = {"height": SIDE + 8, "width": SIDE}
WITHOUT_GUIDANCE = {"guidance_scale": 1.0}
#: Of eight steps it leaves four, and the pipelines' own 0.8 and 1 leave six and all.
STRENGTH = {"strength": 0.6}

#: Other generations that every pipeline can make.
USUAL: dict[str, dict[str, Any]] = {"seed": {"seed": 1}, "steps": {"steps": 7}}

#: Those of a pipeline that takes a size and a guidance scale.
GUIDED = {**USUAL, "size": SIZE, "no-guidance": WITHOUT_GUIDANCE}

#: The pipelines for sound take a length, in seconds, in place of a size.
SOUND = {
    **USUAL,
    "batch": {"num_waveforms_per_prompt": 2},
    "size": {"audio_length_in_s": 0.006},
    "no-guidance": WITHOUT_GUIDANCE,
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        make_case(
            "animatediff",
            AnimateDiffPipeline,
            animatediff,
            # It makes one video for each prompt, whatever `num_videos_per_prompt` says.
            others={**GUIDED, "batch": PROMPTS},
            num_frames=FRAMES,
            **PROMPT,
        ),
        Case(
            name="animatediff-free-noise",
            pipeline=AnimateDiffPipeline,
            load=load_free_noise,
            run=functools.partial(run_pipeline, defaults={**PROMPT, "num_frames": 6}),
            # No lists of prompts here, but prompts for frames.
            others={**GUIDED, "prompts": {"prompt": {0: "a circle", 3: "a square"}}},
        ),
        make_case(
            "animatediff-controlnet",
            AnimateDiffControlNetPipeline,
            animatediff_controlnet,
            # No batch: there is one picture for each frame of one video.
            others=GUIDED,
            num_frames=FRAMES,
            conditioning_frames=VIDEO,
            **PROMPT,
        ),
        make_case(
            "animatediff-sdxl",
            AnimateDiffSDXLPipeline,
            animatediff_sdxl,
            others={**GUIDED, "batch": PROMPTS},
            num_frames=FRAMES,
            **PROMPT,
        ),
        make_case(
            "animatediff-sparse-controlnet",
            AnimateDiffSparseControlNetPipeline,
            animatediff_sparse,
            others={**GUIDED, "batch": PROMPTS},
            num_frames=FRAMES,
            conditioning_frames=[picture()],
            controlnet_frame_indices=[1],
            **PROMPT,
        ),
        make_case(
            "animatediff-video2video",
            AnimateDiffVideoToVideoPipeline,
            animatediff,
            others={
                **GUIDED,
                "batch": {**PROMPTS, "video": [VIDEO, frames(seed=9)]},
                "strength": STRENGTH,
            },
            video=VIDEO,
            **PROMPT,
        ),
        make_case(
            "animatediff-video2video-controlnet",
            AnimateDiffVideoToVideoControlNetPipeline,
            animatediff_controlnet,
            others={**GUIDED, "strength": STRENGTH},
            video=VIDEO,
            conditioning_frames=frames(seed=9),
            **PROMPT,
        ),
        make_case(
            "pia",
            PIAPipeline,
            pia,
            others={**GUIDED, "batch": PROMPTS, "strength": STRENGTH},
            image=picture(),
            num_frames=FRAMES,
            **PROMPT,
        ),
        make_case(
            "i2vgen-xl",
            I2VGenXLPipeline,
            i2vgen_xl,
            others={**GUIDED, "batch": {"num_videos_per_prompt": 2}},
            image=picture(),
            num_frames=FRAMES,
            height=SIDE,
            width=SIDE,
            # The default, 1, asks for a module that transformers 5's text encoder has not.
            clip_skip=None,
            **PROMPT,
        ),
        make_case(
            "text-to-video",
            TextToVideoSDPipeline,
            text_to_video,
            others={**GUIDED, "batch": PROMPTS},
            num_frames=FRAMES,
            **PROMPT,
        ),
        make_case(
            "video-to-video",
            VideoToVideoSDPipeline,
            text_to_video,
            others={
                **USUAL,
                "size": {"video": frames(side=SIDE + 8)},
                "no-guidance": WITHOUT_GUIDANCE,
                # No batch: it adds noise as if each prompt had one frame. Its strength is 0.6.
                "strength": {"strength": 0.8},
            },
            video=VIDEO,
            **PROMPT,
        ),
        Case(
            name="text-to-video-zero",
            pipeline=TextToVideoZeroPipeline,
            load=load_zero,
            run=run_zero,
            # It cannot do without guidance: it joins the prompt's embedding to a missing one. Nor
            # can it make two videos: it has motion for the frames of one.
            others={**USUAL, "size": SIZE},
        ),
        Case(
            name="text-to-video-zero-sdxl",
            pipeline=TextToVideoZeroSDXLPipeline,
            load=functools.partial(load_pipeline, TextToVideoZeroSDXLPipeline, MODELS["sdxl"]),
            run=run_zero,
            others=GUIDED,
        ),
        make_case(
            "stable-video-diffusion",
            StableVideoDiffusionPipeline,
            stable_video_diffusion,
            others={
                **USUAL,
                "batch": {"num_videos_per_prompt": 2},
                "size": SIZE,
                "no-guidance": {"max_guidance_scale": 1.0},
            },
            image=picture(),
            num_frames=FRAMES,
            height=SIDE,
            width=SIDE,
        ),
        make_case("audioldm", AudioLDMPipeline, audioldm, others=SOUND, **PROMPT),
        make_case("audioldm2", AudioLDM2Pipeline, audioldm2, others=SOUND, **PROMPT),
        make_case(
            "musicldm",
            MusicLDMPipeline,
            musicldm,
            others=SOUND,
            # In place of a prompt: it does not know what transformers 5's CLAP returns for one.
            prompt_embeds=noise(1, TEXT_WIDTH),
            negative_prompt_embeds=noise(1, TEXT_WIDTH, seed=1),
        ),
        Case(
            name="audio-diffusion",
            pipeline=AudioDiffusionPipeline,
            load=load_audio_diffusion,
            run=run_audio_diffusion,
            others={
                **USUAL,
                "batch": {"batch_size": 2},
                "size": {"noise": noise(1, 1, SIDE, SIDE + 8)},
            },
        ),
        make_case(
            "dance-diffusion",
            DanceDiffusionPipeline,
            dance_diffusion,
            others={
                **USUAL,
                "batch": {"batch_size": 2},
                "size": {"audio_length_in_s": 0.006},
            },
            output_type=ABSENT,
        ),
        # No sizes: the transformer has learnt positions for one.
        make_case(
            "unidiffuser-text2img",
            UniDiffuserPipeline,
            unidiffuser,
            others={
                **USUAL,
                "batch": {"num_images_per_prompt": 2},
                "no-guidance": WITHOUT_GUIDANCE,
            },
            **PROMPT,
        ),
        Case(
            name="unidiffuser-img2text",
            pipeline=UniDiffuserPipeline,
            load=functools.partial(load_pipeline, UniDiffuserPipeline, unidiffuser),
            run=functools.partial(run_to_latents, defaults={"image": picture()}),
            others={
                **USUAL,
                "batch": {"image": noise(2, 3, SIDE, SIDE).sigmoid()},
                "no-guidance": WITHOUT_GUIDANCE,
            },
        ),
        Case(
            name="unidiffuser-joint",
            pipeline=UniDiffuserPipeline,
            load=load_joint,
            run=functools.partial(run_to_latents, defaults={}),
            others={
                **USUAL,
                "batch": {"num_images_per_prompt": 2, "num_prompts_per_image": 2},
                "no-guidance": WITHOUT_GUIDANCE,
            },
        ),
    )
}
