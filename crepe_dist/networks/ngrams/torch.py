"""The n-gram table in PyTorch. ``export --format pytorch`` copies it into the exported module."""

import torch
import torch.nn.functional as F

BLANK = 255  # code of unknown characters and of padding
# Modulo 2^64, as torch has them: the factor of the first word of a pair, and the inverse of 257.
GOLDEN, INVERSE = 0x9E3779B97F4A7C15 - (1 << 64), 0xFF00FF00FF00FF01 - (1 << 64)


def mixed(key: torch.Tensor, rows: int) -> torch.Tensor:
    """Map keys to rows by SplitMix64's finaliser."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        key = (key ^ (key >> shift & (1 << 64 - shift) - 1)) * (factor - (factor >> 63 << 64))  # torch has no uint64
    return (key >> 32 & 0xFFFFFFFF) * rows >> 32


def hashed(codes: torch.Tensor, longest: int, rows: int) -> torch.Tensor:
    """Hash the n-grams of 1 … longest known characters at each position: [n, L] → int64 [n, L, longest]; -1: none."""
    length, key, known, buckets = codes.shape[1], torch.tensor(0), torch.tensor(True), []
    codes = F.pad(codes, (0, longest - 1), value=BLANK).long()
    for code in (codes[:, n : n + length] for n in range(longest)):
        key, known = key * 257 + code + 1, known & (code != BLANK)
        buckets.append(torch.where(known, mixed(key, rows), -1))
    return torch.stack(buckets, dim=2)


def words(codes: torch.Tensor, letters: int, rows: int) -> torch.Tensor:
    """Hash the words of texts, runs of letters, and the pairs of neighbouring ones: [n, L] → int64 [n, W]; -1: none."""
    inside = (codes < letters).long()
    ends = inside * (1 - F.pad(inside, (0, 1))[:, 1:])
    number, powers = ends.cumsum(1), torch.full_like(inside[:1], 257).cumprod(1)
    # A key is the sum of digit × 257^(end - place): the difference of two sums of digit / 257^place, times 257^end.
    sums = (inside * (codes.long() + 1) * torch.full_like(powers, INVERSE).cumprod(1)).cumsum(1)
    none = torch.zeros(len(codes), 1 + int(number.max()), dtype=torch.int64, device=codes.device)
    last, power = (none.scatter_add(1, number * ends, ends * each) for each in (sums, powers))
    key = (last[:, 1:] - last[:, :-1]) * power[:, 1:]
    keys = torch.cat([key, key[:, :-1] * GOLDEN + key[:, 1:]], dim=1)
    exists = power[:, 1:] != 0
    return torch.where(torch.cat([exists, exists[:, 1:]], dim=1), mixed(keys, rows), -1)


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
    first_word = len(weight) - model.sizes["words"]
    of_words = words(codes, model.sizes["letters"], model.sizes["words"])
    of_words = torch.where(of_words < 0, -1, first_word + of_words)
    buckets = torch.cat([hashed(codes, model.sizes["longest"], first_word).flatten(1), of_words], dim=1)
    buckets = buckets.sort(dim=1).values  # each counts once
    own, buckets, factors = (buckets != F.pad(buckets, (1, 0), value=-1)[:, :-1]).float(), buckets.clamp(min=0), 0
    groups = significant[buckets].long() + 2 * (buckets >= first_word)
    for group in (own * (groups == number) for number in range(4)):
        size = group.sum(1, keepdim=True).clamp(min=1)
        factors = factors + group * ((10 * size.sqrt()).clamp(max=300) / size)
    return F.embedding_bag(buckets, weight, mode="sum", per_sample_weights=factors) + bias


def ngrams(model: torch.nn.Module, codes: torch.Tensor) -> list[torch.Tensor]:
    return [table(model, edged(model, codes), "")]
