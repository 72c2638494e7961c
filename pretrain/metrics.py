"""Classification errors."""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor


@METRICS.register_module()
class TopKError(BaseMetric):
    """Top-1 and top-5 error in percent, over the whole validation set and all ranks.

    One entry a picture, so that mmengine can drop the pictures that pad the last rank's share.
    """

    topk = (1, 5)

    def process(self, data_batch: dict, data_samples: Sequence[dict[str, Tensor]]) -> None:
        """Count one batch.

        Args:
            data_batch: not used.
            data_samples: dicts of ``logits`` (N, C) and ``labels`` (N,).
        """
        for sample in data_samples:
            labels = sample['labels'][:, None]
            ranking = sample['logits'].topk(min(max(self.topk), sample['logits'].shape[1])).indices
            wrong = [(ranking[:, :k] != labels).all(dim=1).tolist() for k in self.topk]
            self.results.extend(zip(*wrong, strict=True))

    def compute_metrics(self, results: list[tuple[bool, bool]]) -> dict[str, float]:
        """``top1_error`` and ``top5_error`` in percent."""
        columns = zip(*results, strict=True)
        return {
            f'top{k}_error': 100.0 * sum(column) / len(column)
            for k, column in zip(self.topk, columns, strict=True)
        }
