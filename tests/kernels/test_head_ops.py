"""The cache's operations of single heads: plain PyTorch on every device, against first principles."""

import math

import pytest
import torch

from longvid.kernels import cache_plain
from longvid.kernels.cache_ops import column_scores, gather_head_tokens, gather_tokens, head_scores


@pytest.mark.parametrize("fusion", ["sum", "max"])
@pytest.mark.parametrize("products", [1, 500, 2**26], ids=["a-query-at-a-time", "some", "all"])
def test_head_scores_equal_the_whole_matrix(fusion, products, monkeypatch):
    monkeypatch.setattr(cache_plain, "PRODUCTS", products)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, length, 3, 8, generator=generator) for length in (19, 37))
    matrix = torch.einsum("brnd,btnd->bnrt", q.double(), k.double()) / math.sqrt(8)
    truth = (matrix.sum(2) if fusion == "sum" else matrix.amax(2)).float()
    ours = head_scores(q, k, fusion=fusion)
    torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-5)
    if fusion == "sum":
        torch.testing.assert_close(ours.mean(1), column_scores(q, k, backend="plain"), atol=1e-5, rtol=1e-5)


def test_gathered_tokens_are_each_heads_own():
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(2, 11, 3, 8, generator=generator) for _ in range(2))
    index = torch.randint(11, (2, 5, 3), generator=generator)
    for x, packed in zip((k, v), gather_head_tokens(k, v, index), strict=True):
        for b in range(2):
            for h in range(3):
                assert torch.equal(packed[b, :, h], x[b, index[b, :, h], h])
    same = index[..., :1].expand_as(index)
    assert torch.equal(gather_head_tokens(k, v, same)[1], gather_tokens(k, v, index[..., 0], backend="plain")[1])


def test_errors_name_what_does_not_fit():
    x = torch.zeros(1, 6, 2, 8)
    with pytest.raises(ValueError, match="fusion='mean': must be 'sum' or 'max'"):
        head_scores(x, x, fusion="mean")
    for index in (torch.zeros(2, 1, 2), torch.zeros(1, 1, 3), torch.zeros(1, 1)):
        with pytest.raises(ValueError, match="must share batch and heads"):
            gather_head_tokens(x, x, index.long())
