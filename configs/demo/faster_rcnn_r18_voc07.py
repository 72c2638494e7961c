"""Faster R-CNN on ResNet-18 at a size that two CPU cores train in a minute; no row of the paper.

    tools/dist_train.sh configs/demo/faster_rcnn_r18_voc07.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4.py',
    '../_base_/downstream/voc07.py',
]

data_root = 'data/builtin/VOCdevkit'
batch_size = 4
image_scale = (160, 120)
paper = dict(metric='mAP')
# BasicBlocks have a quarter of the channels; fewer and coarser regions make layer4 affordable.
model = dict(
    backbone=dict(depth=18),
    rpn_head=dict(in_channels=256, feat_channels=256, anchor_generator=dict(scales=[1, 2, 4, 8])),
    roi_head=dict(
        shared_head=dict(depth=18),
        bbox_roi_extractor=dict(out_channels=256, roi_layer=dict(output_size=6)),
        bbox_head=dict(in_channels=512, roi_feat_size=3),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=50)),
)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=3)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [dict(type='MultiStepLR', milestones=[2], gamma=0.1)]
