"""Faster R-CNN on ResNet-18 at a size that two CPU cores train in minutes; no row of the paper.

    tools/dist_train.sh configs/demo/faster_rcnn_r18_voc07.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4_r18.py',
    '../_base_/downstream/voc07.py',
]

data_root = 'data/builtin/VOCdevkit'
batch_size = 8
image_scale = (96, 72)  # objects are 25 to 65 pixels large
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    rpn_head=dict(anchor_generator=dict(scales=[1.5, 2, 3, 4])),
    roi_head=dict(
        # layer4 sees 3x3 features of a region, as it saw 3x3 of a picture in pretraining.
        bbox_roi_extractor=dict(roi_layer=dict(output_size=3)),
        # One box regression for all classes: a class has only about 36 objects to learn from.
        bbox_head=dict(roi_feat_size=2, reg_class_agnostic=True),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=8, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(max_per_img=20)),
)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=3, val_interval=3)
# So few iterations leave the new layers little time: they learn at five times the rate.
optim_wrapper = dict(
    optimizer=dict(lr=0.02),
    paramwise_cfg=dict(custom_keys={'bbox_head': dict(lr_mult=5.0)}),
)
param_scheduler = [dict(type='MultiStepLR', milestones=[2], gamma=0.1)]
