"""DeepLabv3 with ResNet-18 for VOC2012 at 257 pixels; small, not in the paper.

    tools/dist_train.sh configs/small/deeplabv3_r18_voc12.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/deeplabv3.py',
    '../_base_/downstream/voc12_resized.py',
]

model = dict(backbone=dict(depth=18), decode_head=dict(in_channels=512))
image_scale = (257, 257)
crop_size = (193, 193)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=12, val_interval=3)
