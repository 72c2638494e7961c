"""Multiply the last feature maps of a backbone by a factor, to compare backbones at one scale.

python tools/scale_features.py work_dirs/small/SD/pretraining0/backbone.pth scaled.pth 2.9
"""

from pretrain.runs.cli import run, tool_parser, written


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('source', help='a backbone file')
    parser.add_argument('out', help='the backbone file to write')
    parser.add_argument('factor', type=float, help='at least 1')
    args = parser.parse_args()
    from downstream.feature_scale import write_scaled

    print(written(args.out, write_scaled(args.source, args.out, args.factor)))


if __name__ == '__main__':
    run(main)
