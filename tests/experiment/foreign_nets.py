"""Networks of other libraries as factories that a scenario names: `tests.experiment.foreign_nets:llama`."""

import transformers as hf
from torch import Tensor, nn


class Logits(nn.Module):
    """A language model of transformers, of which the logits are wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def llama(kind: str, sources: int, targets: int, source_length: int, target_length: int) -> nn.Module:
    """Return a small Llama that says what follows."""
    assert kind == "text" and sources == targets and source_length == target_length
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Logits(
        hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=targets, max_position_embeddings=source_length, **size))
    )
