"""Faster R-CNN with ResNet-18 for VOC2007 at 256 pixels; small, not in the paper.

    tools/dist_train.sh configs/small/faster_rcnn_r18_voc07.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth

Trained on trainval.txt, tested on test.txt of `data_root`. As for Table 5, the new layers have the
backbone's learning rate, and it drops once.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4_r18.py',
    '../_base_/downstream/voc07.py',
]

batch_size = 8
image_scale = (256, 192)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=8, val_interval=4)
# Without clipping, a run from random weights may diverge.
optim_wrapper = dict(optimizer=dict(lr=0.01), clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(type='MultiStepLR', milestones=[6], gamma=0.1)]
