"""DeepLabv3 with ResNet-50, VOC2012 train + SBD (10,582) -> val (1,449); not in the paper.

    tools/dist_train.sh configs/downstream/deeplabv3_r50_voc12aug.py 8 \
        --cfg-options backbone_file=work_dirs/resnet50/backbone.pth

Ours: not measured yet. Cost: not measured yet. Only the depth differs from Table 5.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/deeplabv3.py',
    '../_base_/downstream/voc12aug.py',
]

model = dict(backbone=dict(depth=50))
