"""The models of one process in which sampling and training take turns on the same weights."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from steptool.models.load import load_model

LoadModel: TypeAlias = Callable[[str | os.PathLike[str]], PreTrainedModel]
"""Gives the model of a folder, from its files or from memory."""


class SharedModels:
    """Models by their folder, each read from its files once.

    Whoever asks for a model gets a module of its own over the weights that are there. So what one does to its module,
    such as adapters, checkpointing or another attention, does not show in the others, but a weight that training
    changes has changed for all.
    """

    def __init__(self) -> None:
        self._models: dict[str, PreTrainedModel] = {}

    def load(self, folder: str | os.PathLike[str]) -> PreTrainedModel:
        """A module over the weights of a folder, all of which may be trained."""
        place = os.path.realpath(folder)
        if place not in self._models:
            self._models[place] = load_model(folder)
        return share_weights(self._models[place]).requires_grad_(True)

    def move(self, folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Training has changed the weights of a folder into those of another; unknown folders stay unknown."""
        if model := self._models.pop(os.path.realpath(folder), None):
            self._models[os.path.realpath(target)] = model

    def hand_over(self) -> None:
        """Give back what one side has left behind, such as keys and values, before the other side's turn."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a module that holds the same parameters and buffers."""
    tensors: list[nn.Parameter | torch.Tensor] = [*model.parameters(), *model.buffers()]
    shared: PreTrainedModel = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return shared
