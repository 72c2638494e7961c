"""Faster R-CNN on ResNet-18 at a size that two CPU cores train in a minute; no row of the paper.

    tools/dist_train.sh configs/demo/faster_rcnn_r18_voc07.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4_r18.py',
    '../_base_/downstream/voc07.py',
]

data_root = 'data/builtin/VOCdevkit'
batch_size = 4
image_scale = (160, 120)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = [dict(type='MultiStepLR', milestones=[2], gamma=0.1)]
