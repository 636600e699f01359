"""How models of the library are run, and what their features are."""

from typing import Any

import torch
from torch import Tensor, nn

from modelgit.train.networks.encoders.texts import Reading, pooled

# Types that take a mask of scores as it is: then no value of it is looked at, and runs can be stacked.
SCORED = ("camembert", "distilbert", "roberta", "xlm-roberta")
CAUSAL = ("gpt2", "gpt_neox", "llama", "mistral", "phi", "qwen2", "qwen3")  # unless their windows slide
LEADING = ("cls_token", "distillation_token", "register_tokens")  # parameters that stand before the tokens of a picture


class OnTexts:
    """A model of texts; `pooling` is mean, cls or last."""

    masked = True

    def __init__(self, base: nn.Module, kind: str, read: Reading, pooling: str) -> None:
        self.base, self._read, self._pooling = base, read, pooling
        whole = getattr(base.config, "sliding_window", None) is None
        self._scored, self._causal = kind in SCORED, kind in CAUSAL and whole

    def whole(self, x: Tensor) -> Any:
        """Returns what the model makes of tokens (n, length)."""
        return self.base(input_ids=self._read.ids_of(x), attention_mask=self._mask(x.ne(0), torch.float32))

    def again(self, hidden: Tensor, mask: Tensor | None) -> Any:
        """Runs the model on embeddings of no words, as many as there are tokens."""
        base: Any = self.base
        width = base.get_input_embeddings().weight.shape[1]
        nothing = hidden.new_zeros(1, 1, 1).expand(hidden.shape[0], hidden.shape[1], width)
        return base(inputs_embeds=nothing, attention_mask=self._mask(mask, hidden.dtype))

    def features(self, found: Any, mask: Tensor | None) -> Tensor:
        """Returns hidden states as one vector a text."""
        assert mask is not None  # of texts there is one
        return pooled(found.last_hidden_state, mask, self._pooling)

    def _mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        assert mask is not None
        if not self._scored and not self._causal:
            return mask.long()
        apart = (1.0 - mask.to(dtype))[:, None, None, :]
        if self._causal:
            length = mask.shape[-1]
            apart = torch.maximum(apart, torch.ones(length, length, dtype=dtype, device=mask.device).triu(1))
        return apart * torch.finfo(dtype).min


class OnPictures:
    """A model of pictures; `pooling` is mean, cls, or "": the model's own."""

    masked = False

    def __init__(self, base: nn.Module, example: Tensor, pooling: str) -> None:
        self.base, self._example, self._pooling = base, example, pooling
        self._leading = sum(p.shape[-2] for name, p in base.named_parameters() if name.endswith(LEADING))

    def whole(self, x: Tensor) -> Any:
        """Returns what the model makes of pictures (n, channels, h, w)."""
        return self.base(pixel_values=x)

    def again(self, hidden: Tensor, mask: Tensor | None) -> Any:
        """Runs the model on one empty picture."""
        return self.base(pixel_values=self._example.to(hidden.device))

    def features(self, found: Any, mask: Tensor | None) -> Tensor:
        """Returns what the model pools itself; else of its first token, or the mean."""
        own: Tensor | None = getattr(found, "pooler_output", None)
        if own is not None and not self._pooling:
            return own.flatten(1)
        hidden: Tensor = found.last_hidden_state
        if hidden.dim() == 4:
            return hidden.mean((2, 3))
        if self._pooling == "mean" or not self._leading:
            return hidden[:, self._leading :].mean(1)
        return hidden[:, 0]
