"""Test a checkpoint: print top-1 and top-5 error, mAP or mIoU, and a table of the classes.

python tools/test.py CONFIG CHECKPOINT [--cfg-options KEY=VALUE ...]
"""

from pretrain.runs.cli import add_options, run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('config', help='config that defines the test images and the metric')
    parser.add_argument('checkpoint', help='checkpoint of a pretraining or fine-tuning run')
    add_options(parser)
    args = parser.parse_args()
    from downstream.evaluate import evaluate

    print(evaluate(args.config, args.checkpoint, args.cfg_options))


if __name__ == '__main__':
    run(main)
