"""Pictures of a run: ground truth on the left, prediction on the right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, VISUALIZERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData

COUNT = 8
SCORE_THRESHOLD = 0.3  # mmdet's visualizer draws the boxes above it
VISUALIZERS_BY_TASK = {
    'detection': dict(type='mmdet.DetLocalVisualizer', name='pictures', line_width=2),
    'segmentation': dict(type='mmseg.SegLocalVisualizer', name='pictures', alpha=0.5),
}


def dataset_meta(metainfo: Mapping[str, Any]) -> dict[str, Any]:
    """The metainfo of a data set for a visualizer, without a ``palette`` that is too short."""
    meta = dict(metainfo)
    if len(meta.get('palette', ())) < len(meta['classes']):
        meta.pop('palette', None)  # mmdet then chooses the colours
    return meta


@HOOKS.register_module()
class PicturesHook(Hook):
    """Writes ``pictures/<image>.png`` for eight validation images at the last evaluation.

    Only the first process draws, at even spacing over its images, so two runs with the same number
    of processes draw the same images. ``visualizer`` is the config of mmdet's or mmseg's
    visualizer; mmdet's draws the boxes with a score above :data:`SCORE_THRESHOLD`.
    """

    def __init__(self, visualizer: dict) -> None:
        self.visualizer = VISUALIZERS.build(visualizer)

    def before_val_epoch(self, runner: Runner) -> None:
        batches = len(runner.val_dataloader)
        count = min(COUNT, batches) if runner.epoch == runner.max_epochs else 0
        self.chosen = {i * batches // count for i in range(count)}
        self.visualizer.dataset_meta = dataset_meta(runner.val_dataloader.dataset.metainfo)
        self.drawn: dict[str, Path] = {}  # file stem: the image it was drawn from

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[BaseDataElement]
    ) -> None:
        if batch_idx not in self.chosen:
            return
        sample = outputs[0].new()
        if 'ignored_instances' in sample:
            sample.gt_instances = self._ground_truth(sample)
        source = Path(sample.img_path)
        image = mmcv.imread(source, channel_order='rgb')
        name = source.stem
        for folder in source.parents:  # they tell images of the same name apart
            if self.drawn.setdefault(name, source) == source:
                break
            name = f'{folder.name}_{name}'
        file = Path(runner.work_dir) / 'pictures' / f'{name}.png'
        self.visualizer.add_datasample(name, image, sample, out_file=str(file))

    def _ground_truth(self, sample: BaseDataElement) -> InstanceData:
        """All objects of an image, with the difficult ones, which mmdet's visualizer leaves out."""
        usual, difficult = sample.gt_instances, sample.ignored_instances
        # Boxes without area are among the ignored ones and cannot be drawn.
        corners = difficult.bboxes
        difficult = difficult[(corners[:, 2:] > corners[:, :2]).all(dim=1)]
        truth = InstanceData.cat([usual, difficult])
        names = [self.visualizer.dataset_meta['classes'][label] for label in truth.labels]
        count = len(usual)
        truth.label_names = names[:count] + [f'{name}, difficult' for name in names[count:]]
        return truth
