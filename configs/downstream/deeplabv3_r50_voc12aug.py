"""DeepLabv3 on ResNet-50, VOC2012 train + SBD (10,582) -> val (1,449); no row of the paper.

    tools/dist_train.sh configs/downstream/deeplabv3_r50_voc12aug.py 8 \
        --cfg-options backbone_file=work_dirs/resnet50/backbone.pth

Ours: not measured yet. Cost: not measured yet. All but the depth is as for Table 5.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/deeplabv3.py',
    '../_base_/downstream/voc12aug.py',
]

data_root = 'data/VOCdevkit'
batch_size = 8
paper = dict(metric='mIoU')
model = dict(backbone=dict(depth=50))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=50)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=50, convert_to_iter_based=True)
]
