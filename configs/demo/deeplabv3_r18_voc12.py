"""DeepLabv3 on ResNet-18 at a size that two CPU cores train in a minute; no row of the paper.

    tools/dist_train.sh configs/demo/deeplabv3_r18_voc12.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/deeplabv3.py',
    '../_base_/downstream/voc12aug.py',
]

data_root = 'data/builtin/VOCdevkit'
batch_size = 4
image_scale = (160, 160)
crop_size = (129, 129)
model = dict(backbone=dict(depth=18), decode_head=dict(in_channels=512, channels=64))
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=3, val_interval=3)
optim_wrapper = dict(optimizer=dict(lr=0.05))
