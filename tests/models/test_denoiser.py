"""Cached, chunked evaluation of the stock transformer against full forwards."""

from __future__ import annotations

import pytest
import torch

from longvid.cache.policies import DeepSinkPolicy, SlidingPolicy
from longvid.models.attention import block_causal_mask
from longvid.models.denoiser import Denoiser


def inputs(frames=9, batch=1, height=4, width=6, channels=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, frames, height, width, generator=g)
    t = torch.rand(batch, frames, generator=g) * 1000
    return x, t, torch.randn(batch, 7, 16, generator=g)


def cached(denoiser, x, t, text, sizes, window=-1, offset=0):
    policy = SlidingPolicy(window=sum(sizes) if window == -1 else window, frames_per_block=max(sizes))
    cache = denoiser.new_cache(policy, batch=x.shape[0], height=x.shape[3], width=x.shape[4])
    out, start = [], 0
    for size in sizes:
        cache.begin(offset + start, size)
        span = slice(start, start + size)
        denoiser(torch.randn_like(x[:, :, span]), t[:, span], text, cache)  # leaves no trace
        out.append(denoiser(x[:, :, span], t[:, span], text, cache, "commit"))
        cache.commit()
        start += size
    return torch.cat(out, dim=2)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1, 4, 4], [2, 2, 2, 2, 1], [9]], ids=str)
@pytest.mark.parametrize("head_dim", [12, 32])
@torch.no_grad()
def test_cached_blocks_equal_one_masked_forward(make_tiny_transformer, sizes, head_dim):
    """Invariant 2 of the design: to 1e-5 in float32, per-frame noise levels included."""
    denoiser = Denoiser(make_tiny_transformer(head_dim=head_dim))
    x, t, embeds = inputs(batch=2)
    text = denoiser.encode_text(embeds)
    mask = block_causal_mask(sizes, 6)
    full = denoiser.full(x, t, text, mask=mask)
    torch.testing.assert_close(cached(denoiser, x, t, text, sizes), full, atol=1e-5, rtol=0)
    if len(sizes) > 1:
        assert (denoiser.full(x, t, text) - full).abs().max() > 1e-3


@pytest.mark.parametrize("window", [3, 5, 6])
@torch.no_grad()
def test_a_sliding_window_equals_its_mask(make_tiny_transformer, window):
    denoiser = Denoiser(make_tiny_transformer(layers=1))
    x, t, embeds = inputs(frames=12)
    text = denoiser.encode_text(embeds)
    full = denoiser.full(x, t, text, mask=block_causal_mask([3] * 4, 6, window))
    torch.testing.assert_close(cached(denoiser, x, t, text, [3] * 4, window), full, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_video_may_be_anywhere_in_time(make_tiny_transformer):
    """Past 1,024 latent frames, where Wan's own table ends."""
    denoiser = Denoiser(make_tiny_transformer())
    x, t, embeds = inputs()
    text = denoiser.encode_text(embeds)
    near = cached(denoiser, x, t, text, [3, 3, 3])
    far = cached(denoiser, x, t, text, [3, 3, 3], offset=100_000)
    torch.testing.assert_close(far, near, atol=2e-5, rtol=0)


@torch.no_grad()
def test_equals_diffusers_own_block_causal_model(make_tiny_transformer):
    """SkyReels-V2's transformer has Wan's weights and recomputes a block-causal window: an oracle in the library."""
    from diffusers import SkyReelsV2Transformer3DModel

    wan = make_tiny_transformer(head_dim=24)
    config = {
        k: v
        for k, v in wan.config.items()
        if not k.startswith("_") and k in SkyReelsV2Transformer3DModel._get_init_keys(SkyReelsV2Transformer3DModel)
    }
    oracle = SkyReelsV2Transformer3DModel(**config).eval()
    oracle.load_state_dict(wan.state_dict())
    oracle._set_ar_attention(3)
    x, _, embeds = inputs()
    t = torch.tensor([[1000.0] * 3 + [500.0] * 3 + [250.0] * 3])
    expected = oracle(x, t, embeds, enable_diffusion_forcing=True, return_dict=False)[0]
    denoiser = Denoiser(wan)
    ours = cached(denoiser, x, t, denoiser.encode_text(embeds), [3, 3, 3])
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)


@torch.no_grad()
def test_per_frame_levels_equal_the_stock_models_per_token_ones(make_tiny_transformer):
    wan = make_tiny_transformer()
    x, t, embeds = inputs()
    stock = wan(x, t.repeat_interleave(6, dim=1), embeds, return_dict=False)[0]
    denoiser = Denoiser(wan)
    ours = denoiser.full(x, t, denoiser.encode_text(embeds))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


@torch.no_grad()
def test_release_gives_the_stock_transformer_back(make_tiny_transformer):
    wan = make_tiny_transformer()
    names = list(wan.state_dict())
    x, t, embeds = inputs()
    before = wan(x, t[:, 0], embeds, return_dict=False)[0]
    denoiser = Denoiser(wan)
    assert list(wan.state_dict()) == names
    wired = wan(x, t[:, 0], embeds, return_dict=False)[0]  # outside a call: the stock function, without its limit
    torch.testing.assert_close(wired, before, atol=1e-4, rtol=0)
    denoiser.release()
    assert torch.equal(wan(x, t[:, 0], embeds, return_dict=False)[0], before)
    assert type(wan.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"


@torch.no_grad()
def test_text_is_projected_once_a_prompt_and_time_embedded_once_a_frame(make_tiny_transformer):
    wan = make_tiny_transformer()
    denoiser = Denoiser(wan)
    x, t, embeds = inputs(frames=3)
    text = denoiser.encode_text(embeds)
    seen = {}

    def count(name):
        def hook(module, args, output):
            seen[name] = seen.get(name, 0) + args[0].shape[:-1].numel()

        return hook

    watched = {
        "text_mlp": wan.condition_embedder.text_embedder.linear_1,
        "text_keys": wan.blocks[0].attn2.to_k,
        "time": wan.condition_embedder.time_proj,
    }
    handles = [module.register_forward_hook(count(name)) for name, module in watched.items()]
    cached(denoiser, x, t, text, [3])
    for handle in handles:
        handle.remove()
    assert seen.get("text_mlp", 0) == seen.get("text_keys", 0) == 0
    assert seen["time"] == 2 * 3  # two calls of three frames, not of eighteen tokens


@torch.no_grad()
def test_guidance_is_two_branches_of_one_cache(make_tiny_transformer):
    denoiser = Denoiser(make_tiny_transformer())
    x, t, embeds = inputs(frames=6)
    negative = torch.randn(1, 7, 16)
    policy = SlidingPolicy(window=6, frames_per_block=3)
    parts = []
    for text, scale in (
        (denoiser.encode_text(embeds), 1.0),
        (denoiser.encode_text(negative), 1.0),
        (denoiser.encode_text(embeds, negative), 2.5),
    ):
        cache = denoiser.new_cache(policy, batch=text.batch * text.branches, height=4, width=6)
        cache.begin(0, 3)
        denoiser(x[:, :, :3], t[:, :3], text, cache, "commit")
        cache.commit()
        cache.begin(3, 3)
        parts.append(denoiser(x[:, :, 3:], t[:, 3:], text, cache, guidance_scale=scale))
    cond, uncond, guided = parts
    torch.testing.assert_close(guided, uncond + 2.5 * (cond - uncond), atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_of_one_call_may_have_different_prompts(make_tiny_transformer):
    """One layer: a frame's cross-attention reads its own prompt, and only that."""
    denoiser = Denoiser(make_tiny_transformer(layers=1))
    x, t, embeds = inputs(frames=5)
    first, second = denoiser.encode_text(embeds), denoiser.encode_text(torch.randn(1, 4, 16))
    policy = SlidingPolicy(window=5, frames_per_block=5)
    out = []
    for text in (first, second, [(2, first), (3, second)]):
        cache = denoiser.new_cache(policy, batch=1, height=4, width=6)
        cache.begin(0, 5)
        out.append(denoiser(x, t, text, cache))
    torch.testing.assert_close(out[2][:, :, :2], out[0][:, :, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[2][:, :, 2:], out[1][:, :, 2:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_fused_projections_change_nothing(make_tiny_transformer):
    wan = make_tiny_transformer()
    denoiser = Denoiser(wan)
    x, t, embeds = inputs()
    text = denoiser.encode_text(embeds)
    before = cached(denoiser, x, t, text, [3, 3, 3])
    for block in wan.blocks:
        block.attn1.fuse_projections()
        block.attn2.fuse_projections()
    torch.testing.assert_close(
        cached(denoiser, x, t, denoiser.encode_text(embeds), [3, 3, 3]), before, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_two_caches_and_prompts_take_turns_on_one_transformer(make_tiny_transformer):
    denoiser = Denoiser(make_tiny_transformer())
    policy = DeepSinkPolicy(window=9, sink=4, frames_per_block=3)
    runs = []
    for seed in (0, 1):
        x, t, embeds = inputs(frames=15, seed=seed)
        text = denoiser.encode_text(embeds)
        runs.append((x, t, text, denoiser.new_cache(policy, batch=1, height=4, width=6)))

    def step(run, start, cache):
        x, t, text, _ = run
        cache.begin(start, 3)
        out = denoiser(x[:, :, start : start + 3], t[:, start : start + 3], text, cache, "commit")
        cache.commit()
        return out

    turns = [[], []]
    for start in range(0, 15, 3):
        for i, run in enumerate(runs):
            turns[i].append(step(run, start, run[3]))
    for i, run in enumerate(runs):
        alone = denoiser.new_cache(policy, batch=1, height=4, width=6)
        for start, wanted in zip(range(0, 15, 3), turns[i], strict=True):
            assert torch.equal(step(run, start, alone), wanted)


@torch.no_grad()
def test_compiled_blocks_need_no_graph_per_length(make_tiny_transformer):
    """The cache grows, the compiled code does not: few graphs for many lengths, same numbers."""
    import torch._dynamo as dynamo

    wan = make_tiny_transformer(layers=1)
    denoiser = Denoiser(wan)
    x, t, embeds = inputs(frames=24)
    text = denoiser.encode_text(embeds)
    expected = cached(denoiser, x, t, text, [3] * 8)
    dynamo.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    for i, block in enumerate(wan.blocks):
        wan.blocks[i].forward = torch.compile(block.forward, backend=backend)
    ours = cached(denoiser, x, t, text, [3] * 8)
    dynamo.reset()
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert 0 < len(graphs) <= 4, f"{len(graphs)} graphs for 8 lengths"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (2, 2, 2)}, "temporal patch"),
        ({"image_dim": 8, "added_kv_proj_dim": 24}, "image-conditioned"),
        ({"in_channels": 9}, "in_channels=9 and out_channels=4"),
    ],
    ids=["patch", "image", "picture-channels"],
)
def test_other_architectures_are_refused(change, message):
    from diffusers import WanTransformer3DModel

    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 1,
    }
    with pytest.raises(ValueError, match=message):
        Denoiser(WanTransformer3DModel(**config | change))


def test_sizes_that_do_not_fit_are_refused(make_tiny_transformer):
    denoiser = Denoiser(make_tiny_transformer())
    with pytest.raises(ValueError, match=r"height=5.*multiple of the patch 2; nearest 4"):
        denoiser.rotary(5, 6)
    with pytest.raises(ValueError, match="prompt_embeds"):
        denoiser.encode_text(torch.zeros(1, 4, 99))
