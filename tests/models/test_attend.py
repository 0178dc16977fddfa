"""Radial attention on the cache: equal to one masked forward, and to itself when masked frames have left the cache."""

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from longvid.cache import FrameKVCache
from longvid.cache.policies import ParticipativePolicy, RadialPolicy, SlidingPolicy
from longvid.config import AttentionConfig
from longvid.errors import InputError, UnknownNameError
from longvid.kernels.attention.naive import token_mask
from longvid.kernels.backend import BackendError
from longvid.kernels.radial import RadialSpec, radial_blocks, rollout_blocks
from longvid.models.attend import attend_for, set_dense_backend
from longvid.models.attention import AttentionCall
from longvid.models.denoiser import Denoiser
from longvid.models.rope import RotaryTables

ROWS, COLUMNS, BLOCK = 4, 5, 2  # 20 tokens a frame: thinned from a distance of 16 frames on
TOKENS = ROWS * COLUMNS
FRAMES = 40


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 4, FRAMES, 2 * ROWS, 2 * COLUMNS, generator=torch.Generator().manual_seed(1))


def roll(model, latents, policy, attend):
    """Velocity of every block at timestep 300, each committed as it is; [1, C, F, h, w], and the most frames held."""
    denoiser = Denoiser(model, attend)
    text = denoiser.encode_text(torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2)))
    cache = denoiser.new_cache(policy, batch=1, height=2 * ROWS, width=2 * COLUMNS)
    pieces, most = [], 0
    with torch.no_grad():
        for start in range(0, FRAMES, BLOCK):
            cache.begin(start, BLOCK)
            times = torch.full((BLOCK,), 300.0)
            pieces.append(denoiser(latents[:, :, start : start + BLOCK], times, text, cache, "commit"))
            cache.commit()
            most = max(most, len(cache.resident))
    return torch.cat(pieces, 2), most, denoiser, text


def test_cached_blocks_equal_one_masked_forward(model, latents):
    attend = attend_for(AttentionConfig(kind="radial", backend="gather"))
    policy = SlidingPolicy(name="full", window=FRAMES, frames_per_block=BLOCK)
    cached, _, denoiser, text = roll(model, latents, policy, attend)
    spec = RadialSpec.for_grid(TOKENS, anchor="key")
    mask = torch.zeros(FRAMES * TOKENS, FRAMES * TOKENS, dtype=torch.bool)
    for start in range(0, FRAMES, BLOCK):
        past = range(start + BLOCK)
        rows = rollout_blocks(range(start, start + BLOCK), past, TOKENS, spec, dense_chunk=True)
        mask[start * TOKENS : (start + BLOCK) * TOKENS, : len(past) * TOKENS] = token_mask(rows)[0]
    with torch.no_grad():
        whole = denoiser.full(latents, torch.full((FRAMES,), 300.0), text, mask=mask)
    causal = np.tril(np.ones((FRAMES // BLOCK, FRAMES // BLOCK))).sum() * (BLOCK * TOKENS) ** 2
    assert mask.sum() < 0.9 * causal  # the mask is sparser than block-causal, or the test would show nothing
    assert (cached - whole).abs().max() < 1e-5


def test_frames_that_left_the_cache_are_not_missed(model, latents):
    """The radial policy frees what the radial mask hides: the same output from fewer frames."""
    attend = attend_for(AttentionConfig(kind="radial", backend="gather"))
    everything, held_all, *_ = roll(
        model, latents, SlidingPolicy(name="full", window=FRAMES, frames_per_block=BLOCK), attend
    )
    freed, held, *_ = roll(model, latents, RadialPolicy(frames_per_block=BLOCK, sink=1), attend)
    assert held_all == FRAMES
    assert held < 32
    assert (freed - everything).abs().max() < 1e-5


def test_without_a_cache_the_mask_is_square():
    """Frame by frame the published rule, which it equals where blocks divide frames."""
    config = AttentionConfig(kind="radial", backend="naive")
    q, k, v = torch.randn(3, 1, FRAMES * TOKENS, 2, 12)
    call = AttentionCall(1, None, None, tokens_per_frame=TOKENS)
    out = attend_for(config)(q, k, v, call=call)
    spec = RadialSpec.for_grid(TOKENS)
    aligned, square = rollout_blocks(range(4), range(4), 32, spec), radial_blocks(4, 32, spec)
    assert torch.equal(token_mask(aligned), token_mask(square))
    mask = token_mask(rollout_blocks(range(FRAMES), range(FRAMES), TOKENS, spec))[0]
    truth = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask)
    assert (out - truth.transpose(1, 2)).abs().max() < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_selected_tokens_are_seen_by_all_and_whole_frames_in_bands(batch):
    """Deep Forcing's tokens: before, at and after compressions, against a mask counted out from what was chosen."""
    rows, columns, block = 6, 16, 2  # frames of 96 tokens, wider than the bands
    tokens = rows * columns
    policy = ParticipativePolicy(window=9, sink=2, budget=7, recent=3, max_reuse=2, frames_per_block=block)
    cache = FrameKVCache(policy, layers=1, batch=batch, heads=2, head_dim=12, rotary=RotaryTables(12, rows, columns))
    attend = attend_for(AttentionConfig(kind="radial", backend="gather"), sink_frames=2)
    spec = RadialSpec.for_grid(tokens, sink_frames=2, anchor="key")
    generator = torch.Generator().manual_seed(0)
    (store,), chosen_at, banded = cache.layers, 0, False
    choices = []
    store.selector.on_choice = choices.append
    for start in range(0, 10 * block, block):
        cache.begin(start, block)
        before = len(choices)
        for kind in ("denoise", "denoise", "commit"):
            view = cache.view(kind)
            q, k, v = (torch.randn(batch, block * tokens, 2, 12, generator=generator) for _ in range(3))
            call = AttentionCall(batch, view.cos, view.sin, view=view, tokens_per_frame=tokens)
            keys, values = store.read(view, q, k, v)
            out = attend(q, keys, values, call=call, store=store)
            if len(choices) > before:
                before, chosen_at = len(choices), start
            loose = 2 * tokens + choices[-1].chosen.shape[1] if choices else 0
            oldest = start - (store.selector.length - loose) // tokens
            own = range(start, start + block)
            mask = torch.ones(block * tokens, keys.shape[1], dtype=torch.bool)
            mask[:, loose:] = token_mask(
                rollout_blocks(own, range(oldest, start + block), tokens, spec, dense_chunk=True)
            )[0]
            banded |= not mask.all()
            truth = torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, keys, values)), mask
            )
            assert (out - truth.transpose(1, 2)).abs().max() < 1e-5, (start, kind)
        cache.commit()
    assert chosen_at > 8  # it compressed more than once
    assert banded


def test_the_method_radial_reads_all_history_from_part_of_it(make_tiny_pipe):
    """`--method radial` against the same mask over a cache that keeps everything: 48 latent frames, 40 held at most."""
    pipe = make_tiny_pipe("radial")
    arguments = {"num_frames": 4 * 47 + 1, "seed": 0, "output_type": "latent"}
    radial = pipe("a red ball", **arguments).frames
    request = pipe.check_inputs("a red ball", num_frames=4 * 47 + 1)
    assert request.method.attention.kind == "radial"
    assert isinstance(request.policy(), RadialPolicy)
    assert request.policy().capacity < 40
    pipe.use_method("radial", {"cache": {"policy": "full"}})
    assert (pipe("a red ball", **arguments).frames - radial).abs().max() < 1e-3


def test_another_mask_is_refused():
    attend = attend_for(AttentionConfig(kind="radial"))
    x = torch.randn(1, TOKENS, 2, 12)
    with pytest.raises(InputError, match="takes no other"):
        attend(x, x, x, call=AttentionCall(1, None, None, mask=torch.ones(1), tokens_per_frame=TOKENS))


def backend_of(model):
    return model.blocks[0].attn1.processor._attention_backend


@pytest.fixture
def native_again(model):
    """diffusers remembers the latest choice of the process."""
    yield
    model.set_attention_backend("native")
    model.reset_attention_backend()


@pytest.mark.usefixtures("native_again")
class TestDenseBackend:
    cpu = torch.device("cpu")

    def test_auto_and_radial_leave_the_models_own_choice(self, model):
        model.set_attention_backend("_native_math")
        set_dense_backend(model, AttentionConfig(), self.cpu)
        set_dense_backend(model, AttentionConfig(kind="radial", backend="gather"), self.cpu)
        assert backend_of(model).value == "_native_math"

    def test_one_that_works_is_set_through_diffusers_dispatch(self, model, recwarn):
        set_dense_backend(model, AttentionConfig(backend="_native_math", strict=True), self.cpu)
        assert backend_of(model).value == "_native_math"
        assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]

    @pytest.mark.parametrize("backend", ["flash", "xformers"])
    def test_a_missing_library_falls_back_with_its_own_reason(self, model, backend):
        with pytest.warns(RuntimeWarning, match=rf"attention.backend='{backend}' cannot be used: .+; using 'native'"):
            set_dense_backend(model, AttentionConfig(backend=backend), self.cpu)
        with pytest.raises(BackendError, match=f"attention.backend='{backend}' cannot be used: "):
            set_dense_backend(model, AttentionConfig(backend=backend, strict=True), self.cpu)

    def test_one_that_cannot_run_on_this_device_gives_way_to_the_one_before(self, model):
        """It is installed, so only a call can tell."""
        model.set_attention_backend("_native_math")
        with pytest.warns(RuntimeWarning, match="'_native_cudnn' cannot be used: .+; using '_native_math'"):
            set_dense_backend(model, AttentionConfig(backend="_native_cudnn"), self.cpu)
        assert backend_of(model).value == "_native_math"

    def test_a_wrong_name_is_answered_with_the_nearest(self, model):
        with pytest.raises(UnknownNameError, match="did you mean 'flash'"):
            set_dense_backend(model, AttentionConfig(backend="flsh"), self.cpu)


def test_under_autograd_the_same_frames_are_thinned(model, latents):
    """There a call's own keys stand at the end and not in their slots."""
    policy = SlidingPolicy(window=FRAMES - 10, frames_per_block=BLOCK)
    denoiser = Denoiser(model, attend_for(AttentionConfig(kind="radial", backend="gather")))
    text = denoiser.encode_text(torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2)))
    cache = denoiser.new_cache(policy, batch=1, height=2 * ROWS, width=2 * COLUMNS)
    times, unordered = torch.full((BLOCK,), 300.0), False
    for start in range(0, FRAMES, BLOCK):
        cache.begin(start, BLOCK)
        block = latents[:, :, start : start + BLOCK]
        with torch.no_grad():
            plain = denoiser(block, times, text, cache)
        traced = denoiser(block.clone().requires_grad_(), times, text, cache)
        torch.testing.assert_close(traced, plain, atol=1e-5, rtol=0)
        frames = cache.view("denoise").key_frames
        unordered |= frames != tuple(sorted(frames))
        with torch.no_grad():
            denoiser(block, times, text, cache, "commit")
        cache.commit()
    assert unordered
    assert traced.requires_grad
