"""Export the backbone of a pretraining checkpoint.

python tools/export_backbone.py CHECKPOINT OUT
"""

import argparse

from pretrain.runs.cli import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='epoch_*.pth or snapshot_*.pth of a pretraining run')
    parser.add_argument('out', help='the backbone file to write')
    args = parser.parse_args()
    from pretrain.export import export_backbone

    provenance = export_backbone(args.checkpoint, args.out)
    print(f'{args.out}: ' + ', '.join(f'{key} {value}' for key, value in provenance.items()))


if __name__ == '__main__':
    run(main)
