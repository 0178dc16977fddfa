"""Coherent tail sampling and its filters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid.pipelines.tail import FILTERS, PUBLISHED_GAIN, CoherentTail, forward_chain, frequency_mix, low_pass


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_gain_is_plain_noise() -> None:
    tail, xi, eta = (normal(1, 2, 4, 6, seed=s) for s in range(3))
    assert torch.equal(CoherentTail(gain=0.0).sample(tail, xi, eta), eta)


def test_a_vanishing_gain_approaches_plain_noise() -> None:
    tail, xi, eta = (normal(1, 2, 4, 6, seed=s) for s in range(3))
    assert (CoherentTail(gain=1e-9).sample(tail, xi, eta) - eta).abs().max() < 1e-8


SIZES = [(8, 12), (7, 9), (1, 5), (4, 4)]
# A box of cutoff 1/4 has no bin at all in a spectrum of fewer than 6 rows.
CASES = [(kind, size) for kind in FILTERS for size in SIZES if kind != "box" or min(size) >= 6]


@pytest.mark.parametrize(("kind", "size"), CASES, ids=[f"{kind}-{h}x{w}" for kind, (h, w) in CASES])
def test_the_filter_is_its_gain_at_zero_frequency_and_nowhere_more(kind: str, size: tuple[int, int]) -> None:
    mask = CoherentTail(kind=kind).mask(*size)
    assert mask.shape == (1, *size)
    assert mask[0, size[0] // 2, size[1] // 2].item() == pytest.approx(PUBLISHED_GAIN)
    assert mask.max().item() == pytest.approx(PUBLISHED_GAIN)


def test_published_and_centred_grids_agree_on_even_sizes() -> None:
    published = low_pass("gaussian", (1, 8, 12), cutoff=0.25, time_cutoff=1.0)
    torch.testing.assert_close(CoherentTail().mask(8, 12), published)
    odd = low_pass("gaussian", (1, 7, 9), cutoff=0.25, time_cutoff=1.0)
    assert odd.max() < 0.55 < CoherentTail().mask(7, 9).max()


def test_low_frequencies_come_from_the_tail_and_high_ones_from_new_noise() -> None:
    tail, xi, eta = (normal(1, 1, 16, 16, seed=s) for s in range(3))
    spectrum = torch.fft.fft2(CoherentTail().sample(tail, xi, eta))
    from_tail, from_eta = torch.fft.fft2(tail), torch.fft.fft2(eta)
    torch.testing.assert_close(
        spectrum[..., 0, 0], PUBLISHED_GAIN * from_tail[..., 0, 0] + (1 - PUBLISHED_GAIN) * from_eta[..., 0, 0]
    )
    torch.testing.assert_close(spectrum[..., 8, 8], from_eta[..., 8, 8], atol=1e-4, rtol=1e-4)


def test_the_constant_part_of_a_queue_of_tails_keeps_its_power() -> None:
    """Convex, not variance-preserving: at A = 1 the temporally constant part of each frequency keeps power 1."""
    chains, steps = 400, 600
    coherent, tail, total = CoherentTail(), normal(chains, 1, 4, 4), torch.zeros(chains, 1, 4, 4, dtype=torch.float64)
    for index in range(steps):
        tail = coherent.sample(tail, tail, normal(chains, 1, 4, 4, seed=index + 1))
        total += tail
    power = (total.mean(dim=(-2, -1)) ** 2 * 16 / steps).mean().item()
    assert power == pytest.approx(1.0, abs=0.2)
    # One draw at zero frequency has the variance (1 - L) / (1 + L) of white noise: calmer from frame to frame.
    dc = (tail.mean(dim=(-2, -1)) ** 2 * 16).mean().item()
    assert dc == pytest.approx((1 - PUBLISHED_GAIN) / (1 + PUBLISHED_GAIN), abs=0.08)


def test_the_published_chain_is_one_gaussian() -> None:
    latents, noises = normal(1, 1, 3, 3), normal(1, 1, 5, 3, 3, seed=1)
    betas = torch.linspace(0.01, 0.05, 5, dtype=torch.float64)
    out = forward_chain(latents, betas, noises)
    a = (1 - betas).sqrt().prod()
    xi = (out - a * latents) / (1 - a**2).sqrt()
    weights = [(betas[k] * (1 - betas[k + 1 :]).prod()).sqrt() for k in range(5)]
    assert math.isclose(sum(float(w) ** 2 for w in weights), float(1 - a**2), rel_tol=1e-12)
    torch.testing.assert_close(CoherentTail(retain=float(a)).renoise(latents, xi), out)


@settings(max_examples=40)
@given(
    st.sampled_from(FILTERS),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    st.floats(0.05, 1.0),
    st.floats(0.05, 1.0),
)
def test_filters_lie_between_nothing_and_everything(
    kind: str, shape: tuple[int, int, int], cutoff: float, time_cutoff: float
) -> None:
    mask = low_pass(kind, shape, cutoff=cutoff, time_cutoff=time_cutoff)
    assert mask.shape == shape
    assert ((mask >= 0) & (mask <= 1)).all()
    x = normal(*shape)
    torch.testing.assert_close(frequency_mix(x, x, mask), x)


def test_a_zero_cutoff_passes_nothing() -> None:
    assert low_pass("gaussian", (1, 4, 4), cutoff=0.0).sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": 1.0}, "gain=1.0"),
        ({"gain": -0.1}, "gain=-0.1"),
        ({"cutoff": 0.0}, "cutoff=0.0"),
        ({"cutoff": float("nan")}, "cutoff=nan"),
        ({"retain": 1.5}, "retain=1.5"),
        ({"kind": "bessel"}, "filter='bessel'"),
    ],
    ids=["gain-one", "gain-negative", "cutoff-zero", "cutoff-nan", "retain", "kind"],
)
def test_a_tail_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoherentTail(**change)


def test_filters_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="cutoff=-1"):
        low_pass("gaussian", (1, 4, 4), cutoff=-1)
    with pytest.raises(ValueError, match="shape="):
        low_pass("gaussian", (0, 4, 4))
    with pytest.raises(ValueError, match="order=0"):
        low_pass("butterworth", (1, 4, 4), order=0)


def test_a_filter_that_passes_nothing_of_this_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a box filter passes no frequency of 4 x 4 latents"):
        CoherentTail(kind="box").mask(4, 4)
