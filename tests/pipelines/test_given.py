"""What a video goes on from: the same pictures in every form, and what is refused before the model runs."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longvid.errors import InputError
from longvid.pipelines.given import initial_latents

PROMPT = "a red ball bounces over green hills"


def pictures(count: int = 5) -> np.ndarray:
    """uint8 [T, 64, 64, 3]"""
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def tensors(clip: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clip).moveaxis(-1, -3)


FORMS = {
    "uint8-array": lambda clip: clip,
    "float-array": lambda clip: clip / np.float32(255),
    "float64-array": lambda clip: clip / 255,
    "uint8-tensor": tensors,
    "float-tensor": lambda clip: tensors(clip) / 255,
    "signed-tensor": lambda clip: tensors(clip) / 127.5 - 1,
    "pil": lambda clip: Image.fromarray(clip) if clip.ndim == 3 else [Image.fromarray(one) for one in clip],
    "arrays": lambda clip: [clip] if clip.ndim == 3 else list(clip),
}


def latents_of(pipe: Any, **given: Any) -> torch.Tensor:
    request = pipe.check_inputs(PROMPT, seconds=2, seed=0)
    found = initial_latents(pipe, request, **{"image": None, "video": None, "latents": None} | given)
    assert found is not None
    return found


@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor with value range in")
@pytest.mark.parametrize("form", FORMS)
def test_a_picture_is_the_same_in_every_form(tiny_pipe: Any, form: str) -> None:
    picture, clip = pictures()[0], pictures()
    expected = latents_of(tiny_pipe, image=Image.fromarray(picture))
    torch.testing.assert_close(latents_of(tiny_pipe, image=FORMS[form](picture)), expected, atol=1e-4, rtol=0)
    expected = latents_of(tiny_pipe, video=[Image.fromarray(one) for one in clip])
    torch.testing.assert_close(latents_of(tiny_pipe, video=FORMS[form](clip)), expected, atol=1e-4, rtol=0)


def test_streamed_frames_are_gone_on_from_as_they_were(tiny_pipe: Any) -> None:
    """They are uint8, which would be all white if it were taken for floats."""
    clip = np.concatenate([chunk.frames for chunk in tiny_pipe.stream(PROMPT, num_frames=33, seed=0)])
    found, again = (latents_of(tiny_pipe, video=video) for video in (clip, clip.astype(np.float32) / 255))
    assert torch.equal(found, again)


def test_a_grey_picture_is_one_of_three_equal_channels(tiny_pipe: Any) -> None:
    grey = Image.fromarray(pictures()[0]).convert("L")
    assert torch.equal(latents_of(tiny_pipe, image=grey), latents_of(tiny_pipe, image=grey.convert("RGB")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": 3}, "image=int: must be a PIL image"),
        ({"image": "nope.png"}, "image=str: must be a PIL image"),
        ({"image": pictures()[0] * 1.0}, r"image: floats from 0 to 255; must be within 0\.\.1, or uint8"),
        ({"image": pictures()[0].astype(np.int64)}, "image: numbers of type int64"),
        ({"image": np.zeros((64, 64, 4), np.uint8)}, "image: 4 channels"),
        ({"image": np.zeros((64, 64), np.uint8)}, r"image: shape \(64, 64\)"),
        ({"image": np.full((64, 64, 3), np.nan)}, "image: floats from nan"),
        ({"image": [pictures()[0], pictures()[1]]}, "image: 2 given for 1 videos"),
        ({"video": np.zeros((5, 3))}, r"video: shape \(5, 3\); must be a list of PIL images"),
        ({"video": pictures(6)}, "video: 6 frames; must be 4k\\+1; nearest 5 or 9"),
        ({"video": []}, "video=list"),
        ({"latents": "x"}, r"latents=str: must be a tensor \[1 or B, 4, F, 4, 4\]"),
        ({"latents": torch.zeros(1, 2)}, r"latents: shape \(1, 2\)"),
        ({"latents": torch.zeros(4, 3, 8, 8)}, r"latents: shape \(4, 3, 8, 8\)"),
        ({"latents": torch.zeros(1, 4, 3, 4, 5)}, r"latents: shape \(1, 4, 3, 4, 5\)"),
        ({"latents": torch.zeros(2, 4, 3, 4, 4)}, "latents: 2 given for 1 videos"),
        ({"image": pictures()[0], "video": pictures()}, "image, video: give one of them"),
        ({"callback_on_step_end": 3}, "callback_on_step_end=3: must be a function"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_gone_on_from_is_refused_before_the_model_runs(
    tiny_pipe: Any, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_pipe.transformer, "forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=message):
        tiny_pipe(PROMPT, num_frames=45, seed=0, **given)
