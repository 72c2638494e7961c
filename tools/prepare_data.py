"""Check a data set, and prepare it, before the first run on it.

python tools/prepare_data.py imagenet --root DIR [--out DIR --shorter-side N] [--processes P]
python tools/prepare_data.py cifar100 --root DIR
python tools/prepare_data.py voc07 --root DIR
python tools/prepare_data.py voc12aug --root DIR [--sbd DIR]

Missing and damaged files are named, and the exit code is 1. If the data are sound but not as many
images as the paper used, that is printed and is no error. Nothing is downloaded, and no existing
file is changed.
"""

from pathlib import Path

from pretrain.runs.cli import positive, run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    commands = parser.add_subparsers(dest='dataset', required=True)
    imagenet = commands.add_parser(
        'imagenet',
        help='ImageNet of 2012; --root holds train/ and val/; --out makes a smaller copy',
    )
    imagenet.add_argument('--out', type=Path, help='gets a copy with smaller images')
    imagenet.add_argument(
        '--shorter-side',
        type=positive,
        metavar='N',
        help='with --out: most pixels of the shorter side; what has more is shrunk',
    )
    imagenet.add_argument(
        '--processes', type=positive, metavar='P', help='(default: as many as there are cores)'
    )
    commands.add_parser('cifar100', help='CIFAR-100 for Python; --root is cifar-100-python')
    commands.add_parser('voc07', help='VOC2007 detection; --root is VOCdevkit')
    voc12aug = commands.add_parser(
        'voc12aug', help='VOC2012 segmentation with the masks of SBD; --root is VOCdevkit'
    )
    for command in commands.choices.values():
        command.add_argument('--root', type=Path, required=True, help='the folder of the data')
    voc12aug.add_argument(
        '--sbd', type=Path, help='convert the masks in dataset/cls of this folder (of SBD) first'
    )
    args = parser.parse_args()
    if args.dataset == 'imagenet' and (args.out is None) != (args.shorter_side is None):
        imagenet.error('--out and --shorter-side go together')
    from downstream.voc_preparation import check_voc07, check_voc12aug
    from pretrain.datasets.preparation import check_cifar100, check_imagenet
    from pretrain.datasets.shrink import shrink_folder

    match args.dataset:
        case 'voc07':
            check_voc07(args.root)
        case 'voc12aug':
            check_voc12aug(args.root, args.sbd)
        case 'cifar100':
            check_cifar100(args.root)
        case 'imagenet' if args.out:
            shrink_folder(args.root, args.out, args.shorter_side, args.processes)
        case 'imagenet':
            check_imagenet(args.root, args.processes)


if __name__ == '__main__':
    run(main)
