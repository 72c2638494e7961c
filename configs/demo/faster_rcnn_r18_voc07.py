"""Faster R-CNN with ResNet-18, which two CPU cores train in minutes; not in the paper.

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
image_scale = (96, 72)
# Settings for few iterations: up to half of the sampled regions contain an object, all classes
# share one box regression, and the box head keeps the spatial layout of a region's features.
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    rpn_head=dict(anchor_generator=dict(scales=[1.5, 2, 3, 4])),
    roi_head=dict(
        # layer4 gets 3x3 features of a region, as it got 3x3 features of an image in pretraining.
        bbox_roi_extractor=dict(roi_layer=dict(output_size=3)),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_reg_fcs=1,
            fc_out_channels=256,
            with_avg_pool=False,
            roi_feat_size=2,
            reg_class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=32)),
        rcnn=dict(sampler=dict(num=8, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(max_per_img=20)),
)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=2, val_interval=2)
# Without clipping, the first gradients of a backbone with random weights would make it diverge.
optim_wrapper = dict(optimizer=dict(lr=0.015), clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(type='MultiStepLR', milestones=[1], gamma=0.1)]
