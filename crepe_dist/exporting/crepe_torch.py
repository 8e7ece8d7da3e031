"""Text classifier exported by crepe_dist, as a PyTorch module that only needs torch and safetensors.

model = Classifier("exported")                  # the folder of model.safetensors and model.json
model.predict(["a text"])[0]                    # {class: probability}, the most probable class first
logits = model(model.encode(["a text"]))        # float32 [n, classes]; with dropout after model.train()
model.save("trained")                           # for Classifier, and for `crepe train --init-from trained`
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load, save

BLANK = 255  # code of unknown characters and of padding


def hashed(codes: torch.Tensor, longest: int, rows: int) -> torch.Tensor:
    """Hash the n-grams of 1 … longest known characters at each position: [n, L] → int64 [n, L, longest]; -1: none."""
    length, key, known, found = codes.shape[1], torch.tensor(0), torch.tensor(True), []
    codes = F.pad(codes, (0, longest - 1), value=BLANK).long()
    for each in (codes[:, n : n + length] for n in range(longest)):
        key, known = key * 257 + each + 1, known & (each != BLANK)
        z = key
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # SplitMix64's finaliser
            z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * (factor - (factor >> 63 << 64))  # torch has no uint64
        found.append(torch.where(known, (z >> 32 & 0xFFFFFFFF) * rows >> 32, -1))
    return torch.stack(found, dim=2)


class Shares(dict):  # type: ignore[type-arg]
    """Probabilities by class, the most probable first; none if there is a ``problem``, such as "empty text"."""

    problem = ""


class Classifier(torch.nn.Module):
    """Classifier of texts. ``classes`` are in the order of the logits, and ``arrays`` are the parameters by name."""

    def __init__(self, folder: "str | Path") -> None:
        super().__init__()
        self.about = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        self.classes, self.alphabet, self.sizes = (self.about[name] for name in ("classes", "characters", "network"))
        self.temperature = self.about.get("calibration", {}).get("temperature", 1)
        self.length, self.mode = self.about["encoding"]["feature_len"], self.about["encoding"]["mode"]
        self.codes = {each: [n] for n, some in enumerate(self.alphabet) for each in some} | self.about["spellings"]
        self.arrays = torch.nn.ParameterDict()
        for name, array in load((Path(folder) / "model.safetensors").read_bytes()).items():
            self.arrays[name.replace(".", "/")] = torch.nn.Parameter(array, requires_grad="significant" not in name)
        self.eval()

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Encode texts as uint8 [n, length], reversed except in mode notebook; long ones without a part of them."""
        length, (head, tail), step = self.length, self.about["kept"], 1 if self.mode == "notebook" else -1
        codes = []
        for text in texts:
            text = text if len(text) <= 2 * length else text[:length] + text[-length:]
            row = [code for each in text for code in self.codes.get(each, [BLANK])]
            if len(row) > length:
                row = row[:head] + [BLANK] * (length - head - tail) + row[len(row) - tail :]
            codes.append(row[::step] + [BLANK] * (length - len(row)))
        return torch.tensor(codes, dtype=torch.uint8, device=next(self.parameters()).device)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        parts = self.parts(codes)
        return 0.75 * sum(parts) if len(parts) > 1 else parts[0]

    def parts(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Compute the logits of each part of the network. In training each part has a loss of its own."""
        kind, stride = self.sizes["kind"], self.sizes.get("stride", 1)
        if kind == "paper":
            return [self.paper(codes)]
        ends = ((codes != BLANK) * torch.arange(1, self.length + 1, device=codes.device)).amax(dim=1)
        codes = codes[:, : max(1, ends.max())]
        if self.sizes.get("edges", True):  # symbols before the first and after the last known character
            codes, rows = F.pad(codes, (1, 1 + -(codes.shape[1] + 2) % stride), value=BLANK), ends > 0
            codes[rows, 0] = codes[rows, ends[rows] + 1] = len(self.alphabet)
        return [self.table(codes, "ngrams/"), self.tower(codes)] if kind == "crepe" else [self.table(codes, "")]

    def table(self, codes: torch.Tensor, prefix: str) -> torch.Tensor:
        weight, bias, significant = (self.arrays[prefix + name] for name in ("weight", "bias", "significant"))
        found = hashed(codes, self.sizes["longest"], len(weight)).flatten(1).sort(dim=1).values  # each counts once
        own, found, factors = (found != F.pad(found, (1, 0), value=-1)[:, :-1]).float(), found.clamp(min=0), 0
        telling = own * significant[found]
        for group in (telling, own - telling):
            size = group.sum(1, keepdim=True).clamp(min=1)
            scale = (10 * size.sqrt()).clamp(max=300) if self.sizes.get("edges", True) else 300
            factors = factors + group * (scale / size)
        return F.embedding_bag(found, weight, mode="sum", per_sample_weights=factors) + bias

    def tower(self, codes: torch.Tensor) -> torch.Tensor:
        rows = self.arrays["tower/table"]
        places = hashed(codes, self.sizes["reach"], len(rows)).reshape(-1, self.sizes["stride"] * self.sizes["reach"])
        x = F.embedding_bag(places.clamp(min=0), rows, mode="sum", per_sample_weights=(places >= 0).float()).relu()
        x = F.dropout(x, self.sizes["dropout"], self.training).unflatten(0, (len(codes), -1)).transpose(1, 2)
        inside = (codes != BLANK).flip(1).cummax(1).values.flip(1)[:, None, :: self.sizes["stride"]].float()
        for number in range(0, 2 * self.sizes["blocks"], 2):
            hidden = F.conv1d(x, *self.layer(f"tower/convolutions/{number}"), padding=2).relu() * inside
            x = (x + F.conv1d(hidden, *self.layer(f"tower/convolutions/{number + 1}"), padding=2)).relu() * inside
            if number < 4:
                x, inside = (F.max_pool1d(each, 2, ceil_mode=True) for each in (x, inside))
        features = torch.cat([x.max(dim=2).values, x.sum(dim=2) / inside.sum(dim=2).clamp(min=1)], dim=1)
        return F.linear(F.dropout(features, 0.1, self.training), *self.layer("tower/out"))

    def paper(self, codes: torch.Tensor) -> torch.Tensor:
        x = F.one_hot(codes.long(), 256)[:, :, : len(self.alphabet)].transpose(1, 2).float()
        for number, pool in zip("024567", (3, 3, 1, 1, 1, 3)):
            x = F.max_pool1d(F.conv1d(x, *self.layer(number)).relu(), pool)
        for number in ("10", "12"):
            x = F.dropout(F.linear(x.flatten(1), *self.layer(number)).relu(), self.sizes["dropout"], self.training)
        return F.linear(x, *self.layer("14"))

    def layer(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.arrays[f"{name}/weight"], self.arrays[f"{name}/bias"]

    def predict(self, texts: Iterable[str]) -> list[Shares]:
        """Classify a list of texts, or a column of a table. TypeError is raised for anything else."""
        if isinstance(texts, (str, bytes, dict, set)) or hasattr(texts, "columns") or not hasattr(texts, "__iter__"):
            raise TypeError(f"predict takes a list of texts, or a column of a table, not {type(texts).__name__}")
        for place, text in enumerate(texts := list(texts)):
            if not isinstance(text, str):
                raise TypeError(f"text {place} is {text!r:.40}, of type {type(text).__name__}, not a string")
        if not texts:
            return []
        codes = self.encode(texts)
        others = {*self.codes[" "], *range(self.about["counted"], BLANK + 1)}
        with torch.no_grad():
            logits = self(codes) / self.temperature
            shares = (logits.sigmoid() if "labels" in self.about else logits.softmax(dim=1)).tolist()
        answers = [Shares(sorted(zip(self.classes, each), key=lambda pair: -pair[1])) for each in shares]
        for place, (text, row) in enumerate(zip(texts, codes.tolist())):
            if others.issuperset(row):
                answers[place] = Shares()
                answers[place].problem = "no character that the network knows" if text.strip() else "empty text"
        return answers

    def save(self, folder: "str | Path") -> None:
        """Write the parameters, their description and this module."""
        (path := Path(folder) / "model.safetensors").parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data := save({n.replace("/", "."): a.detach().float().cpu() for n, a in self.arrays.items()}))
        names = ["format", "encoding", "composition", "characters", "spellings", "kept", "counted", "classes", "labels"]
        about = {n: self.about[n] for n in (*names, "network") if n in self.about}
        about["sha256"] = hashlib.sha256(data).hexdigest()
        path.with_name("model.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        path.with_name("crepe_torch.py").write_bytes(Path(__file__).read_bytes())
