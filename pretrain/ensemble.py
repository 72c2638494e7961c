"""The ensemble of a run's snapshots (Section 4.1)."""

from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from pretrain.checkpoint import check_resume, load_from_disk, student_weights
from pretrain.hooks import unwrap
from pretrain.metrics import TopKError


def ensemble_probabilities(logits: Iterable[Tensor], temperature: float) -> Tensor:
    """The mean over k of softmax(T^(k-1) z_k), the scores of M_#L_1 to M_#L_K together.

    A student of a teacher softened by T gives softer scores than its teacher; the factor T^(k-1)
    makes the snapshots of SD comparable (Table 3). With T = 1 it is the ensemble of SE.

    Args:
        logits: of the snapshots in the order of training, each of shape (N, C).
        temperature: T > 0.

    Returns:
        Probabilities, shape (N, C).
    """
    return torch.stack(
        [(z.float() * temperature**k).softmax(dim=1) for k, z in enumerate(logits)]
    ).mean(dim=0)


@HOOKS.register_module()
class EnsembleHook(Hook):
    """Evaluates the snapshots of a run together when it has ended, for its record.

    Args:
        generations: K; a single snapshot is no ensemble.
        temperature: T.
    """

    def __init__(self, generations: int, temperature: float) -> None:
        self.generations = generations
        self.temperature = temperature

    @torch.no_grad()
    def after_train(self, runner: Runner) -> None:
        if self.generations == 1:
            return
        model = unwrap(runner).eval()
        loader = runner.val_dataloader
        logits = []
        # The last one leaves the model as it was.
        for k in range(1, self.generations + 1):
            path = str(Path(runner.work_dir) / f'snapshot_{k}.pth')
            check_resume(path, runner.cfg.identity.to_dict(), another_run=True)
            model.student.load_state_dict(student_weights(load_from_disk(path)))
            predictions = [model.val_step(batch)[0] for batch in loader]
            logits.append(torch.cat([p['logits'] for p in predictions]))
            labels = torch.cat([p['labels'] for p in predictions])
        metric = TopKError()
        scores = ensemble_probabilities(logits, self.temperature)
        metric.process({}, [{'logits': scores, 'labels': labels}])
        metrics = metric.evaluate(len(loader.dataset))
        runner.message_hub.update_info('ensemble', metrics)
        runner.logger.info(f'The {self.generations} snapshots together: {metrics}')
