"""Tiny random models for the whole suite: the real classes, a few thousand weights, milliseconds a block."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import settings

# The same examples on every run and machine, and no limit on an example's time: a failure is a change's, not a draw's.
# HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))


def make_transformer(seed: int = 0, *, layers: int = 2, heads: int = 2, head_dim: int = 12, channels: int = 4) -> Any:
    """A random WanTransformer3DModel, float32, eval."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=channels,
        out_channels=channels,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    ).eval()


def make_pipe(name: str = "self-forcing", *, seed: int = 0, **defaults: Any) -> Any:
    """A pipeline of tiny random components for a method by name: 64 x 64 pixels, 16 fps, 4 tokens a latent frame."""
    import longvid
    from longvid.config import MethodConfig
    from longvid.models.autoencoder import AutoencoderTinyVideo
    from longvid.models.captions import CaptionEncoder

    transformer = make_transformer(seed)
    torch.manual_seed(seed + 1)
    vae = AutoencoderTinyVideo(z_dim=4, widths=(8, 8, 8), depths=(1, 1, 1)).eval()
    text_encoder = CaptionEncoder(text_dim=16).eval()
    cls = getattr(longvid, MethodConfig.load(name).pipeline)
    sampling = {"fps": 16, "height": 64, "width": 64, "train_frames": 21} | defaults
    pipe = cls(transformer=transformer, vae=vae, text_encoder=text_encoder, **sampling)
    pipe.set_progress_bar_config(disable=True)
    return pipe.use_method(name)


@pytest.fixture
def tiny_pipe() -> Any:
    """A Self-Forcing pipeline of tiny random components; `use_method(name)` gives it any other chunk-wise method."""
    return make_pipe()


@pytest.fixture(scope="session")
def make_tiny_pipe() -> Any:
    """The factory behind `tiny_pipe`: make_tiny_pipe("deep-forcing", seed=1, steps=[1000, 500])."""
    return make_pipe


@pytest.fixture(scope="session")
def make_tiny_transformer() -> Any:
    """A factory of tiny random WanTransformer3DModels."""
    return make_transformer


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A saved tiny model, as `longvid.load(folder)` takes it. Read-only by convention."""
    folder = tmp_path_factory.mktemp("tiny_model")
    make_pipe(frames_per_block=3, steps=[1000, 500], shift=3.0).save_pretrained(folder)
    return folder


def storages(thing: Any, apart: tuple[type, ...] = ()) -> dict[int, int]:
    """Address to bytes of the memory behind all tensors that an object leads to, but not through types `apart`."""
    found: dict[int, int] = {}
    seen, ahead = set(), [thing]
    while ahead:
        one = ahead.pop()
        if id(one) in seen or isinstance(one, apart):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            memory = one.untyped_storage()
            found |= {memory.data_ptr(): memory.nbytes()} if memory.data_ptr() else {}  # none if empty or on "meta"
        elif isinstance(one, Mapping):
            ahead += one.values()
        elif isinstance(one, (list, tuple, set)):
            ahead += one
        else:
            ahead += vars(one).values() if hasattr(one, "__dict__") else ()
            ahead += [getattr(one, name) for name in getattr(type(one), "__slots__", ()) if hasattr(one, name)]
    return found


@pytest.fixture(scope="session")
def cache_storages() -> Callable[[Any], dict[int, int]]:
    """Address to bytes of all that a frame cache holds, counted out: its position tables are the model's."""
    from longvid.cache.layer_store import CallView
    from longvid.models.rope import RotaryTables

    return lambda cache: storages(cache, apart=(CallView, RotaryTables))
