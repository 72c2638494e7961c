"""Faster R-CNN on ResNet-50, VOC2007 trainval (5,011) -> test (4,952); no row of the paper.

    tools/dist_train.sh configs/downstream/faster_rcnn_r50_voc07.py 8 \
        --cfg-options backbone_file=work_dirs/resnet50/backbone.pth

Ours: not measured yet. Cost: not measured yet. All but the depth is as for Table 5.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4.py',
    '../_base_/downstream/voc07.py',
]

data_root = 'data/VOCdevkit'
batch_size = 16
paper = dict(metric='mAP')
model = dict(backbone=dict(depth=50), roi_head=dict(shared_head=dict(depth=50)))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_interval=10)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [dict(type='MultiStepLR', milestones=[8], gamma=0.1)]
