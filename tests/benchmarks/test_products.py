"""A table in bfloat16 on a processor without instructions for it: the same products, a hundred times faster."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as nnf

from benchmarks import costs
from benchmarks.entries import Entry, Renderer, chosen_prompts
from benchmarks.products import RoundedProducts, is_rounded, with_products
from longvid import precision

LAST_BIT = 2.0**-7
"""Of bfloat16's eight, relative: what sums of another order may round differently."""


@pytest.fixture
def old_processor(monkeypatch):
    monkeypatch.setattr(precision, "_on_cpu", lambda dtype: False)


def low(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


PRODUCTS = {
    "linear": lambda: nnf.linear(low(5, 24), low(16, 24), low(16)),
    "linear without a bias": lambda: nnf.linear(low(5, 24), low(16, 24), bias=None),
    "conv2d": lambda: nnf.conv2d(low(1, 4, 9, 9), low(6, 4, 3, 3), low(6), padding=1),
    "conv3d": lambda: nnf.conv3d(low(1, 4, 3, 9, 9), low(6, 4, 3, 3, 3)),
    "matmul": lambda: low(2, 3, 8) @ low(8, 5),
    "einsum": lambda: torch.einsum("bij,bjk->bik", low(2, 3, 8), low(2, 8, 5)),
    "module": lambda: torch.nn.Linear(24, 8, dtype=torch.bfloat16).requires_grad_(False)(low(3, 24)),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_rounded_product_is_the_processors_own(product):
    torch.manual_seed(0)
    want = product()
    torch.manual_seed(0)
    with RoundedProducts(torch.bfloat16):
        got = product()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want.float(), rtol=LAST_BIT, atol=1e-2)


def test_operands_are_taken_as_they_are_and_the_sum_is_rounded_once():
    a, b = low(64, 512), low(32, 512)
    with RoundedProducts(torch.bfloat16):
        got = nnf.linear(a, b)
    want = (a.double() @ b.double().T).bfloat16()
    off = (got != want).double().mean()
    assert off < 0.01, "only sums that fall between two values may round the other way"


def test_attention_is_within_the_rounding_of_its_probabilities():
    q, k, v = low(1, 2, 8, 16), low(1, 2, 12, 16), low(1, 2, 12, 16) + 1
    with RoundedProducts(torch.bfloat16):
        got = nnf.scaled_dot_product_attention(q, k, v)
    want = nnf.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(got.double(), want, rtol=2 * LAST_BIT, atol=LAST_BIT)


def test_other_types_and_other_functions_are_let_alone():
    full = torch.randn(3, 4)
    with RoundedProducts(torch.bfloat16):
        assert nnf.linear(full, full).dtype == torch.float32
        assert nnf.linear(full.half(), full.half()).dtype == torch.float16
        assert torch.equal(nnf.gelu(low(3, 4)), nnf.gelu(low(3, 4)))


def seen_inside(device: str | None = "cpu"):
    """Items that tell whether they are made under the mode."""

    def items():
        while True:
            modes = torch.overrides._get_current_function_mode_stack()
            yield any(isinstance(mode, RoundedProducts) for mode in modes)

    return with_products(items(), torch.bfloat16, device)


def test_the_mode_is_on_while_an_item_is_made_and_off_for_the_one_who_asks(old_processor):
    items = seen_inside()
    for _ in range(3):
        assert next(items)
        assert not torch.overrides._get_current_function_mode_stack()


def test_an_error_leaves_no_mode_behind(old_processor):
    def broken():
        yield 1
        raise FloatingPointError("overflow")

    items = with_products(broken(), torch.bfloat16, "cpu")
    assert next(items) == 1
    with pytest.raises(FloatingPointError):
        next(items)
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_processor_with_instructions_uses_them(monkeypatch):
    monkeypatch.setattr(precision, "_on_cpu", lambda dtype: True)
    assert not next(seen_inside())
    assert not is_rounded(torch.bfloat16, "cpu")


def test_a_gpu_is_never_rounded_for(old_processor):
    assert not is_rounded(torch.bfloat16, "cuda")
    assert not is_rounded(torch.float32, "cpu")
    assert not is_rounded(None, "cpu")


def test_a_table_in_bfloat16_renders_without_the_warning_and_says_how(old_processor):
    renderer, entry = Renderer("cpu", "bfloat16"), Entry.parse("base:self-forcing,student=base", "embedded")
    jobs = [(prompt, scene, 0) for prompt, scene in chosen_prompts(1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunks = [chunk for (chunk,) in renderer.videos(entry, jobs, 1, [(0, 16)])]
    assert sum(len(chunk.frames) for chunk in chunks) == 16
    assert renderer.products(entry) == "rounded from float32"
    assert Renderer("cpu", "float32").products(entry) == "native"
    assert renderer.products(Entry.parse("world", "embedded")) == "native"


def test_costs_are_not_timed_in_a_type_that_is_made_up(old_processor, capsys, tmp_path):
    with pytest.raises(SystemExit):
        costs.main(["--device", "cpu", "--dtype", "bfloat16", "--out", str(tmp_path / "c.json")])
    assert "dtype='bfloat16': this processor has no instructions" in capsys.readouterr().err
