"""The paper's network in PyTorch. ``export --format pytorch`` copies it into the exported module."""

import torch
import torch.nn.functional as F


def paper(model: torch.nn.Module, codes: torch.Tensor) -> list[torch.Tensor]:
    x = F.one_hot(codes.long(), 256)[:, :, : len(model.alphabet)].transpose(1, 2).float()
    for number, pool in zip("024567", (3, 3, 1, 1, 1, 3)):
        x = F.max_pool1d(F.conv1d(x, *model.layer(number)).relu(), pool)
    for number in ("10", "12"):
        x = F.dropout(F.linear(x.flatten(1), *model.layer(number)).relu(), model.sizes["dropout"], model.training)
    return [F.linear(x, *model.layer("14"))]
