"""VOC2007, and VOC2012 with SBD, before the runs on them: checked, and SBD's masks converted.

Nothing is downloaded, and no file that exists is changed.
"""

import io
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from downstream.builtin import CLASSES, voc_palette
from downstream.voc import check_detection, check_segmentation
from pretrain.datasets.preparation import print_counts, require_paths
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import UserError, make_all
from pretrain.runs.file_checks import describe_findings, parallel_map

_LISTS = 'ImageSets/Segmentation'
_SBD = 'benchmark.tgz of the Semantic Boundaries Dataset (SBD)'


def check_voc07(root: Path) -> None:
    """Look at all files of VOC2007 detection and print the numbers of pictures.

    Args:
        root: the VOCdevkit folder.

    Raises:
        UserError: naming every piece that is missing, or else every file that is damaged or wrong.
    """
    trainval, test = 'VOCtrainval_06-Nov-2007.tar', 'VOCtest_06-Nov-2007.tar'
    sources = {
        'JPEGImages': f'{trainval} and {test}',
        'Annotations': f'{trainval} and {test}',
        'ImageSets/Main/trainval.txt': trainval,
        'ImageSets/Main/test.txt': test,
    }
    year = root / 'VOC2007'
    require_paths({year / k: f'{v} of PASCAL VOC 2007' for k, v in sources.items()})
    official = {'trainval': 5_011, 'test': 4_952}
    lists = [year / f'ImageSets/Main/{split}.txt' for split in official]
    counts = make_all(partial(check_detection, split, year, CLASSES) for split in lists)
    print_counts(dict(zip(official, counts, strict=True)), official)


def check_voc12aug(root: Path, sbd: Path | None = None) -> None:
    """Look at all files of VOC2012 segmentation with SBD's and print the numbers of pictures.

    Args:
        root: the VOCdevkit folder.
        sbd: if given, SBD's masks are first converted from this folder, as by :func:`convert_sbd`.

    Raises:
        UserError: naming every piece that is missing, or else every file that is damaged or wrong.
    """
    year = root / 'VOC2012'
    voc = ('JPEGImages', 'SegmentationClass', f'{_LISTS}/train.txt', f'{_LISTS}/val.txt')
    sources = {year / name: 'VOCtrainval_11-May-2012.tar of PASCAL VOC 2012' for name in voc}
    if sbd is None:
        aug = (year / 'SegmentationClassAug', year / _LISTS / 'aug.txt')
        require_paths(sources | dict.fromkeys(aug, f'{_SBD} and add --sbd DIR'))
    else:
        theirs = (sbd / 'dataset' / name for name in ('cls', 'train.txt', 'val.txt'))
        require_paths(sources | dict.fromkeys(theirs, _SBD))
        convert_sbd(sbd, root)
    masks = {
        'train': year / 'SegmentationClass',
        'val': year / 'SegmentationClass',
        'aug': year / 'SegmentationClassAug',
    }
    counts = make_all(
        partial(check_segmentation, year / f'{_LISTS}/{split}.txt', year / 'JPEGImages', folder, 21)
        for split, folder in masks.items()
    )
    _check_apart(year / _LISTS)
    counts = dict(zip(masks, counts, strict=True))
    counts['train and aug'] = counts['train'] + counts['aug']
    print_counts(counts, {'train': 1_464, 'val': 1_449, 'aug': 9_118, 'train and aug': 10_582})


def _check_apart(lists: Path) -> None:
    """SBD's own lists hold images of VOC2012's val."""
    aug = lists / 'aug.txt'
    shared = {
        f'of {split}.txt': sorted(_names(aug) & _names(lists / f'{split}.txt'))
        for split in ('train', 'val')
    }
    if common := describe_findings(shared, shared):
        raise UserError(f'{aug} names images {common}: delete it and convert SBD with --sbd DIR.')


def convert_sbd(sbd: Path, root: Path) -> None:
    """Write SBD's masks into ``VOC2012/SegmentationClassAug``, with VOC's palette, and their names
    into ``aug.txt``: those of SBD's train and val that are in neither of VOC2012's. A call that was
    stopped is continued.

    Args:
        sbd: the folder that holds ``dataset/cls/*.mat``, ``dataset/train.txt`` and ``val.txt``.
        root: the VOCdevkit folder.

    Raises:
        UserError: if SBD lacks a file or has a damaged one, or ``aug.txt`` has other names.
    """
    files, lists = sbd / 'dataset/cls', root / 'VOC2012' / _LISTS
    theirs, ours = (
        _names(folder / 'train.txt') | _names(folder / 'val.txt')
        for folder in (sbd / 'dataset', lists)
    )
    names = sorted(theirs - ours)
    aug, masks = lists / 'aug.txt', root / 'VOC2012/SegmentationClassAug'
    if aug.exists() and _names(aug) != set(names):
        raise UserError(f'{aug} exists with other names: delete it to have it written anew.')
    present = {path.stem for path in files.glob('*.mat')}
    missing = {'files': [f'{name}.mat' for name in names if name not in present]}
    if lacking := describe_findings(missing, missing):
        raise UserError(f'{files} lacks {lacking}: unpack {_SBD} again.')
    done = Counter(parallel_map(partial(_convert, files, masks), names, 16, None))
    if not aug.exists():
        write_atomically(aug, ''.join(f'{name}\n' for name in names).encode())
    print(f'{masks}: {", ".join(f"{count:,} {what}" for what, count in sorted(done.items()))}')


def _names(split: Path) -> set[str]:
    return set(split.read_text().split())


def _convert(files: Path, masks: Path, name: str) -> str:
    """What was done with an image's mask."""
    source, target = files / f'{name}.mat', masks / f'{name}.png'
    if target.exists():
        return 'there already'
    try:
        ids = loadmat(source, variable_names=['GTcls'])['GTcls'][0]['Segmentation'][0]
        mask = Image.fromarray(ids.astype(np.uint8, casting='safe'))
        mask.putpalette(voc_palette())
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        MatReadError,
        zlib.error,
    ) as error:
        raise UserError(f'{source} is damaged ({error}): unpack {_SBD} again.') from error
    buffer = io.BytesIO()
    mask.save(buffer, 'PNG')
    write_atomically(target, buffer.getvalue())
    return 'written'
