"""DeepLabv3 at output stride 16 with torchvision's ResNet (Section 4.3).

The head is that of the DeepLabv3 paper: rates 6, 12, 18 and 256 channels, no auxiliary head. Batch
normalisation is trained. Each config that inherits this sets the depth.
"""

_base_ = 'mmseg::_base_/models/deeplabv3_r50-d8.py'

stage = 'downstream'  # the package whose `build.py` completes this config
task = 'segmentation'
backbone_file = ''
# mmseg's copies of settings in `model`; overriding them would have no effect.
norm_cfg = None
data_preprocessor = None
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    pretrained=None,
    backbone=dict(
        type='ResNet',
        deep_stem=False,
        avg_down=False,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        norm_cfg=dict(type='BN'),
    ),
    decode_head=dict(
        channels=256,
        dilations=(1, 6, 12, 18),
        num_classes=None,  # `classes` sets it
        norm_cfg=dict(type='BN'),
        # The corners of a 16n+1 crop coincide with those of the feature map.
        align_corners=True,
        loss_decode=dict(avg_non_ignore=True),  # the mean over the pixels with a class
    ),
    auxiliary_head=None,
)
