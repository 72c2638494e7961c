"""Faster R-CNN with ResNet-50, VOC2007 trainval (5,011) -> test (4,952); not in the paper.

    tools/dist_train.sh configs/downstream/faster_rcnn_r50_voc07.py 8 \
        --cfg-options backbone_file=work_dirs/resnet50/backbone.pth

Ours: not measured yet. Cost: not measured yet. Only the depth differs from Table 5.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4.py',
    '../_base_/downstream/voc07.py',
]

model = dict(backbone=dict(depth=50), roi_head=dict(shared_head=dict(depth=50)))
