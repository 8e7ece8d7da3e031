"""Crepe in PyTorch. ``export --format pytorch`` copies it into the exported module."""

import torch
import torch.nn.functional as F

from crepe_dist.networks.ngrams.torch import BLANK, edged, hashed, table


def tower(model: torch.nn.Module, codes: torch.Tensor) -> torch.Tensor:
    """Compute the logits of the residual convolutions."""
    rows = model.arrays["tower/table"]
    buckets = hashed(codes, model.sizes["reach"], len(rows)).reshape(-1, model.sizes["stride"] * model.sizes["reach"])
    x = F.embedding_bag(buckets.clamp(min=0), rows, mode="sum", per_sample_weights=(buckets >= 0).float()).relu()
    x = F.dropout(x, model.sizes["dropout"], model.training).unflatten(0, (len(codes), -1)).transpose(1, 2)
    inside = (codes != BLANK).flip(1).cummax(1).values.flip(1)[:, None, :: model.sizes["stride"]].float()
    for number in range(0, 2 * model.sizes["blocks"], 2):
        hidden = F.conv1d(x, *model.layer(f"tower/convolutions/{number}"), padding=2).relu() * inside
        x = (x + F.conv1d(hidden, *model.layer(f"tower/convolutions/{number + 1}"), padding=2)).relu() * inside
        if number < 4:
            x, inside = F.max_pool1d(x, 2, ceil_mode=True), F.max_pool1d(inside, 2, ceil_mode=True)
    features = torch.cat([x.max(dim=2).values, x.sum(dim=2) / inside.sum(dim=2).clamp(min=1)], dim=1)
    return F.linear(F.dropout(features, 0.1, model.training), *model.layer("tower/out"))


def crepe(model: torch.nn.Module, codes: torch.Tensor) -> list[torch.Tensor]:
    codes = edged(model, codes, model.sizes["stride"])
    return [table(model, codes, "ngrams/"), tower(model, codes)]
