"""Faster R-CNN with ResNet-18 for BCCD, photos of blood cells; not in the paper.

    tools/dist_train.sh configs/small/faster_rcnn_r18_bccd.py 1 \
        --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth

Trained on trainval (292 photos), tested on test (72). Any other data set in VOC's layout needs the
same settings: ``classes``, ``train_list`` and ``val_list``.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4_r18.py',
    '../_base_/downstream/voc07.py',
]

data_root = 'data/bccd-voc'
classes = ('RBC', 'WBC', 'Platelets')
drop_invalid_boxes = True  # two boxes of trainval are empty
train_list = 'ImageSets/Main/trainval.txt'
val_list = 'ImageSets/Main/test.txt'
batch_size = 4
image_scale = (256, 192)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=8, val_interval=1)
# Without clipping, a run from random weights diverges.
optim_wrapper = dict(optimizer=dict(lr=0.01), clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(type='MultiStepLR', milestones=[6], gamma=0.1)]
