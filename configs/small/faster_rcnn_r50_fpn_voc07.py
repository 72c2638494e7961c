"""Faster R-CNN with FPN and ResNet-50 for VOC2007 at 320 pixels: a check of fine-tuning.

    tools/dist_train.sh configs/small/faster_rcnn_r50_fpn_voc07.py 1 \
        --cfg-options backbone_file=work_dirs/resnet50/backbone.pth

Not in the paper. Trained on trainval.txt, tested on test.txt of `data_root`.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_fpn.py',
    '../_base_/downstream/voc07.py',
]

model = dict(backbone=dict(depth=50, style='caffe'))  # the style of the README's weights
batch_size = 4
image_scale = (320, 192)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=1, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.005), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=1, convert_to_iter_based=True)
]
