"""Reading the frames that a client received."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .conftest import Client


def colours(client: Client) -> np.ndarray:
    """Mean colour of each frame: [frames, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean((0, 1)) for _, data in client.frames])
