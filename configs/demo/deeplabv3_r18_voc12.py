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
paper = dict(metric='mIoU')
model = dict(backbone=dict(depth=18), decode_head=dict(in_channels=512, channels=64))
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=3)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=3, convert_to_iter_based=True)
]
