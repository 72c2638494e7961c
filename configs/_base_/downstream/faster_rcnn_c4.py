"""Faster R-CNN on a ResNet of torchvision's kind, every layer of it transferred (Section 4.3).

conv1 to layer3 see the image and layer4 sees each region, so "all layers before the final pooling"
come from the backbone file. Batch normalisation is frozen, every other layer is trained. A leaf
says the depth.
"""

_base_ = 'mmdet::_base_/models/faster-rcnn_r50-caffe-c4.py'

stage = 'downstream'  # whose `build` fills this config in
task = 'detection'
backbone_file = ''
norm_cfg = None  # mmdet's copy of what stands in the model: changing it would change nothing
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        deep_stem=False, avg_down=False, style='pytorch', frozen_stages=-1, init_cfg=None
    ),
    roi_head=dict(shared_head=dict(style='pytorch', init_cfg=None)),
    # 128 regions an image, as py-faster-rcnn for VOC; mmdet's 512 are for COCO.
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))),
)
