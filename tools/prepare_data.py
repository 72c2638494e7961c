"""Check and prepare a data set before the first run on it.

python tools/prepare_data.py imagenet --root DIR [--out DIR --shorter-side N] [--processes P]
python tools/prepare_data.py cifar100 --root DIR
python tools/prepare_data.py voc07 --root DIR
python tools/prepare_data.py voc12aug --root DIR [--sbd DIR]

If files are missing or damaged, the tool names them and exits with code 1. If the number of images
differs from the paper's, it says so; this is no error. It downloads nothing and changes no existing
file.
"""

from pathlib import Path

from pretrain.runs.cli import positive, run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    commands = parser.add_subparsers(dest='dataset', required=True)
    imagenet = commands.add_parser(
        'imagenet',
        help='ImageNet 2012; --root contains train/ and val/; --out makes a smaller copy',
    )
    imagenet.add_argument('--out', type=Path, help='folder for a copy with smaller images')
    imagenet.add_argument(
        '--shorter-side',
        type=positive,
        metavar='N',
        help='with --out: shrink images whose shorter side has more than N pixels',
    )
    imagenet.add_argument(
        '--processes', type=positive, metavar='P', help='number of processes (default: all cores)'
    )
    commands.add_parser('cifar100', help='CIFAR-100 for Python; --root is cifar-100-python')
    commands.add_parser('voc07', help='VOC2007 detection; --root is VOCdevkit')
    voc12aug = commands.add_parser(
        'voc12aug', help='VOC2012 segmentation with the masks of SBD; --root is VOCdevkit'
    )
    for command in commands.choices.values():
        command.add_argument('--root', type=Path, required=True, help='the folder of the data')
    voc12aug.add_argument(
        '--sbd', type=Path, help="SBD's folder; its masks, in dataset/cls, are converted first"
    )
    args = parser.parse_args()
    if args.dataset == 'imagenet' and (args.out is None) != (args.shorter_side is None):
        imagenet.error('--out and --shorter-side go together')
    from downstream.voc_preparation import check_voc07, check_voc12aug
    from pretrain.datasets.completeness import check_cifar100, check_imagenet
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
