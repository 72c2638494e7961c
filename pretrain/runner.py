"""The Runner that both stages train with."""

import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from torch import nn


class ChannelsLastRunner(Runner):
    """mmengine's, with the model in the memory format that convolutions are fastest in."""

    def build_model(self, model: nn.Module | ConfigDict) -> nn.Module:
        return super().build_model(model).to(memory_format=torch.channels_last)
