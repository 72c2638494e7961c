"""Faster R-CNN with C4 head and torchvision's ResNet, all of whose layers transfer (Section 4.3).

conv1 to layer3 run on the image and layer4 on each region, so "all layers before the final pooling"
come from the backbone file. Batch normalisation is frozen, every other layer is trained. Each
config that inherits this sets the depth.
"""

_base_ = 'mmdet::_base_/models/faster-rcnn_r50-caffe-c4.py'

stage = 'downstream'  # the package whose `build.py` completes this config
task = 'detection'
backbone_file = ''
norm_cfg = None  # mmdet's copy of a setting in `model`; overriding it would have no effect
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        deep_stem=False, avg_down=False, style='pytorch', frozen_stages=-1, init_cfg=None
    ),
    roi_head=dict(
        shared_head=dict(style='pytorch', init_cfg=None),
        bbox_head=dict(num_classes=None),  # `classes` sets it
    ),
    # 128 regions per image, as py-faster-rcnn uses for VOC; mmdet's 512 is for COCO.
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))),
)
