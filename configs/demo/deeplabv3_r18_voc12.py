"""DeepLabv3 with ResNet-18, which two CPU cores train in a minute; not in the paper.

    tools/dist_train.sh configs/demo/deeplabv3_r18_voc12.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/deeplabv3.py',
    '../_base_/downstream/voc12_resized.py',
]

data_root = 'data/builtin/VOCdevkit'
batch_size = 8
image_scale = (129, 129)  # gives 129x97: for align_corners, multiples of the stride plus 1
scale_range = (0.8, 1.25)
crop_size = (81, 81)
model = dict(backbone=dict(depth=18), decode_head=dict(in_channels=512, channels=64))
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=3, val_interval=3)
# The run has few iterations, so the new layers get five times the learning rate.
optim_wrapper = dict(
    optimizer=dict(lr=0.02),
    paramwise_cfg=dict(custom_keys={'decode_head': dict(lr_mult=5.0)}),
)
