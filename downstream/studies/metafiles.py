"""``metafile.yml`` for each folder of configs, and ``model-index.yml``, for OpenMMLab's tools."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from mmengine.config import Config

from pretrain.algorithm_checks import mini_generations
from pretrain.export_formats import COLLECTION
from pretrain.runs.config import load_config
from pretrain.runs.record import last_in_percent
from pretrain.runs.tables import find_records
from pretrain.studies.tables import recipe

TASKS = {
    'classification': 'Image Classification',
    'detection': 'Object Detection',
    'segmentation': 'Semantic Segmentation',
    'probe': 'Image Classification',
}
METRICS = {'top1_error': 'Top 1 Error', 'top1_accuracy': 'Top 1 Accuracy'}


def metafiles(root: Path) -> dict[Path, str]:
    """The path and text of each metafile of the repository ``root``, made from its configs and
    their records in ``results`` folders."""
    folders = sorted({path.parent for path in root.glob('configs/[!_]*/**/*.py')})
    texts = {}
    for folder in folders:
        models = [_model(path, root) for path in sorted(folder.glob('*.py'))]
        texts[folder / 'metafile.yml'] = _yaml({'Collections': [COLLECTION], 'Models': models})
    names = [str(path.relative_to(root)) for path in texts]
    return texts | {root / 'model-index.yml': _yaml({'Import': names})}


def _model(path: Path, root: Path) -> dict[str, Any]:
    config = load_config(path)
    if config.task == 'classification':
        whole = config.algorithm.fresh_student
        epochs = sum(mini_generations(config.epochs, config.algorithm.generations, whole=whole))
    else:
        epochs = config.train_cfg.max_epochs if 'train_cfg' in config else 0  # of a probe
    dataset = Path(config.data_root).name
    model = {
        'Name': path.stem,
        'In Collection': COLLECTION['Name'],
        'Config': str(path.relative_to(root)),
        'Metadata': {'Training Data': dataset, 'Epochs': epochs},
    }
    metric = config.paper.metric
    on_data: dict[str, list[dict]] = {}  # runs on other data have a result of their own
    for record in _records(path, config, epochs):
        on_data.setdefault(json.dumps(record['data'], sort_keys=True), []).append(record)
    for records in on_data.values():
        counts = [f'{records[0]["data"][split]["count"]} {split}' for split in ('train', 'val')]
        result = {
            'Task': TASKS[config.task],
            'Dataset': f'{dataset} ({", ".join(counts)} images)',
            'Metrics': _metrics(records, metric),
        }
        model.setdefault('Results', []).append(result)
    return model


def _records(path: Path, config: Config, epochs: int) -> list[dict]:
    """The records of runs with this config whose epochs, classes and recipe are the config's."""

    def kind(settings: Mapping[str, Any]) -> tuple:
        return recipe(settings), list(settings.get('classes') or ())

    return [
        record
        for file in sorted(path.parent.glob('results/*.jsonl'))
        for record in find_records(file, [config.task])
        if record['config'] == path.stem
        and record['history'][-1]['epoch'] == epochs
        and kind(record['identity']) == kind(config)
    ]


def _metrics(records: Sequence[dict], metric: str) -> dict[str, float]:
    """For each label, the mean of its metric over the runs, in percent."""
    values: dict[str, list[float]] = {}
    for record in records:
        name = f'{METRICS.get(metric, metric)} ({record["label"]})'
        values.setdefault(name, []).append(last_in_percent(record))
    return {name: round(fmean(v), 2) for name, v in values.items()}


def _yaml(node: dict[str, Any]) -> str:
    head = '# Written by tools/readme_tables.py from the configs and their records.\n'
    return head + yaml.safe_dump(node, sort_keys=False)
