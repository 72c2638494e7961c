"""Table 5, object detection: Faster R-CNN on ResNet-152, VOC2007 trainval (5,011) -> test (4,952).

    tools/dist_train.sh configs/downstream/faster_rcnn_r152_voc07.py 8 \
        --cfg-options backbone_file=work_dirs/r152_sd/backbone.pth

Paper: mAP 73.49 (BL), 74.93 (SD). Ours: not measured yet. Cost: not measured yet.
As the paper: 10 epochs, batch 16, learning rate 0.01, divided by 10 after 8 epochs. The paper does
not say and we chose: momentum and weight decay, no warm-up, shorter side 600, C4 head, frozen
batch normalisation.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4.py',
    '../_base_/downstream/voc07.py',
]

data_root = 'data/VOCdevkit'
batch_size = 16
paper = dict(metric='mAP', BL=73.49, SD=74.93)
model = dict(backbone=dict(depth=152), roi_head=dict(shared_head=dict(depth=152)))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_interval=10)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [dict(type='MultiStepLR', milestones=[8], gamma=0.1)]
