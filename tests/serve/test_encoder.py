"""Pictures on the wire: they decode, they are the right ones, and streams have keys where they should."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from longvid.serve.encoder import make_encoder
from longvid.serve.protocol import ProtocolError


@pytest.fixture
def frames() -> np.ndarray:
    """A bright square that walks over a gradient: [12, 48, 64, 3]."""
    video = np.zeros((12, 48, 64, 3), np.uint8)
    video[..., 0] = np.linspace(0, 200, 64, dtype=np.uint8)
    video[..., 2] = np.linspace(0, 120, 48, dtype=np.uint8)[:, None]
    for i in range(12):
        video[i, 16:32, 4 * i : 4 * i + 12] = (250, 240, 40)
    return video


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_stills(kind: str, frames: np.ndarray) -> None:
    pictures = make_encoder(kind, 64, 48, 16.0).encode(frames)
    assert all(picture.key for picture in pictures)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(p.data)).convert("RGB")) for p in pictures])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 6
    assert Image.open(io.BytesIO(pictures[0].data)).format == kind.upper()


def test_h264_is_one_unit_a_frame_with_a_key_a_block(frames: np.ndarray) -> None:
    encoder = make_encoder("h264", 64, 48, 16.0)
    pictures = [p for block in (frames[:1], frames[1:5], frames[5:]) for p in encoder.encode(block)]
    encoder.close()
    encoder.close()
    assert [i for i, picture in enumerate(pictures) if picture.key] == [0, 1, 5]
    assert all(picture.data.startswith(b"\x00\x00\x00\x01") for picture in pictures)
    for first in (0, 1, 5):  # from every key on it decodes, without what was before
        decoder = av.CodecContext.create("h264", "r")
        shown = []
        for picture in pictures[first:]:
            shown += decoder.decode(av.Packet(picture.data))
        shown += decoder.decode(None)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in shown])
        assert decoded.shape == frames[first:].shape
        assert np.abs(decoded.astype(int) - frames[first:]).mean() < 10


def test_h264_needs_even_sizes() -> None:
    with pytest.raises(ProtocolError, match="needs even sizes"):
        make_encoder("h264", 63, 48, 16.0)
