"""Noise depends on seed, block and step alone."""

from __future__ import annotations

import pytest
import torch

from longvid.pipelines.noise import SeededNoise, noise_for


def test_draws_depend_on_seed_block_and_step_alone():
    torch.manual_seed(1)
    first = noise_for(7, 3, 2, (1, 2, 3, 4, 4))
    torch.manual_seed(2)
    torch.randn(5)
    assert torch.equal(noise_for(7, 3, 2, (1, 2, 3, 4, 4)), first)
    others = [noise_for(8, 3, 2, first.shape), noise_for(7, 4, 2, first.shape), noise_for(7, 3, 1, first.shape)]
    assert not any(torch.equal(first, other) for other in others)


def test_indices_do_not_run_into_each_other():
    assert not torch.equal(noise_for(1, 11, 1, (64,)), noise_for(1, 1, 11, (64,)))
    assert not torch.equal(noise_for(11, 1, 1, (64,)), noise_for(1, 11, 1, (64,)))


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    noise_for(0, 0, 0, (8,))
    assert torch.equal(torch.rand(1), wanted)


def test_it_is_standard_normal():
    x = torch.cat([noise_for(0, block, step, (1000,)) for block in range(10) for step in range(5)])
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_a_batch_equals_its_samples():
    shape = (2, 4, 3, 2, 2)
    batch = SeededNoise(5)(1, 0, shape)
    assert torch.equal(batch[0], SeededNoise(5)(1, 0, (1, *shape[1:]))[0])
    assert torch.equal(batch[1], SeededNoise(6)(1, 0, (1, *shape[1:]))[0])
    assert torch.equal(SeededNoise([6, 5])(1, 0, shape), batch.flip(0))
    with pytest.raises(ValueError, match="one a sample"):
        SeededNoise([1, 2, 3])(0, 0, shape)
