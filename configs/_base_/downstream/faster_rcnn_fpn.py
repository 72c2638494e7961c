"""Faster R-CNN with FPN and torchvision's ResNet; not in the paper.

Every layer of the backbone runs on the image. Batch normalisation is frozen, every other layer is
trained, as in ``faster_rcnn_c4.py``. Each config that inherits this sets the depth.
"""

_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'

stage = 'downstream'  # the package whose `build.py` completes this config
task = 'detection'
backbone_file = ''
model = dict(
    backbone=dict(
        deep_stem=False,
        avg_down=False,
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=False),
        init_cfg=None,
    ),
    roi_head=dict(bbox_head=dict(num_classes=None)),  # `classes` sets it
    # 128 regions per image, as in the C4 detector; RoIAlign's backward pass is slow on a CPU.
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))),
)
