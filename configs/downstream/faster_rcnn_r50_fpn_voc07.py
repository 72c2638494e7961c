"""Faster R-CNN with FPN and ResNet-50, VOC2007 trainval (5,011) -> test (4,952); not in the paper.

    tools/dist_train.sh configs/downstream/faster_rcnn_r50_fpn_voc07.py 8 \
        --cfg-options backbone_file=work_dirs/r50_sd/backbone.pth

Ours: not measured yet. Cost: not measured yet. As for the C4 detector: 10 epochs, batch 16,
learning rate 0.01, divided by 10 after 8 epochs, and 128 regions per image (mmdet: 512).
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_fpn.py',
    '../_base_/downstream/voc07.py',
]

model = dict(backbone=dict(depth=50))
