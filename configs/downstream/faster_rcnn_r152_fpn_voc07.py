"""Faster R-CNN with FPN on ResNet-152, VOC2007 trainval (5,011) -> test (4,952); not in the paper.

    tools/dist_train.sh configs/downstream/faster_rcnn_r152_fpn_voc07.py 8 \
        --cfg-options backbone_file=work_dirs/r152_sd/backbone.pth

Ours: not measured yet. Cost: not measured yet. The recipe of the C4 detector: 10 epochs, batch 16,
learning rate 0.01, divided by 10 after 8 epochs.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_fpn.py',
    '../_base_/downstream/voc07.py',
]

data_root = 'data/VOCdevkit'
batch_size = 16
paper = dict(metric='mAP')
model = dict(backbone=dict(depth=152))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_interval=10)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [dict(type='MultiStepLR', milestones=[8], gamma=0.1)]
