"""Tiny students for the distillation tests."""

from __future__ import annotations

import pytest
import torch

from longvid.training.distill.network import Network


def shaken(model):
    """A model whose every output matters: diffusers starts some layers near zero."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def network(make_tiny_transformer):
    return Network(shaken(make_tiny_transformer()))


@pytest.fixture
def tiny_folder(make_tiny_pipe, tmp_path):
    """A saved pipeline: 64 x 64 pixels, clips of 9 latent frames, blocks of 3."""
    pipe = make_tiny_pipe(train_frames=9, frames_per_block=3, shift=3.0)
    shaken(pipe.transformer)
    folder = tmp_path / "base"
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
