"""longvid: long video from short-clip diffusion models.

A long video is one loop with three free choices: what to denoise together (schedule), what to remember (cache policy),
what to attend to (attention). Every published method is a named combination of the three.

    import longvid
    pipe = longvid.load("embedded")
    pipe.render("a red ball bounces over green hills", "out.mp4", seconds=60, seed=0)

Names are imported on first use, so ``import longvid`` costs milliseconds and does not import torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("longvid")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0.0.0+checkout"

# name -> module. What is listed here is longvid's public surface; tests/test_public_surface.py pins it.
_PLACES = {
    "load": "longvid.pipelines.loading",
    "LongVideoPipeline": "longvid.pipelines.base",
    "LongVideoPipelineOutput": "longvid.pipelines.base",
    "VideoChunk": "longvid.pipelines.base",
    "SelfForcingPipeline": "longvid.pipelines.self_forcing",
    "StreamingLLMPipeline": "longvid.pipelines.streaming_llm",
    "DeepForcingPipeline": "longvid.pipelines.deep_forcing",
    "RollingForcingPipeline": "longvid.pipelines.rolling_forcing",
    "RewardForcingPipeline": "longvid.pipelines.reward_forcing",
    "FifoPipeline": "longvid.pipelines.fifo",
    "OuroborosPipeline": "longvid.pipelines.ouroboros",
    "AutoencoderTinyVideo": "longvid.models.autoencoder",
    "CaptionEncoder": "longvid.models.captions",
    "MethodConfig": "longvid.config",
    "ScheduleConfig": "longvid.config",
    "CacheConfig": "longvid.config",
    "AttentionConfig": "longvid.config",
    "InputError": "longvid.errors",
}
__all__ = ["__version__", *_PLACES]

if TYPE_CHECKING:  # what type checkers and editors see; at run time __getattr__ does it
    from longvid.config import AttentionConfig, CacheConfig, MethodConfig, ScheduleConfig
    from longvid.errors import InputError
    from longvid.models.autoencoder import AutoencoderTinyVideo
    from longvid.models.captions import CaptionEncoder
    from longvid.pipelines.base import LongVideoPipeline, LongVideoPipelineOutput, VideoChunk
    from longvid.pipelines.deep_forcing import DeepForcingPipeline
    from longvid.pipelines.fifo import FifoPipeline
    from longvid.pipelines.loading import load
    from longvid.pipelines.ouroboros import OuroborosPipeline
    from longvid.pipelines.reward_forcing import RewardForcingPipeline
    from longvid.pipelines.rolling_forcing import RollingForcingPipeline
    from longvid.pipelines.self_forcing import SelfForcingPipeline
    from longvid.pipelines.streaming_llm import StreamingLLMPipeline


def _register_with_diffusers() -> None:
    """Let diffusers save and load pipelines whose components are classes of longvid.

    diffusers keeps a table library -> base class -> methods, and resolves ``["longvid", "AutoencoderTinyVideo"]`` of a
    model_index.json by ``getattr(longvid, ...)`` and that table.
    """
    from diffusers.pipelines import pipeline_loading_utils

    methods = ["save_pretrained", "from_pretrained"]
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault("longvid", {"ModelMixin": methods, "SchedulerMixin": methods})


def __getattr__(name: str) -> Any:
    if name in ("ModelMixin", "SchedulerMixin"):  # diffusers asks the library itself for the table's base classes
        value = getattr(importlib.import_module("diffusers"), name)
    elif name in _PLACES:
        place = _PLACES[name]
        if place.startswith(("longvid.models", "longvid.pipelines")):
            _register_with_diffusers()
        value = getattr(importlib.import_module(place), name)
    else:
        raise AttributeError(f"module 'longvid' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
