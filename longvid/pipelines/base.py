"""LongVideoPipeline: diffusers' conventions at the edge, the rollout loop inside.

A pipeline is a transformer, a VAE and a text encoder; a method (`configs/*.yaml`) says how a long video is made of
them. Subclasses only name their method.

Shape letters: B batch, C channels, F latent frames, T video frames, H W pixels, h w latent size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from longvid.config import MethodConfig
from longvid.errors import InputError, UnknownNameError
from longvid.models.attend import attend_for_method, set_dense_backend
from longvid.models.denoiser import Denoiser, TextContext
from longvid.models.students import BASE
from longvid.models.vae_stream import streaming_decoder
from longvid.presets import resolve_method

from .given import initial_latents
from .noise import SeededNoise
from .output import LongVideoPipelineOutput, VideoChunk, callback_names, to_uint8
from .request import ModelFacts, Request, resolve
from .rollout import Rollout, StepHook
from .text import embed_prompts

DEFAULT_FPS = 16
DEFAULT_SIZE = (480, 832)  # of the Wan 1.3B checkpoints, when the model folder does not say


class LongVideoPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Long video by any method that runs on the rollout loop.

    transformer: diffusers' WanTransformer3DModel. vae: AutoencoderKLWan or AutoencoderTinyVideo. text_encoder,
    tokenizer: UMT5 and its tokenizer, or a CaptionEncoder and None. scheduler: kept for diffusers' folder format.

    The other arguments are the model's own sampling defaults (None: not given, the method's count). They are written
    to model_index.json and overrule the method; explicit call arguments overrule them. train_frames: latent frames of
    the clips it was trained on. height, width: pixels. fps: of the videos. fifo: ScheduleConfig values for "fifo"
    schedules alone.
    """

    method_name: ClassVar[str] = "self-forcing"
    schedule_kinds: ClassVar[tuple[str, ...]] = ("chunk", "rolling")
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer", "scheduler"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        scheduler: Any = None,
        frames_per_block: int | None = None,
        steps: list | None = None,
        shift: int | float | None = None,
        sampler: str | None = None,
        guidance_scale: int | float | None = None,
        fps: int | float | None = None,
        train_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fifo: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.register_to_config(
            frames_per_block=frames_per_block,
            steps=None if steps is None else list(steps),
            shift=shift,
            sampler=sampler,
            guidance_scale=guidance_scale,
            fps=fps,
            train_frames=train_frames,
            height=height,
            width=width,
            fifo=None if fifo is None else dict(fifo),
        )
        self.student: str = BASE  # whose adapter longvid.load merged into the transformer
        self._method: str | MethodConfig = self.method_name
        self._overrides: Mapping[str, Any] | None = None
        self._wired: Denoiser | None = None
        self.video_processor = VideoProcessor(vae_scale_factor=self._facts.spatial)

    # ---------------------------------------------------------------- what it is

    @property
    def _facts(self) -> ModelFacts:
        vae, config = self.vae.config, self.config
        spatial = getattr(vae, "scale_factor_spatial", None) or 8
        height, width = config.height or DEFAULT_SIZE[0], config.width or DEFAULT_SIZE[1]
        return ModelFacts(
            spatial=spatial * self.transformer.config.patch_size[1],
            temporal=getattr(vae, "scale_factor_temporal", None) or 4,
            fps=float(config.fps or DEFAULT_FPS),
            height=height,
            width=width,
            defaults=dict(config),
        )

    @property
    def fps(self) -> float:
        """Frames a second of the videos."""
        return self._facts.fps

    def use_method(self, method: str | MethodConfig, overrides: Mapping[str, Any] | None = None) -> LongVideoPipeline:
        """Render with another method or other constants from now on; returns self.

        A name takes the model's sampling defaults into account, a ready MethodConfig is used as it is. overrides:
        values over either, such as {"cache": {"window": 18}} or {"cache.window": 18}. Raises InputError, and leaves the
        method that was, for what is unknown or cannot be, and for a schedule that this pipeline does not run.
        """
        self._check_schedule(self._resolved(method, overrides))
        self._method, self._overrides = method, overrides
        return self

    @property
    def method(self) -> MethodConfig:
        """The method in force: preset, model defaults and overrides resolved."""
        return self._resolved(self._method, self._overrides)

    def _resolved(self, method: str | MethodConfig, overrides: Mapping[str, Any] | None) -> MethodConfig:
        defaults = self._facts.defaults if isinstance(method, str) else None
        return resolve_method(method, model_defaults=defaults, overrides=overrides)

    def _check_schedule(self, method: MethodConfig) -> None:
        kind = method.schedule.kind
        if kind not in self.schedule_kinds:
            known = " and ".join(map(repr, self.schedule_kinds))
            raise InputError(
                f"schedule.kind={kind!r}: {type(self).__name__} runs {known}; load the model with that method: "
                f"longvid.load(..., method={(method.name or kind)!r})"
            )

    @property
    def denoiser(self) -> Denoiser:
        """The transformer, wired to frame caches."""
        if self._wired is None or self._wired.transformer is not self.transformer:
            self._wired = Denoiser(self.transformer, device=self._execution_device)
        self._wired.device = self._execution_device
        return self._wired

    # ---------------------------------------------------------------- requests

    def check_inputs(self, prompt: str | Sequence[str], **arguments: Any) -> Request:
        """Check and resolve the arguments of a call without touching a weight. Raises InputError, one line."""
        taken = inspect.signature(resolve).parameters
        for name in arguments:
            if name not in taken:
                known = inspect.signature(self.__call__).parameters.keys() - {"output_type", "return_dict"}
                raise UnknownNameError("argument", name, sorted(known))
        method = arguments.pop("method", None) or self._method
        request = resolve(method, self._facts, prompt, overrides=self._overrides, **arguments)
        self._check_schedule(request.method)
        return request

    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Prompt (and negative prompt) embeddings, each [B, L_text, text_dim]."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else negative_prompt
        embeds = embed_prompts(self, prompts)
        return embeds, None if negative is None else embed_prompts(self, list(negative), quiet=True)

    def _context(self, prompts: Sequence[str], request: Request) -> TextContext:
        embeds, negative = self.encode_prompt(prompts, request.negative if request.guided else None)
        return self.denoiser.encode_text(embeds, negative)

    # ---------------------------------------------------------------- four ways to get a video

    def rollout(
        self,
        prompt: str | Sequence[str],
        *,
        image: Any = None,
        video: Any = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **arguments: Any,
    ) -> Rollout:
        """A rollout of latent blocks; iterate it. Arguments as `__call__`; without a length it is endless."""
        return self._start(
            prompt,
            image=image,
            video=video,
            latents=latents,
            height=height,
            width=width,
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
            endless=True,
            **arguments,
        )[1]

    def _start(
        self,
        prompt: str | Sequence[str],
        *,
        image: Any = None,
        video: Any = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        callback: Callable[..., Any] | None = None,
        callback_inputs: Sequence[str] = ("latents",),
        **arguments: Any,
    ) -> tuple[Request, Rollout]:
        if unknown := [name for name in callback_inputs if name not in self._callback_tensor_inputs]:
            raise InputError(
                f"callback_on_step_end_tensor_inputs={unknown}: must be among {self._callback_tensor_inputs}"
            )
        if callback is not None and not callable(callback):
            raise InputError(f"callback_on_step_end={callback!r}: must be a function (pipe, step, timestep, tensors)")
        # Everything that can be refused is refused here, before weights run; then again with the given frames' count.
        request = self.check_inputs(prompt, height=height, width=width, **arguments)
        initial = initial_latents(self, request, image=image, video=video, latents=latents)
        if initial is not None:
            request = self.check_inputs(
                prompt,
                height=height,
                width=width,
                given_frames=initial.shape[2],
                **arguments | {"seed": list(request.seeds), "generator": None},
            )
        hook = None if callback is None else self._step_hook(callback)
        with torch.no_grad():
            return request, self._make_rollout(request, initial, hook, request.method.attention.kind)

    def _make_rollout(self, request: Request, initial: Tensor | None, on_step: StepHook | None, attention: str) -> Any:
        """The loop for a request. Subclasses with a schedule of their own override this. attention: its kind."""
        config = request.method.attention
        schedule, cache = request.method.schedule, request.method.cache
        if schedule.sampler not in ("renoise", "euler"):
            raise InputError(f"schedule.sampler={schedule.sampler!r}: must be 'renoise' or 'euler' here")
        vae_factor = self._facts.spatial // self.transformer.config.patch_size[1]
        denoiser = Denoiser(self.transformer, attend_for_method(request.method), self._execution_device)
        set_dense_backend(self.transformer, config, denoiser.device)
        return Rollout(
            denoiser,
            request.schedule(),
            request.policy(),
            self._context(request.prompts, request),
            grid=request.grid,
            sigmas=request.sigmas,
            noise=SeededNoise(request.seeds),
            height=request.height // vae_factor,
            width=request.width // vae_factor,
            video_frames=request.frames,
            scene_grid=request.scene_grid,
            temporal=self._facts.temporal,
            sampler=schedule.sampler,
            context_noise=cache.context_noise,
            guidance_scale=schedule.guidance_scale,
            recache=cache.recache,
            initial=initial,
            encode=lambda text: self._context([text] * request.batch, request),
            prompt=request.prompts[0],
            switches=[(s.frame, s.text, s.cut) for s in request.switches],
            on_step=on_step,
        )

    def _step_hook(self, callback: Callable[..., Any]) -> StepHook:
        def hook(step: int, timestep: float, latents: Tensor) -> Tensor | None:
            given = callback(self, step, timestep, {"latents": latents})
            return given.get("latents") if isinstance(given, Mapping) else None

        return hook

    @torch.no_grad()
    def decoded(self, rollout: Any, frames: int | None, decoder: Any = None) -> Iterator[tuple[Any, Tensor]]:
        """(block, its video float32 [B, 3, T, H, W] in [-1, 1]), cut to `frames` video frames in all.

        decoder: a streaming decoder to go on with; a new one when None. It starts anew at every hard cut.
        """
        decoder = decoder or streaming_decoder(self.vae)
        for block in rollout:
            if block.new_scene:
                decoder.reset()
            video = decoder.decode(block.latents.to(self.vae.dtype))
            if frames is not None:
                video = video[:, :, : max(0, frames - block.video_frame)]
            if video.shape[2]:
                yield block, video

    def stream(self, prompt: str, **arguments: Any) -> Iterator[VideoChunk]:
        """Frames as they become ready. Arguments as `__call__`, one video; without a length the stream is endless.

        Arguments are checked at the call, not at the first chunk.
        """
        request, rollout = self._start(prompt, endless=True, **callback_names(arguments))
        if request.batch != 1:
            raise InputError(f"prompt: {request.batch} videos asked for; a stream shows one")
        return self._chunks(request, rollout)

    def _chunks(self, request: Request, rollout: Any) -> Iterator[VideoChunk]:
        for block, video in self.decoded(rollout, request.frames):
            yield VideoChunk(to_uint8(video)[0], block.index, block.video_frame, block.stats)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        seconds: float | None = None,
        num_frames: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        image: Any = None,
        video: Any = None,
        latents: Tensor | None = None,
        attention: Any = None,
        method: str | MethodConfig | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> LongVideoPipelineOutput | tuple[Any]:
        """Make whole videos.

        prompt: text, a prompt schedule ("a[5s] | b[10s#]"), or a list of texts (a batch). seconds or num_frames (4k+1):
        the length. seed or generator: sample i of a batch draws with seed + i. image: a first frame. video: frames to
        go on from, 4k+1. latents: normalised latents [B, C, F, h, w] to go on from. method, attention: by name, for
        this call. output_type: "np", "pil", "pt" or "latent". callback_on_step_end(pipe, step, timestep, {"latents"})
        may return {"latents": ...} to use instead.

        Raises InputError (a ValueError) for anything that cannot be made, before the model runs.
        """
        if output_type not in ("np", "pil", "pt", "latent"):
            raise InputError(f"output_type={output_type!r}: must be 'np', 'pil', 'pt' or 'latent'")
        request, rollout = self._start(
            prompt,
            image=image,
            video=video,
            latents=latents,
            height=height,
            width=width,
            attention=attention,
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
            negative_prompt=negative_prompt,
            seconds=seconds,
            num_frames=num_frames,
            seed=seed,
            generator=generator,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_videos_per_prompt=num_videos_per_prompt,
            method=method,
        )
        parts = []
        with self.progress_bar(total=request.blocks) as progress:
            if output_type == "latent":
                for block in rollout:
                    parts.append(block.latents)
                    progress.update()
                frames: Any = torch.cat(parts, dim=2)
            else:
                for _, piece in self.decoded(rollout, request.frames):
                    parts.append(piece.cpu())
                    progress.update()
                frames = self.video_processor.postprocess_video(torch.cat(parts, dim=2), output_type=output_type)
        self.maybe_free_model_hooks()
        return LongVideoPipelineOutput(frames=frames) if return_dict else (frames,)

    def render(self, prompt: str, path: str | Path, **arguments: Any) -> Any:
        """Make a video straight to disk, block by block; see longvid.pipelines.render.render_video."""
        from .render import render_video

        return render_video(self, prompt, path, **arguments)
