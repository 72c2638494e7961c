import shutil
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image
from torch.utils.data import DataLoader

from downstream.build import prepare
from downstream.mmcv_ops import install
from downstream.pictures import SCORE_THRESHOLD
from pretrain.runs.config import load_config
from tests.conftest import ROOT

CAT = 7  # 0-based index in VOC's classes; masks have 8, after the background


def boxes(sample: BaseDataElement) -> None:
    """A box in the lower left corner, and one with a low score in the upper right."""
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[4.0, 30.0, 20.0, 44.0], [40.0, 4.0, 60.0, 20.0]]),
        scores=torch.tensor([0.9, 0.2]),
        labels=torch.tensor([CAT, CAT]),
    )


def masks(sample: BaseDataElement) -> None:
    """A cat in the lower left corner."""
    mask = torch.zeros(1, 48, 64, dtype=torch.int64)
    mask[:, 30:44, 4:20] = CAT + 1
    sample.pred_sem_seg = PixelData(data=mask)


TASKS = [('faster_rcnn_r18_voc07.py', boxes), ('deeplabv3_r18_voc12.py', masks)]


@pytest.fixture(params=TASKS, ids=['detection', 'segmentation'])
def evaluate(request, voc: Path, backbone_file: str, tmp_path: Path) -> Callable[..., list[Path]]:
    """``evaluate(epoch, paths)``: the pictures drawn after ``epoch`` of a run of three epochs,
    without a model; ``paths`` replaces the images of the data set."""
    name, predict = request.param
    options = [f'data_root={voc}', f'backbone_file={backbone_file}']
    config = prepare(load_config(ROOT / 'configs/demo' / name, options))
    with MODELS.switch_scope_and_registry(config.default_scope):
        dataset = DATASETS.build(config.val_dataloader.dataset)
        preprocessor = MODELS.build(config.model.data_preprocessor)
    loader = DataLoader(dataset, batch_size=1, collate_fn=pseudo_collate)
    hook = HOOKS.build(config.default_hooks.pictures.to_dict())

    def run(epoch: int, paths: Sequence[Path] = ()) -> list[Path]:
        runner = SimpleNamespace(
            epoch=epoch, max_epochs=3, work_dir=str(tmp_path), val_dataloader=loader
        )
        hook.before_val_epoch(runner)
        for index, batch in enumerate(loader):
            samples = preprocessor(batch, training=False)['data_samples']
            for sample in samples:
                predict(sample)
                if paths:
                    sample.set_metainfo({'img_path': str(paths[index])})
            hook.after_val_iter(runner, index, batch, samples)
        return sorted((tmp_path / 'pictures').glob('*'))

    run.hook = hook
    return run


class Loader(list):
    dataset = SimpleNamespace(metainfo={'classes': ('cat', 'dog'), 'palette': [(0, 0, 255)]})


def test_a_handful_at_even_distances(evaluate) -> None:
    hook = evaluate.hook
    for batches, chosen in (
        (4952, {0, 619, 1238, 1857, 2476, 3095, 3714, 4333}),
        (9, {0, 1, 2, 3, 4, 5, 6, 7}),
        (3, {0, 1, 2}),
    ):
        loader = Loader(range(batches))
        hook.before_val_epoch(SimpleNamespace(epoch=3, max_epochs=3, val_dataloader=loader))
        assert hook.chosen == chosen


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    picture = np.asarray(Image.open(path).convert('RGB')).astype(int)
    assert picture.shape == (48, 128, 3)
    return picture[:, :64], picture[:, 64:]


def test_truth_is_on_the_left_and_prediction_on_the_right(evaluate) -> None:
    paths = evaluate(3)
    assert [path.name for path in paths] == [f'{100000 + i}.png' for i in range(8)]
    for path in paths:
        truth, prediction = halves(path)
        differing = np.abs(truth - prediction).sum(axis=2) > 60
        assert differing[30:44, 4:20].any()  # predicted
        assert differing[:26, 14:30].any()  # ground truth: all squares overlap this area
        assert not differing[10:20, 56:].any()  # the prediction with score 0.2


def test_only_the_last_evaluation_is_drawn(evaluate, tmp_path: Path) -> None:
    assert evaluate(1) == evaluate(2) == []
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'pictures/100003.png').write_bytes(b'half a pict')  # of a stopped run
    assert len(evaluate(3)) == 8
    halves(tmp_path / 'pictures/100003.png')


def test_images_of_one_name_in_several_folders_are_all_drawn(
    evaluate, voc: Path, tmp_path: Path
) -> None:
    files = 'a/1', 'b/1', 'c/b/1', 'd/b/1', 'b_1', 'e/b_1', 'f/1', 'f/2'
    paths = [tmp_path / f'{file}.jpg' for file in files]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(voc / 'VOC2007/JPEGImages/100000.jpg', path)
    names = {path.stem for path in evaluate(3, paths)}
    assert len(names) == 8
    assert {'1', 'b_1', 'c_b_1', 'd_b_1', 'f_1', '2'} < names


@pytest.mark.parametrize('evaluate', TASKS[1:], indirect=True)
def test_the_first_process_alone_draws(evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda _=None: 1)
    assert evaluate(3) == []


def test_red_stays_red(evaluate, tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 250
    source = tmp_path / 'red.png'
    Image.fromarray(red).save(source)
    (picture,) = evaluate(3, [source] * 8)
    for half in halves(picture):
        r, g, b = half[-2, -2]
        assert r > 100
        assert max(g, b) < 30


@pytest.mark.parametrize('evaluate', TASKS[:1], indirect=True)
def test_boxes_without_extent_and_classes_without_colour(evaluate, tmp_path: Path) -> None:
    """An invalid box that the config tolerates, and more classes than palette colours."""
    from mmdet.structures import DetDataSample

    Image.new('RGB', (64, 48)).save(tmp_path / 'black.png')
    sample = DetDataSample(metainfo={'img_path': str(tmp_path / 'black.png')})
    dog = {'labels': torch.tensor([1])}
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4.0, 20.0, 20.0]]), **dog)
    sample.ignored_instances = InstanceData(bboxes=torch.tensor([[60.0, 40.0, 50.0, 30.0]]), **dog)
    sample.pred_instances = InstanceData(
        bboxes=sample.gt_instances.bboxes, scores=torch.tensor([0.1]), **dog
    )
    runner = SimpleNamespace(
        epoch=3, max_epochs=3, work_dir=str(tmp_path), val_dataloader=Loader(range(1))
    )
    evaluate.hook.before_val_epoch(runner)
    evaluate.hook.after_val_iter(runner, 0, None, [sample])
    truth, prediction = halves(tmp_path / 'pictures/black.png')
    assert truth[:22, :22].any()
    assert not truth[26:, 46:].any()
    assert not prediction.any()


def test_threshold_that_the_report_states_is_mmdets() -> None:
    install()
    from mmdet.visualization import DetLocalVisualizer

    given = signature(DetLocalVisualizer.add_datasample).parameters['pred_score_thr']
    assert given.default == SCORE_THRESHOLD
