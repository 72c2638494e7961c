"""Table 5, detection: Faster R-CNN with ResNet-152, VOC2007 trainval (5,011) -> test (4,952).

    tools/dist_train.sh configs/downstream/faster_rcnn_r152_voc07.py 8 \
        --cfg-options backbone_file=work_dirs/r152_sd/backbone.pth

Paper: mAP 73.49 (BL), 74.93 (SD). Ours: not measured yet. Cost: not measured yet.
From the paper: 10 epochs, batch 16, learning rate 0.01, divided by 10 after 8 epochs. Our choices,
where the paper is silent: momentum and weight decay, no warm-up, shorter side 600, C4 head, frozen
batch normalisation.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/faster_rcnn_c4.py',
    '../_base_/downstream/voc07.py',
]

paper = dict(BL=73.49, SD=74.93)
model = dict(backbone=dict(depth=152), roi_head=dict(shared_head=dict(depth=152)))
