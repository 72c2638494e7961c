"""Predict images with a classifier, a detector or a segmenter, and draw the predictions.

python tools/predict.py CHECKPOINT IMAGE ... [--out FOLDER] [--threshold SCORE]
"""

from pathlib import Path

from pretrain.runs.cli import run, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a pretraining or fine-tuning run')
    parser.add_argument('images', type=Path, nargs='+', metavar='IMAGE')
    parser.add_argument(
        '--out', type=Path, help='folder for NAME_predicted.png (default: beside each image)'
    )
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.3,
        help='lowest score of a detected box (default: 0.3)',
    )
    args = parser.parse_args()
    from downstream.predict import predict

    for image, file, found in predict(args.checkpoint, args.images, args.out, args.threshold):
        print(f'{image}: {"" if found else "nothing found, "}drawn in {file}')
        for name, score, where in found:
            print(f'  {score:6.1%}  {name}  {where}'.rstrip())


if __name__ == '__main__':
    run(main)
