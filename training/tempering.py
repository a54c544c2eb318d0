"""A temperature for each role in the update, where TRL knows one for all rows.

Logits are linear in the last hidden state, so dividing that by a temperature divides them. TRL is told the solver's
temperature; a hook on the decoder scales the hidden states of proposers' rows by what is left. TRL hands rows to the
model in an order of its own and without our columns, so a row is known by its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.training.config import Temperatures
from selfplay_gym.training.rollouts import Row


class RoleTemperatures:
    """Scales hidden states so that each row's logits are divided by the temperature it was sampled at.

    Args:
        temperatures: Of the roles; the solver's is the one that TRL applies to every row.
    """

    def __init__(self, temperatures: Temperatures) -> None:
        self.scale = temperatures.solve / temperatures.propose
        self.proposals: frozenset[tuple[int, ...]] = frozenset()

    def expect(self, rows: Sequence[Row]) -> None:
        """Take in the rows of the step that is about to be learned from, those of all ranks."""
        self.proposals = frozenset(row.prompt_ids + row.sample.ids for row in rows if row.role == "propose")

    def attach(self, model: Any) -> None:
        """Hook the decoder of a causal language model; generation, which has a cache, goes through unchanged.

        Raises:
            InvalidConfig: Its logits are not linear in the hidden states.
        """
        head = model.get_output_embeddings()
        capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if getattr(head, "bias", None) is not None or capped:
            what = "caps its logits" if capped else "has an output layer with a bias"
            raise InvalidConfig(
                f"play.temperature: roles of different temperature need logits that are linear in the hidden states, "
                f"but {type(model).__name__} {what}; give both roles the same temperature"
            )
        model.base_model.register_forward_hook(self._scale, with_kwargs=True)

    def _scale(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if kwargs.get("use_cache") is not False or ids is None or mask is None:
            return output
        rows = [tuple(row[real].tolist()) for row, real in zip(ids, mask.bool(), strict=True)]
        scales = torch.tensor([self.scale if row in self.proposals else 1.0 for row in rows])
        states = output.last_hidden_state
        output.last_hidden_state = states * scales.to(states)[:, None, None]
        return output
