"""Check VOC2007 and VOC2012 with SBD, and convert SBD's masks, for tools/prepare_data.py."""

import io
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from downstream.voc_checks import Split, check_detection, check_segmentation, metainfo, read_list
from pretrain.datasets.completeness import print_counts, require_paths
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import UserError, counted
from pretrain.runs.file_checks import parallel_map

_LISTS = 'ImageSets/Segmentation'
_BORDER = (224, 224, 192)  # VOC's colour for id 255
_MASKS = ('SegmentationClass', 'SegmentationClassAug', 'SegmentationClass')  # train, aug, val
# Raised for damaged files; NotImplementedError if loadmat misreads the format version.
_DAMAGES = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    NotImplementedError,
    MatReadError,
    zlib.error,
)
_SBD = 'benchmark.tgz of the Semantic Boundaries Dataset (SBD)'


def check_voc07(root: Path) -> None:
    """Check all VOC2007 detection files in ``root``, the folder VOCdevkit; print the image counts.

    Raises:
        UserError: if a folder or list is missing, or a file is damaged or wrong; it names them all.
    """
    year, official = root / 'VOC2007', {'trainval': 5_011, 'test': 4_952}
    trainval, test = (
        Split(year / f'ImageSets/Main/{split}.txt', year / 'JPEGImages', year / 'Annotations')
        for split in official
    )
    archives = 'VOCtrainval_06-Nov-2007.tar', 'VOCtest_06-Nov-2007.tar'
    sources = dict.fromkeys((trainval.images, trainval.labels), ' and '.join(archives))
    sources |= {trainval.list_file: archives[0], test.list_file: archives[1]}
    require_paths({path: f'{archive} of PASCAL VOC 2007' for path, archive in sources.items()})
    counts = check_detection([trainval], [test], metainfo('mmdet', 'VOCDataset')['classes'])
    print_counts(dict(zip(official, counts, strict=True)), official)


def check_voc12aug(root: Path, sbd: Path | None = None) -> None:
    """Check all VOC2012 segmentation files in ``root``, the folder VOCdevkit, with SBD's masks;
    print the image counts. If ``sbd`` is given, :func:`convert_sbd` runs first.

    Raises:
        UserError: if a folder or list is missing, or a file is damaged or wrong; it names them all.
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
    official = {'train': 1_464, 'aug': 9_118, 'val': 1_449}
    train, aug, val = (
        Split(year / f'{_LISTS}/{split}.txt', year / 'JPEGImages', year / masks)
        for split, masks in zip(official, _MASKS, strict=True)
    )
    counts = check_segmentation([train, aug], [val], **metainfo('mmseg', 'PascalVOCDataset'))
    counts = dict(zip(official, counts, strict=True))
    counts['train and aug'] = counts['train'] + counts['aug']
    print_counts(counts, official | {'train and aug': 10_582})


def convert_sbd(sbd: Path, root: Path) -> None:
    """Convert the masks of SBD's train and val images that VOC2012's train and val do not have.

    The masks are written as PNG files with VOC's palette into ``VOC2012/SegmentationClassAug`` of
    ``root``, the folder VOCdevkit, and the image names into ``aug.txt``. ``sbd`` holds
    ``dataset/cls/*.mat``, ``dataset/train.txt`` and ``dataset/val.txt``. To continue a stopped
    call, repeat it: masks that exist are kept.

    Raises:
        UserError: if an SBD file is missing or damaged, or ``aug.txt`` exists with other names.
    """
    files, lists = sbd / 'dataset/cls', root / 'VOC2012' / _LISTS
    theirs, ours = (
        {*read_list(folder / 'train.txt'), *read_list(folder / 'val.txt')}
        for folder in (sbd / 'dataset', lists)
    )
    names = sorted(theirs - ours)
    aug, masks = lists / 'aug.txt', root / 'VOC2012/SegmentationClassAug'
    if aug.exists() and set(read_list(aug)) != set(names):
        raise UserError(f'{aug} exists with other names: delete it, and it is written again.')
    present = {path.stem for path in files.glob('*.mat')}
    if missing := [f'{name}.mat' for name in names if name not in present]:
        raise UserError(f'{files} lacks {counted(missing, "files")}: unpack {_SBD} again.')
    palette = np.full((256, 3), _BORDER, np.uint8)
    colours = metainfo('mmseg', 'PascalVOCDataset')['palette']
    palette[: len(colours)] = colours
    convert = partial(_convert, files, masks, palette.tobytes())
    done = Counter(parallel_map(convert, names, 16, None, 'converting'))
    if not aug.exists():
        write_atomically(aug, ''.join(f'{name}\n' for name in names).encode())
    print(f'{masks}: {", ".join(f"{count:,} {what}" for what, count in sorted(done.items()))}')


def _convert(files: Path, masks: Path, palette: bytes, name: str) -> str:
    """Convert the mask of an image; return whether it was written or there already."""
    source, target = files / f'{name}.mat', masks / f'{name}.png'
    if target.exists():
        return 'already there'
    try:
        ids = loadmat(source, variable_names=['GTcls'])['GTcls'][0]['Segmentation'][0]
        mask = Image.fromarray(ids.astype(np.uint8, casting='safe'))
        mask.putpalette(palette)
    except _DAMAGES as error:
        raise UserError(f'{source} is damaged ({error}): unpack {_SBD} again.') from error
    buffer = io.BytesIO()
    mask.save(buffer, 'PNG')
    write_atomically(target, buffer.getvalue())
    return 'written'
