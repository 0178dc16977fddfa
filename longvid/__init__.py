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
from typing import TYPE_CHECKING, Any

# name -> module. What is listed here is longvid's public surface; tests/test_public_surface.py pins it.
_PLACES = {
    "load": "longvid.pipelines.loading",
    "LongVideoPipeline": "longvid.pipelines.base",
    "LongVideoPipelineOutput": "longvid.pipelines.output",
    "VideoChunk": "longvid.pipelines.output",
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
    __version__: str
    from longvid.config import AttentionConfig as AttentionConfig
    from longvid.config import CacheConfig as CacheConfig
    from longvid.config import MethodConfig as MethodConfig
    from longvid.config import ScheduleConfig as ScheduleConfig
    from longvid.errors import InputError as InputError
    from longvid.models.autoencoder import AutoencoderTinyVideo as AutoencoderTinyVideo
    from longvid.models.captions import CaptionEncoder as CaptionEncoder
    from longvid.pipelines.base import LongVideoPipeline as LongVideoPipeline
    from longvid.pipelines.deep_forcing import DeepForcingPipeline as DeepForcingPipeline
    from longvid.pipelines.fifo import FifoPipeline as FifoPipeline
    from longvid.pipelines.loading import load as load
    from longvid.pipelines.ouroboros import OuroborosPipeline as OuroborosPipeline
    from longvid.pipelines.output import LongVideoPipelineOutput as LongVideoPipelineOutput
    from longvid.pipelines.output import VideoChunk as VideoChunk
    from longvid.pipelines.reward_forcing import RewardForcingPipeline as RewardForcingPipeline
    from longvid.pipelines.rolling_forcing import RollingForcingPipeline as RollingForcingPipeline
    from longvid.pipelines.self_forcing import SelfForcingPipeline as SelfForcingPipeline
    from longvid.pipelines.streaming_llm import StreamingLLMPipeline as StreamingLLMPipeline


def _register_with_diffusers() -> None:
    """Let diffusers save and load pipelines whose components are classes of longvid.

    diffusers keeps a table library -> base class -> methods, and resolves ``["longvid", "AutoencoderTinyVideo"]`` of a
    model_index.json by ``getattr(longvid, ...)`` and that table.
    """
    from diffusers.pipelines import pipeline_loading_utils

    methods = ["save_pretrained", "from_pretrained"]
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault("longvid", {"ModelMixin": methods, "SchedulerMixin": methods})


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("longvid")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0.0.0+checkout"


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = _installed_version()
    elif name in ("ModelMixin", "SchedulerMixin"):  # diffusers asks the library itself for the table's base classes
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
