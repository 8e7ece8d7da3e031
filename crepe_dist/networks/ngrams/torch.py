"""The n-gram table in PyTorch. ``export --format pytorch`` copies it into the exported module."""

import torch
import torch.nn.functional as F

BLANK = 255  # code of unknown characters and of padding


def hashed(codes: torch.Tensor, longest: int, rows: int) -> torch.Tensor:
    """Hash the n-grams of 1 … longest known characters at each position: [n, L] → int64 [n, L, longest]; -1: none."""
    length, key, known, buckets = codes.shape[1], torch.tensor(0), torch.tensor(True), []
    codes = F.pad(codes, (0, longest - 1), value=BLANK).long()
    for code in (codes[:, n : n + length] for n in range(longest)):
        key, known = key * 257 + code + 1, known & (code != BLANK)
        z = key
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # SplitMix64's finaliser
            z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * (factor - (factor >> 63 << 64))  # torch has no uint64
        buckets.append(torch.where(known, (z >> 32 & 0xFFFFFFFF) * rows >> 32, -1))
    return torch.stack(buckets, dim=2)


def edged(model: torch.nn.Module, codes: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """Put a symbol before the first and after the last known character, and cut columns that are blank in all texts."""
    ends = ((codes != BLANK) * torch.arange(1, model.length + 1, device=codes.device)).amax(dim=1)
    codes, rows = codes[:, : max(1, ends.max())], ends > 0
    codes = F.pad(codes, (1, 1 + -(codes.shape[1] + 2) % stride), value=BLANK)
    codes[rows, 0] = codes[rows, ends[rows] + 1] = len(model.alphabet)
    return codes


def table(model: torch.nn.Module, codes: torch.Tensor, prefix: str) -> torch.Tensor:
    """Compute the logits of the n-gram table whose parameters have names with a prefix."""
    weight, bias, significant = (model.arrays[prefix + name] for name in ("weight", "bias", "significant"))
    buckets = hashed(codes, model.sizes["longest"], len(weight)).flatten(1).sort(dim=1).values  # each counts once
    own, buckets, factors = (buckets != F.pad(buckets, (1, 0), value=-1)[:, :-1]).float(), buckets.clamp(min=0), 0
    telling = own * significant[buckets]
    for group in (telling, own - telling):
        size = group.sum(1, keepdim=True).clamp(min=1)
        factors = factors + group * ((10 * size.sqrt()).clamp(max=300) / size)
    return F.embedding_bag(buckets, weight, mode="sum", per_sample_weights=factors) + bias


def ngrams(model: torch.nn.Module, codes: torch.Tensor) -> list[torch.Tensor]:
    return [table(model, edged(model, codes), "")]
