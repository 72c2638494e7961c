"""Convert a ResNet of torchvision, timm or OpenMMLab to a backbone file.

python tools/import_backbone.py SOURCE OUT [--style STYLE] [--preprocessing NAME]
"""

from downstream.preprocessings import PREPROCESSINGS, STYLES
from pretrain.runs.cli import run, tool_parser, written


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('source', help='a .pth or .safetensors file')
    parser.add_argument('out', help='the backbone file to write')
    parser.add_argument(
        '--style', choices=STYLES, help='pytorch: stride on the 3x3 convolution; caffe: on the 1x1'
    )
    known = '; '.join(
        f'{name}: mean {facts["mean"]}, std {facts["std"]}'
        for name, facts in PREPROCESSINGS.items()
    )
    parser.add_argument('--preprocessing', choices=PREPROCESSINGS, help=known)
    args = parser.parse_args()
    from downstream.import_backbone import import_backbone

    provenance = import_backbone(args.source, args.out, args.style, args.preprocessing)
    print(written(args.out, provenance))


if __name__ == '__main__':
    run(main)
