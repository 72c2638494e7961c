"""DeepLabv3 with ResNet-50 for VOC2012 at 257 pixels: a check of fine-tuning; not in the paper.

    tools/dist_train.sh configs/small/deeplabv3_r50_voc12.py 1 \
        --cfg-options backbone_file=work_dirs/resnet50/backbone.pth
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/deeplabv3.py',
    '../_base_/downstream/voc12_resized.py',
]

model = dict(backbone=dict(depth=50, style='caffe'))  # the style of the README's weights
batch_size = 4
image_scale = (257, 257)
crop_size = (193, 193)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=1, val_interval=1)
