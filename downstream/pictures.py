"""A few validation images of each run: the truth on the left, the prediction on the right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, VISUALIZERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData

COUNT = 8


@HOOKS.register_module()
class PicturesHook(Hook):
    """Writes ``pictures/<image>.png`` into the work directory at the last evaluation.

    The images are evenly spaced among those that the first process evaluates, so that runs on as
    many processes show the same ones. Where a resumed run evaluates again, it draws again.

    Args:
        visualizer: config of mmdet's or mmseg's visualizer; mmdet's draws boxes that score above
            0.3.
    """

    def __init__(self, visualizer: dict) -> None:
        self.visualizer = VISUALIZERS.build(visualizer)

    def before_val_epoch(self, runner: Runner) -> None:
        batches = len(runner.val_dataloader)
        count = min(COUNT, batches) if runner.epoch == runner.max_epochs else 0
        self.chosen = {i * batches // count for i in range(count)}
        meta = dict(runner.val_dataloader.dataset.metainfo)
        if len(meta['palette']) < len(meta['classes']):
            del meta['palette']  # VOC's; mmdet chooses colours then
        self.visualizer.dataset_meta = meta

    @master_only
    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        if batch_idx not in self.chosen:
            return
        sample = outputs[0].new()
        if 'ignored_instances' in sample:
            sample.gt_instances = self._truth(sample)
        source = Path(sample.img_path)
        self.visualizer.add_datasample(
            source.stem,
            mmcv.imread(source, channel_order='rgb'),
            sample,
            out_file=str(Path(runner.work_dir) / 'pictures' / f'{source.stem}.png'),
        )

    def _truth(self, sample: BaseDataElement) -> InstanceData:
        """The objects with the difficult ones, which mmdet's visualizer would not show."""
        usual, difficult = sample.gt_instances, sample.ignored_instances
        # A box that is invalid is ignored as well, and cannot be drawn.
        corners = difficult.bboxes
        difficult = difficult[(corners[:, 2:] > corners[:, :2]).all(dim=1)]
        truth = InstanceData.cat([usual, difficult])
        names = [self.visualizer.dataset_meta['classes'][label] for label in truth.labels]
        count = len(usual)
        truth.label_names = names[:count] + [f'{name}, difficult' for name in names[count:]]
        return truth
