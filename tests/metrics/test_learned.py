import numpy as np
import pytest

from longvid.errors import InputError
from longvid.metrics.learned import learned_consistency, load_encoder


class Colours:
    """An encoder whose feature is the mean colour: its similarities can be reckoned by hand."""

    name = "colours"

    def encode(self, frames):
        return frames.mean(axis=(1, 2), dtype=np.float64)


def test_score_is_vbench_formula(clips):
    red, green, both = (clips.flat(8, rgb) for rgb in ((200, 0, 0), (0, 200, 0), (200, 200, 0)))
    found = learned_consistency(np.concatenate([red, red, green, both]), 16, Colours())
    half = 1 / np.sqrt(2)  # one frame each half second: red, red, green, both
    assert found.to_previous == pytest.approx((1 + 0 + half) / 3)
    assert found.to_first == pytest.approx((1 + 0 + half) / 3)
    assert found.score == pytest.approx((1 + 0 + half) / 3)
    assert found.encoder == "colours"


def test_the_end_is_told_apart_from_the_mean(clips):
    video = np.concatenate([clips.flat(16 * 30, (200, 0, 0)), clips.flat(16 * 5, (0, 200, 0))])
    found = learned_consistency(video, 16, Colours())
    assert found.to_first > 0.8
    assert found.last_to_first == 0


@pytest.mark.parametrize("kind", ["clip", "dinov2", "vit"])
def test_a_local_model_encodes_frames(tmp_path, clips, kind):
    """Tiny models of random weights: the plumbing is real, the numbers mean nothing."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if kind == "clip":
        model = t.CLIPModel(
            t.CLIPConfig(
                vision_config=small | {"intermediate_size": 32},
                text_config={
                    "hidden_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                },
                projection_dim=12,
            )
        )
    else:
        config = {"dinov2": t.Dinov2Config, "vit": t.ViTConfig}[kind](**small)
        model = {"dinov2": t.Dinov2Model, "vit": t.ViTModel}[kind](config)
    model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    t.ViTImageProcessorPil(size=size).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.name == f"{kind}:{tmp_path.name}"
    features = encoder.encode(clips.pan(5, 3))
    assert features.shape == (5, 12 if kind == "clip" else 16)
    assert np.isfinite(features).all()
    assert np.ptp(features, axis=0).max() > 1e-4, "different frames have different features"
    assert learned_consistency(clips.still(32), 16, encoder).score == pytest.approx(1, abs=1e-5)


def test_missing_weights_are_told_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json.*nothing is downloaded"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_encoder("openai/clip-vit-base-patch32")


def test_other_models_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match="'resnet' is not understood"):
        load_encoder(tmp_path)
