"""Export a pretraining checkpoint as a backbone file, or for another library.

python tools/export.py CHECKPOINT OUT [--format FORMAT] [--classifier]
"""

from pretrain.runs.cli import run, tool_parser, written

FORMATS = ('torchvision', 'timm', 'mmpretrain', 'huggingface', 'onnx')


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('checkpoint', help='epoch_*.pth or snapshot_*.pth of a pretraining run')
    parser.add_argument('out', help='the file to write; timm, mmpretrain, huggingface: the folder')
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default='torchvision',
        help="default: torchvision; mmdet, mmseg and this suite's fine-tuning load it too",
    )
    parser.add_argument(
        '--classifier',
        action='store_true',
        help='include the last layer (default: only the layers before the final pooling)',
    )
    args = parser.parse_args()
    from pretrain.export import export

    provenance = export(args.checkpoint, args.out, args.format, args.classifier)
    print(written(args.out, provenance))


if __name__ == '__main__':
    run(main)
