"""Subject masks, and attention that sees the subject once more."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn.functional import scaled_dot_product_attention

from longvid.config import AttentionConfig
from longvid.kernels.attention.naive import token_mask
from longvid.kernels.radial import RadialSpec, rollout_blocks
from longvid.models.attend import attend_for
from longvid.models.subject_attention import SubjectTokens, attend_with_subject, gather_subject
from longvid.models.subject_mask import binary_mask, dilated_mask, otsu_threshold, subject_probability
from longvid.models.taps import check_layers, last_third, middle_half, tap_keys, tap_subject
from longvid.models.window_denoiser import WindowDenoiser, gather_text, split_branches

HEADS, DIM, TEXT = 2, 12, 16


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=DIM,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=48,
        num_layers=4,
    ).eval()


def test_appending_a_token_adds_log_two_to_its_logit() -> None:
    """In joint attention, Eq. 4 with the window's own tokens is a bias on the subject's keys."""
    q, k, v = (normal(2, 10, 3, 8, seed=s) for s in range(3))
    mask = normal(2, 10, seed=3) > 0.3
    ours = attend_with_subject(q, k, v, gather_subject(k, v, mask))
    logits = torch.einsum("blnd,bmnd->bnlm", q, k) / math.sqrt(8) + math.log(2) * mask[:, None, None]
    biased = torch.einsum("bnlm,bmnd->blnd", logits.softmax(-1), v)
    torch.testing.assert_close(ours, biased)


def test_no_subject_is_plain_attention() -> None:
    q, k, v = (normal(2, 6, 3, 8, seed=s) for s in range(3))
    empty = gather_subject(k, v, torch.zeros(2, 6, dtype=torch.bool))
    assert torch.equal(attend_with_subject(q, k, v, empty), attend_with_subject(q, k, v, None))


def test_padding_rows_take_no_part() -> None:
    q, k, v = (normal(2, 6, 3, 8, seed=s) for s in range(3))
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :4], mask[1, 5] = True, True
    both = attend_with_subject(q, k, v, gather_subject(k, v, mask))
    for row in range(2):
        one = slice(row, row + 1)
        alone = attend_with_subject(q[one], k[one], v[one], gather_subject(k[one], v[one], mask[one]))
        torch.testing.assert_close(both[one], alone)


def test_beyond_the_limit_the_best_scores_stay() -> None:
    k, v = normal(1, 6, 1, 2), normal(1, 6, 1, 2, seed=1)
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.7, 0.3]])
    mask = torch.tensor([[True, True, False, True, True, True]])
    kept = gather_subject(k, v, mask, scores=scores, limit=3)
    torch.testing.assert_close(kept.key[0, :, 0], k[0, [0, 4, 5], 0])
    assert kept.valid.all()


def test_repeated_tokens_keep_the_sample_fastest() -> None:
    tokens = SubjectTokens(normal(2, 3, 1, 4), normal(2, 3, 1, 4, seed=1), torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(tokens.repeat(3).key[4:], tokens.key)


# -- masks -----------------------------------------------------------------------------------------------------


def test_probability_is_the_full_softmax_s_share_of_the_subject_s_columns() -> None:
    q, k = normal(2, 7, HEADS, DIM, dtype=torch.float32), normal(2, 5, HEADS, DIM, seed=1, dtype=torch.float32)
    weights = (torch.einsum("blnd,bpnd->bnlp", q, k) / math.sqrt(DIM)).softmax(-1).mean(1)
    expected = torch.stack([weights[0, :, [1, 2]].sum(-1), weights[1, :, [4]].sum(-1)])
    for chunk in (2, 100):
        torch.testing.assert_close(subject_probability(q, k, [(1, 2), (4,)], chunk=chunk), expected)


def test_otsu_cuts_between_two_classes() -> None:
    values = torch.tensor([[0.1] * 6 + [0.8] * 2, [0.3] * 8])
    cut = otsu_threshold(values)
    assert 0.1 < cut[0] < 0.8
    assert cut[1] == 0.5


def test_a_mask_marks_the_subject_and_drops_areas_that_cannot_be_one() -> None:
    probability = torch.full((1, 3, 100), 0.1)
    probability[0, 0, 10:30] = 0.9  # a fifth of the frame
    probability[0, 1, :90] = 0.9  # nearly all of it
    assert binary_mask(probability)[0].sum(-1).tolist() == [20, 0, 0]


def test_a_small_grid_may_hold_one_token() -> None:
    probability = torch.full((1, 1, 16), 0.1)
    probability[0, 0, 5] = 0.9
    assert binary_mask(probability).nonzero().tolist() == [[0, 0, 5]]


def test_resizing_dilates() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 3, 3] = 1
    assert dilated_mask(mask, (8, 8)).sum() == 1
    assert dilated_mask(mask, (16, 16)).sum() > 4


# -- the transformer -------------------------------------------------------------------------------------------


def test_a_window_at_one_timestep_is_the_base_model_s_own_call(transformer: WanTransformer3DModel) -> None:
    latents, text = normal(2, 4, 3, 4, 6, dtype=torch.float32), normal(2, 5, TEXT, seed=1, dtype=torch.float32)
    plain = transformer(latents, torch.full((2,), 700.0), text, return_dict=False)[0]
    denoiser = WindowDenoiser(transformer, subject_layers=(2, 3))
    try:
        context = denoiser.encode_text(text)
        ours = denoiser.predict(latents, torch.full((2, 3), 700.0), context, 1.0)
        torch.testing.assert_close(ours, plain.float(), atol=2e-5, rtol=1e-4)
    finally:
        denoiser.release()


def test_each_frame_has_its_own_timestep(transformer: WanTransformer3DModel) -> None:
    latents, text = normal(1, 4, 3, 4, 6, dtype=torch.float32), normal(1, 5, TEXT, seed=1, dtype=torch.float32)
    seq = 2 * 3
    timesteps = torch.tensor([[100.0, 500.0, 900.0]])
    plain = transformer(latents, timesteps.repeat_interleave(seq, dim=1), text, return_dict=False)[0]
    denoiser = WindowDenoiser(transformer)
    try:
        ours = denoiser.predict(latents, timesteps, denoiser.encode_text(text), 1.0)
        torch.testing.assert_close(ours, plain.float(), atol=2e-5, rtol=1e-4)
    finally:
        denoiser.release()


def test_the_negative_prompt_does_not_see_the_subject(transformer: WanTransformer3DModel) -> None:
    latents, t = normal(1, 4, 3, 4, 6, dtype=torch.float32), torch.full((1, 3), 500.0)
    denoiser = WindowDenoiser(transformer, subject_layers=(2, 3))
    text = denoiser.encode_text(*(normal(1, 5, TEXT, seed=s, dtype=torch.float32) for s in (1, 2)))
    mask = torch.zeros(1, 18, dtype=torch.bool)
    mask[0, :5] = True
    boost = (mask, torch.ones(1, 18))
    unguided = denoiser.predict(latents, t, text, 0.0)
    torch.testing.assert_close(denoiser.predict(latents, t, text, 0.0, boost=boost), unguided)
    assert (
        denoiser.predict(latents, t, text, 1.0, boost=boost) - denoiser.predict(latents, t, text, 1.0)
    ).abs().max() > 1e-4
    denoiser.release()


@pytest.mark.parametrize("guided", [False, True], ids=["one-branch", "guided"])
def test_under_radial_attention_the_subject_is_seen_beside_the_mask(
    transformer: WanTransformer3DModel, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    """Every layer is one softmax over [masked window ; subject], the subject as many tokens as each sample has."""
    frames, rows, columns = 12, 6, 16  # frames wider than the bands, so that the mask hides much
    tokens = rows * columns
    layers = {1: [3, 0], 2: [5, 40]}  # valid subject tokens of each sample, by layer
    appended = {
        layer: SubjectTokens(
            normal(2, max(counts), HEADS, DIM, seed=layer, dtype=torch.float32),
            normal(2, max(counts), HEADS, DIM, seed=9 + layer, dtype=torch.float32),
            torch.stack([torch.randperm(max(counts)) < n for n in counts]),
        )
        for layer, counts in layers.items()
    }
    latents, t = normal(2, 4, frames, 2 * rows, 2 * columns, dtype=torch.float32), torch.full((2, frames), 500.0)
    denoiser = WindowDenoiser(transformer, subject_layers=(1, 2, 3))
    prompts = [normal(2, 5, TEXT, seed=s, dtype=torch.float32) for s in (1, 2)[: 1 + guided]]
    text = denoiser.encode_text(*prompts)
    denoiser.attend = attend_for(AttentionConfig(kind="radial", backend="gather"))
    ours = denoiser.predict(latents, t, text, 2.0, appended=appended)

    window = token_mask(rollout_blocks(range(frames), range(frames), tokens, RadialSpec.for_grid(tokens)))[0]
    assert window.float().mean() < 0.7
    seen = []

    def masked(query, key, value, attn_mask=None, **_):
        if query.shape[1] != frames * tokens or key.shape[1] < frames * tokens:
            return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)
        mask = window.expand(query.shape[0], 1, -1, -1)
        if key.shape[1] > frames * tokens:
            more = attn_mask[..., frames * tokens :] if attn_mask is not None else None
            wide = key.shape[1] - frames * tokens
            more = torch.ones(query.shape[0], 1, 1, wide, dtype=torch.bool) if more is None else more
            mask = torch.cat([mask, more.expand(-1, -1, frames * tokens, -1)], dim=-1)
            seen.append(wide)
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), mask)
        return out.transpose(1, 2)

    denoiser.attend = None
    monkeypatch.setattr("longvid.models.subject_attention.dispatch_attention_fn", masked)
    monkeypatch.setattr("longvid.models.attention.dispatch_attention_fn", masked)
    truth = denoiser.predict(latents, t, text, 2.0, appended=appended)
    assert sorted(seen) == [3, 40]
    torch.testing.assert_close(ours, truth, atol=2e-5, rtol=0)
    denoiser.release()


def test_windows_of_unlike_prompts_in_one_call(transformer: WanTransformer3DModel) -> None:
    denoiser = WindowDenoiser(transformer)
    texts = [
        denoiser.encode_text(*(normal(2, 5, TEXT, seed=s, dtype=torch.float32) for s in seeds))
        for seeds in ((1, 2), (3, 4))
    ]
    windows = [normal(2, 4, 3, 4, 6, seed=s, dtype=torch.float32) for s in (5, 6)]
    t = torch.full((2, 3), 500.0)
    alone = torch.cat([denoiser.predict(x, t, text, 3.0) for x, text in zip(windows, texts, strict=True)])
    together = denoiser.predict(torch.cat(windows), t.repeat(2, 1), gather_text(texts), 3.0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    negative, positive = split_branches(texts[0])
    u, c = (denoiser.predict(windows[0], t, branch, 1.0) for branch in (negative, positive))
    torch.testing.assert_close(u + 3 * (c - u), alone[:2], atol=1e-5, rtol=1e-4)
    denoiser.release()


def test_taps_see_keys_and_shares_and_leave_no_hooks(transformer: WanTransformer3DModel) -> None:
    denoiser = WindowDenoiser(transformer)
    text = denoiser.encode_text(*(normal(1, 5, TEXT, seed=s, dtype=torch.float32) for s in (1, 2)))
    latents, t = normal(1, 4, 3, 4, 6, dtype=torch.float32), torch.full((1, 3), 500.0)
    plain = denoiser.predict(latents, t, text, 2.0)
    with (
        tap_keys(transformer, (1, 3), lambda out: out, values=True) as found,
        tap_subject(transformer, (1, 2), text, [(0, 3)]) as share,
    ):
        tapped = denoiser.predict(latents, t, text, 2.0)
    assert torch.equal(plain, tapped)
    assert sorted(found["key"]) == sorted(found["value"]) == [1, 3]
    assert found["key"][1].shape == (2 * 3, 6, HEADS * DIM)
    assert share.mean.shape == (1, 18)
    assert ((share.mean > 0) & (share.mean < 1)).all()
    with tap_subject(transformer, (1, 2), text, [tuple(range(5))]) as whole:
        denoiser.predict(latents, t, text, 2.0)
    torch.testing.assert_close(whole.mean, torch.ones(1, 18))
    assert not any(m._forward_hooks for m in transformer.modules())
    denoiser.release()


def test_layers_of_small_and_large_models() -> None:
    assert last_third(30) == tuple(range(20, 30))
    assert last_third(1) == middle_half(1) == (0,)
    assert middle_half(8) == (2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"guidance.layers=\(9,\): must name layers between 0 and 7"):
        check_layers((9,), 8, "guidance.layers")
