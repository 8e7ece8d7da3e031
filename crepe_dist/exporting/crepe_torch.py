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
from safetensors.torch import load, save

BLANK = 255  # code of unknown characters and of padding


class Shares(dict):  # type: ignore[type-arg]
    """Probabilities by class, the most probable first; none if there is a ``problem``, such as "empty text"."""

    problem = ""


class Classifier(torch.nn.Module):
    """Classifier of texts. ``classes`` are in the order of the logits, and ``arrays`` are the parameters by name."""

    without_tags = staticmethod(lambda text: text)  # of a model that was trained on texts without HTML, see the end

    def __init__(self, folder: "str | Path") -> None:
        super().__init__()
        self.about = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        self.classes, self.alphabet, self.sizes = (self.about[name] for name in ("classes", "characters", "network"))
        self.temperature = self.about.get("calibration", {}).get("temperature", 1)
        self.length, self.mode = self.about["encoding"]["feature_len"], self.about["encoding"]["mode"]
        self.codes = {char: [n] for n, chars in enumerate(self.alphabet) for char in chars} | self.about["spellings"]
        self.arrays = torch.nn.ParameterDict()
        for name, array in load((Path(folder) / "model.safetensors").read_bytes()).items():
            self.arrays[name.replace(".", "/")] = torch.nn.Parameter(array, requires_grad="significant" not in name)
        self.eval()

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Encode texts as uint8 [n, length], reversed except in mode notebook; long ones without a part of them."""
        length, (head, tail), step = self.length, self.about["kept"], 1 if self.mode == "notebook" else -1
        codes = []
        for text in map(self.without_tags, texts):
            text = text if len(text) <= 2 * length else text[:length] + text[-length:]
            row = [code for character in text for code in self.codes.get(character, [BLANK])]
            if len(row) > length:
                row = row[:head] + [BLANK] * (length - head - tail) + row[len(row) - tail :]
            codes.append(row[::step] + [BLANK] * (length - len(row)))
        return torch.tensor(codes, dtype=torch.uint8, device=next(self.parameters()).device)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        parts = self.parts(codes)
        return 0.75 * sum(parts) if len(parts) > 1 else parts[0]

    def parts(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Compute the logits of each part of the network. In training each part has a loss of its own."""
        raise NotImplementedError

    def layer(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.arrays[f"{name}/weight"], self.arrays[f"{name}/bias"]

    def predict(self, texts: Iterable[str]) -> list[Shares]:
        """Classify a list of texts, or a column of a table. TypeError is raised for anything else."""
        if isinstance(texts, (str, bytes, dict, set)) or hasattr(texts, "columns") or not hasattr(texts, "__iter__"):
            raise TypeError(f"predict takes a list of texts, or a column of a table, not {type(texts).__name__}")
        if not (texts := list(texts)):
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
                is_empty = not self.without_tags(text).strip()
                answers[place].problem = "empty text" if is_empty else "no character that the network knows"
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
