"""Released checkpoints by name: where they are, which method they were trained for, and under which licence.

longvid ships none of them. The licence is shown before a known checkpoint is fetched or loaded; where sources
contradict each other, both are quoted and the stricter one is what we go by.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from longvid.errors import UnknownNameError

__all__ = ["KNOWN", "Known", "find_known", "identify", "licence_notice", "show_licence"]

_LOG = logging.getLogger("longvid.licence")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A released checkpoint."""

    name: str
    """What to call it on the command line."""
    title: str
    """Name in words."""
    hub: str
    """Repository on the Hugging Face hub."""
    file: str
    """Path of the transformer in it; a folder ends with a slash."""
    lora: str | None = None
    """Path of the LoRA that belongs on top."""
    method: str
    """The method (configs/NAME.yaml) that it was trained for."""
    settings: tuple[str, ...] = ()
    """What to --set on top of that method's configuration."""
    licence: str
    """What its authors say."""
    commercial: bool
    """Whether the licence, read strictly, allows commercial use."""
    base: str | None = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """Where its VAE, text encoder and tokenizer come from; None when they are in the same repository."""
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What model_index.json records when it is converted."""


def _family(**changes: Any) -> Mapping[str, Any]:
    """Sampling defaults of the Self-Forcing family."""
    shared = {
        "frames_per_block": 3,
        "steps": [1000, 750, 500, 250],
        "shift": 5.0,
        "sampler": "renoise",
        "guidance_scale": 1.0,
        "fps": 16,
        "train_frames": 21,
    }
    return MappingProxyType(shared | changes)


_ALL = (
    Known(
        name="self-forcing",
        title="Self Forcing, DMD",
        hub="gdhe17/Self-Forcing",
        file="checkpoints/self_forcing_dmd.pt",
        method="self-forcing",
        licence="weights: CC BY-NC-SA 4.0 on the model card; code: Apache-2.0",
        commercial=False,
        sampling=_family(),
    ),
    Known(
        name="self-forcing-sid",
        title="Self Forcing, SiD",
        hub="gdhe17/Self-Forcing",
        file="checkpoints/self_forcing_sid.pt",
        method="self-forcing",
        licence="weights: CC BY-NC-SA 4.0 on the model card; code: Apache-2.0",
        commercial=False,
        sampling=_family(),
    ),
    Known(
        name="rolling-forcing",
        title="Rolling Forcing, DMD",
        hub="TencentARC/RollingForcing",
        file="checkpoints/rolling_forcing_dmd.pt",
        method="rolling-forcing",
        licence="Tencent's own licence: academic use only, code and weights (the model card says MIT)",
        commercial=False,
        sampling=_family(steps=[1000, 800, 600, 400, 200], train_frames=27),
    ),
    Known(
        name="longlive",
        title="LongLive 1.0",
        hub="Efficient-Large-Model/LongLive-1.3B",
        file="models/longlive_base.pt",
        lora="models/lora.pt",
        method="longlive",
        licence="Apache-2.0 since 2025-11-01 (code; before that CC BY-NC-SA 4.0), read the model card for the weights",
        commercial=True,
        sampling=_family(train_frames=240),
    ),
    Known(
        name="reward-forcing",
        title="Reward Forcing",
        hub="JaydenLu666/Reward-Forcing-T2V-1.3B",
        file="rewardforcing.pt",
        method="reward-forcing",
        licence="Apache-2.0",
        commercial=True,
        sampling=_family(),
    ),
    Known(
        name="causvid",
        title="CausVid, autoregressive",
        hub="tianweiy/CausVid",
        file="autoregressive_checkpoint/model.pt",
        method="self-forcing",
        licence="weights: CC BY-NC 4.0 on the model card; code: CC BY-NC-SA 4.0",
        commercial=False,
        sampling=MappingProxyType({"frames_per_block": 3, "fps": 16, "train_frames": 21}),
    ),
    Known(
        name="causal-forcing",
        title="Causal Forcing, chunk-wise",
        hub="zhuhz22/Causal-Forcing",
        file="chunkwise/causal_forcing.pt",
        method="self-forcing",
        licence="Apache-2.0",
        commercial=True,
        sampling=_family(),
    ),
    Known(
        name="wan2.1-t2v-1.3b",
        title="Wan 2.1 text-to-video 1.3B",
        hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        file="transformer/",
        method="fifo",
        licence="Apache-2.0",
        commercial=True,
        base=None,
        sampling=MappingProxyType({"fps": 16, "train_frames": 21}),
    ),
)
#: Every known checkpoint by name.
KNOWN: Mapping[str, Known] = MappingProxyType({known.name: known for known in _ALL})

# Written by `convert` into what it makes, so that the licence stays with the weights.
RECORD = "longvid_checkpoint.json"
_GENERIC = {"model.pt"}


def find_known(name: str) -> Known:
    """A known checkpoint by name.

    Raises:
        UnknownNameError: proposing the nearest name.
    """
    if name not in KNOWN:
        raise UnknownNameError("checkpoint", name, KNOWN)
    return KNOWN[name]


def identify(source: str | Path) -> Known | None:
    """Which known checkpoint a name, a hub id or a path is; None for any other.

    A local file is recognised by its name (where that is telling) or by its last two folders.
    """
    text = str(source).replace("\\", "/").rstrip("/")
    if text in KNOWN:
        return KNOWN[text]
    path = Path(source)
    record = path / RECORD
    if record.is_file():
        from longvid.models.checkpoints.files import read_json

        return KNOWN.get(str(read_json(record).get("checkpoint")))
    for known in _ALL:
        file = known.file.rstrip("/")
        base = file.rsplit("/", 1)[-1]
        if text == known.hub or text == f"{known.hub}/{file}" or text.endswith(f"{known.hub.split('/')[-1]}/{file}"):
            return known
        if base not in _GENERIC and not known.file.endswith("/") and text.rsplit("/", 1)[-1] == base:
            return known
        if "/" in file and not known.file.endswith("/") and text.endswith(f"/{file}"):
            return known
    return None


def licence_notice(source: str | Path) -> str | None:
    """What to show before a checkpoint is used: one or two lines, or None when it is not a known one."""
    known = identify(source)
    if known is None:
        return None
    use = "" if known.commercial else " Read strictly, it forbids commercial use."
    also = f" Its LoRA {known.lora} belongs on top." if known.lora else ""
    return (
        f"{known.title} (huggingface.co/{known.hub}), licence: {known.licence}.{use} Keeping to it is up to you; "
        f"longvid ships no weights of others.{also}"
    )


_shown: set[str] = set()


def show_licence(source: str | Path) -> None:
    """Log the notice of a known checkpoint as a warning, once a process."""
    notice = licence_notice(source)
    if notice and notice not in _shown:
        _shown.add(notice)
        _LOG.warning(notice)
