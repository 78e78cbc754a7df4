"""A first scenario file: valid as it stands, small enough to run at once, and with a word on every line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from normstab.experiment.data.datasets import DATASETS
from normstab.experiment.data.token_sets import TOKEN_SETS
from normstab.experiment.network.language_models import LANGUAGE_MODELS
from normstab.experiment.network.models import MODELS

__all__ = ["SEEDS", "Starter"]

SEEDS = (0, 1, 2)
"""The seeds of a new scenario: with fewer, few verdicts can be told from chance."""
SMALL_SIDE, LARGER_SIDE = 16, 64
SMALL_TRAIN, SMALL_TEST = 2000, 500
SGD, ADAM = "name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4", "name: adam, lr: 0.01"
NEEDS_ROOT = "/path/to/the/files"


@dataclass(frozen=True)
class Starter:
    """What a new scenario is about; what is left out is a choice that runs in minutes on a laptop."""

    name: str
    model: str = "resnet18"
    dataset: str = "fashion-mnist-sample"
    precisions: tuple[str, ...] = ("fp16", "bf16")
    norms: tuple[str, ...] = ("l2", "l1")

    def text(self) -> str:
        """Return the file's text. Names that no catalogue has are written as they are: validation answers them."""
        return _TEXT.format(
            name=_word(self.name),
            dataset=self._dataset(),
            optimizer=ADAM if self.model in LANGUAGE_MODELS else SGD,
            model=self._model(),
            precisions=", ".join(map(_word, self.precisions)),
            norms=", ".join(map(_word, self.norms)),
            seeds=", ".join(map(str, SEEDS)),
            question=f"Does {self.model} train in {_spoken(self.precisions)}, with which norm?",
        )

    def _dataset(self) -> str:
        """Return the mapping of the data: few small images, a folder where the set needs one, or tokens."""
        if self.model in LANGUAGE_MODELS or self.dataset in TOKEN_SETS:
            name = self._token_set()
            most = TOKEN_SETS[name].test if name in TOKEN_SETS else SMALL_TEST
            return f"name: {_word(name)}, train: {SMALL_TRAIN}, test: {min(SMALL_TEST, most)}"
        row = DATASETS.get(self.dataset)
        if row is None or not row.needs_root:
            return f"name: {_word(self.dataset)}, size: {SMALL_SIDE}, train: {SMALL_TRAIN}, test: {SMALL_TEST}"
        size = f"size: {min(row.side, LARGER_SIDE)}, train: {SMALL_TRAIN}, test: {SMALL_TEST}"
        return f"name: {self.dataset}, root: {NEEDS_ROOT}, {size}"

    def _token_set(self) -> str:
        """Return the set that was asked for, where one was; else the first token set that the model takes."""
        wanted = LANGUAGE_MODELS.get(self.model)
        fitting = [name for name, row in TOKEN_SETS.items() if wanted is not None and row.kind == wanted.takes]
        return self.dataset if self.dataset != Starter.dataset else fitting[0]

    def _model(self) -> str:
        """Return the mapping of the network: a quarter of its width; a library's or the user's has no width here."""
        if self.model in LANGUAGE_MODELS:
            return f"name: {self.model}, width: 32, layers: 1"
        row = MODELS.get(self.model)
        return f"name: {_word(self.model)}" + (f", width: {max(8, row.width // 4)}" if row is not None else "")


# Texts that YAML reads as texts without quotation marks.
_PLAIN = re.compile(r"(?!(?:true|false|null)\Z)[a-z][a-z0-9_-]*\Z")


def _word(name: str) -> str:
    """Return a text as YAML has it in one line: a precision may hold a `;` or a `:`, and then is quoted."""
    return name if _PLAIN.match(name) else json.dumps(name, ensure_ascii=False)


def _spoken(names: tuple[str, ...]) -> str:
    """Return `a`, or `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


_TEXT = """\
# A scenario asks a question of a network, trains each point of a grid beside a wide reference, and expects answers.
# Every field is described in the documentation, page "Scenarios"; `normstab schema` is for editors.
version: 1
name: {name}  # names the report: reports/NAME/report.md
question: {question}
# source: the paper, figure or issue that the question is from

# The data: `normstab list datasets`. The first `train` and `test` images, classes in turn, at `size` pixels a side.
dataset: {{{dataset}}}

# The network: `normstab list models`, timm:NAME, torchvision:NAME, or your own module:function (with `args: {{...}}`).
model: {{{model}}}

train:
  epochs: 2
  batch: 64
  optimizer: {{{optimizer}}}
  schedule: {{name: one-cycle}}
  # loss_scale: dynamic  # as torch.amp.GradScaler; or a factor

# numerics:
#   rules: {{"re:.*bn.*": fp32}}  # a module's own precision
#   histogram: true  # keeps the exponents of every operation, for "what if" of other formats

# Every combination is trained. A reference in float32 is added for each by itself.
grid:
  norm: [{norms}]  # `normstab list norms`
  precision: [{precisions}]  # COMPUTE/ROUNDING/ACCUMULATION;KEY=VALUE, or a recipe: `normstab list recipes`
  # input_scale: [1, 256]  # factors on the images; any path is an axis too, such as train.optimizer.lr
  seed: [{seeds}]  # of weights, order and rounding; with fewer than three little can be told from chance

# What must hold: the exit code is 1 where it does not. `smoke: true` is judged under --smoke too.
expect:
  - {{where: {{}}, verdict: [STABLE, DEGRADED, INCONCLUSIVE], smoke: true}}  # every cell learns
  # - {{metric: accuracy, better: {{norm: l1}}, worse: {{norm: l2}}, by: 2pp}}

# Sets of changes by name: --smoke is --set profile=smoke.
profiles:
  smoke: {{train.epochs: 1, dataset.train: 500, dataset.test: 200, grid.seed: [0]}}
"""
