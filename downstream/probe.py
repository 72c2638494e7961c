"""A measure of transfer without fine-tuning: k-NN classification with frozen features."""

import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, RUNNERS
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pretrain.datasets.image_folder import ClassFolder
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.precision import autocast
from pretrain.runs.record import describe, describe_data, summarise
from pretrain.runs.saving import restore_signals

METRIC = 'top1_accuracy'
CHUNK = 256  # test images whose neighbours are searched at a time


@RUNNERS.register_module()
class ProbeRunner:
    """Replaces mmengine's Runner: computes the features of both splits, classifies the test images
    and writes the record ``run.json``. A stopped run starts over. With several processes, the
    first does all the work. ``config`` is what :func:`downstream.build.prepare` returns.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def from_cfg(cls, config: Config) -> 'ProbeRunner':
        return cls(config)

    def train(self) -> None:
        config, start = self.config, time.monotonic()
        restore_signals()
        if config.get('launcher', 'none') != 'none' and int(os.environ['RANK']):
            return
        sets = {
            split: ClassFolder(config.data_root, split, 0, config.image_size, skip=config.skip)
            for split in ('train', 'val')
        }
        (bank, _), (queries, scale) = (self._features(dataset) for dataset in sets.values())
        train, val = (torch.from_numpy(d.labels).long().to(bank.device) for d in sets.values())
        settings = config.neighbours, config.temperature
        accuracy = knn_accuracy(bank, train, queries, val, *settings)
        print(
            f'{METRIC} {accuracy:.2f} %; features of the test images: root mean square '
            f'{scale["rms"]:.3g}, {100 * scale["positive_share"]:.1f} % above 0',
            flush=True,
        )
        history = [{'epoch': 0, 'generation': 1, 'metrics': {METRIC: accuracy}}]
        record = describe(config) | {
            'status': 'finished',
            'started_from': None,
            'data': {split: describe_data(d, config.data_root) for split, d in sets.items()},
            'features': scale,
            'history': history,
            'generations': summarise(history, METRIC),
            'wall_seconds': time.monotonic() - start,
            'sessions': 1,
        }
        content = json.dumps(record, indent=1) + '\n'
        write_atomically(Path(config.work_dir) / 'run.json', content.encode())

    @torch.inference_mode()
    def _features(self, dataset: ClassFolder) -> tuple[Tensor, dict[str, float]]:
        """The backbone's last feature map, averaged over pixels: float32 (N, D), on the device.

        Also the scale of the map over all images and pixels: ``rms``, its root mean square, and
        ``positive_share``, the share of its values above 0.
        """
        config, device = self.config, get_device()
        with MODELS.switch_scope_and_registry(config.default_scope) as models:
            backbone = models.build(config.model.backbone)
            preprocessor = models.build(config.model.data_preprocessor)
        backbone.init_weights()
        backbone.to(device, memory_format=torch.channels_last).eval()
        preprocessor.to(device)
        images = [(0, index) for index in range(len(dataset))]
        loader = DataLoader(dataset, sampler=images, **config.loader)
        features, scales = [], []
        for batch in tqdm(loader, dataset.split, mininterval=15):
            # RGB to BGR, which the preprocessors of mmdet and mmseg expect.
            inputs = preprocessor({'inputs': [*batch['inputs'].flip(1)]})['inputs']
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            with autocast(config.precision, inputs.device.type):
                maps = backbone(inputs)[-1]
            maps = maps.float()
            features.append(maps.mean(dim=(2, 3)))
            scales.append(torch.stack([maps.square(), maps > 0]).mean(dim=(2, 3, 4)))
        mean_square, positive = torch.cat(scales, dim=1).double().mean(dim=1).tolist()
        return torch.cat(features), {'rms': math.sqrt(mean_square), 'positive_share': positive}


@torch.inference_mode()
def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    neighbours: int,
    temperature: float,
) -> float:
    """Classify by a vote of the nearest neighbours, weighted by exp(cosine similarity / T).

    As in "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (Wu et al.,
    2018, Section 3.4); data sets smaller than ImageNet need fewer than its 200 neighbours.

    Args:
        bank: float32 (N, D), the features of the training images.
        bank_labels: int64 (N,), their classes.
        queries: float32 (M, D), the features of the test images.
        labels: int64 (M,), their classes.
        neighbours: number of neighbours that vote, at least 1; if N is smaller, all N vote.
        temperature: T > 0; a smaller T gives the nearest neighbours more weight.

    Returns:
        The top-1 accuracy in percent.

    Example:
        >>> bank, queries = torch.eye(2), torch.tensor([[1.0, 0.1]])
        >>> knn_accuracy(bank, torch.tensor([0, 1]), queries, torch.tensor([0]), 1, 0.07)
        100.0
    """
    bank, queries = F.normalize(bank), F.normalize(queries)
    classes = int(bank_labels.max()) + 1
    right = 0
    for chunk, truth in zip(queries.split(CHUNK), labels.split(CHUNK), strict=True):
        similarity, index = (chunk @ bank.T).topk(min(neighbours, len(bank)))
        # Relative to the nearest neighbour: no temperature overflows.
        weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
        # Not scatter_add, whose summation order is not deterministic on a GPU.
        votes = (F.one_hot(bank_labels[index], classes) * weights[..., None]).sum(dim=1)
        right += int((votes.argmax(dim=1) == truth).sum())
    return 100 * right / len(labels)
